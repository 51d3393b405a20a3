// The sample browser: every logged response of a run, with filters that make reward hacking visible.

const VERDICTS = {right: '✓', wrong: '✗', unscorable: '?', timeout: '…'};

// What the chips ask of a row; `get` has readers by column.
const CHIPS = [
  {id: 'right', title: 'Right', test: (get, row) => get.verdict(row) === 'right'},
  {id: 'wrong', title: 'Wrong', test: (get, row) => get.verdict(row) === 'wrong'},
  {id: 'unscorable', title: 'Unscorable', test: (get, row) => get.verdict(row) === 'unscorable'},
  {id: 'timeout', title: 'Timeout', test: (get, row) => get.verdict(row) === 'timeout'},
  {id: 'clipped', title: 'Clipped', hint: 'cut off at the length limit', test: (get, row) => get.finish(row) === 'length'},
  {
    id: 'rewarded', title: 'Rewarded, not right', hint: 'a reward above 0 for what the verifier does not call right',
    test: (get, row) => get.reward(row) > 0 && get.verdict(row) !== null && get.verdict(row) !== 'right',
  },
];
const SORTS = [
  ['step', 'in the order of the run'], ['reward', 'reward'], ['advantage', 'advantage'], ['length', 'length'],
];
const ROW_HEIGHT = 34;

function textPattern(text) {
  return new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'i');
}

class SampleTable {
  constructor(data) {
    this.table = new Table(data);
    const names = ['step', 'phase', 'verdict', 'finish', 'reward', 'advantage', 'length', 'response', 'group', 'task'];
    this.get = Object.fromEntries(names.map((name) => [name, this.table.reader(name)]));
    this.prompts = ['prompt', 'question'].filter((name) => this.table.has(name));
    this.get.prompt = this.table.reader(this.prompts[0] || 'prompt');
    this.phases = this.distinct('phase');
  }

  distinct(name) {
    const known = this.table.choices(name);
    if (known) return known;
    const read = this.table.reader(name);
    return [...new Set(Array.from({length: this.table.count}, (_, row) => read(row)))].filter((value) => value !== null);
  }

  // The steps of the rows of a phase ('' for all), in order.
  steps(phase) {
    const found = new Set();
    for (let row = 0; row < this.table.count; row++) {
      if ((!phase || this.get.phase(row) === phase) && isNumber(this.get.step(row))) found.add(this.get.step(row));
    }
    return [...found].sort((a, b) => a - b);
  }

  // Rows that meet {phase, step, chip, text, exact}, in order of {sort, falling}; and how many rows each chip would show.
  filter(wanted) {
    const {get} = this;
    const pattern = wanted.text ? textPattern(wanted.text) : null;
    const chip = CHIPS.find((one) => one.id === wanted.chip);
    const counts = Object.fromEntries(CHIPS.map((one) => [one.id, 0]));
    const rows = [];
    let all = 0;
    for (let row = 0; row < this.table.count; row++) {
      if (wanted.phase && get.phase(row) !== wanted.phase) continue;
      if (wanted.step !== null && get.step(row) !== wanted.step) continue;
      if (wanted.exact !== null && get.response(row) !== wanted.exact) continue;
      if (pattern && !pattern.test(get.response(row) ?? '') && !this.prompts.some((name) => pattern.test(this.table.value(name, row) ?? ''))) continue;
      all++;
      for (const one of CHIPS) if (one.test(get, row)) counts[one.id]++;
      if (!chip || chip.test(get, row)) rows.push(row);
    }
    return {rows: this.sort(rows, wanted), counts, all};
  }

  // Rows without a number come last either way.
  sort(rows, {sort, falling}) {
    if (sort === 'step') return falling ? rows.reverse() : rows;
    const value = this.get[sort];
    const sign = falling ? -1 : 1;
    const key = (row) => (isNumber(value(row)) ? sign * value(row) : Infinity);
    const keys = new Map(rows.map((row) => [row, key(row)]));
    return rows.sort((a, b) => (keys.get(a) === keys.get(b) ? a - b : keys.get(a) - keys.get(b)));
  }

  // The responses that come up most often among `rows`: what a policy falls back on.
  frequent(rows, most) {
    const found = new Map();
    for (const row of rows) {
      const text = this.get.response(row);
      if (text === null) continue;
      const one = found.get(text) || {text, count: 0, reward: 0, right: 0};
      one.count++;
      one.reward += this.get.reward(row) || 0;
      one.right += this.get.verdict(row) === 'right';
      found.set(text, one);
    }
    return [...found.values()].filter((one) => one.count > 1).sort((a, b) => b.count - a.count).slice(0, most);
  }
}

function verdictMark(verdict) {
  return h('span', {class: `mark ${verdict in VERDICTS ? verdict : 'none'}`, title: verdict || 'no verdict'}, VERDICTS[verdict] || '·');
}

// Texts of one line show their line ends.
const oneLine = (text) => String(text ?? '').slice(0, 200).replace(/\s*\n\s*/g, ' ⏎ ');

function sampleRow(samples, row, element) {
  const {get} = samples;
  element.append(
    verdictMark(get.verdict(row)),
    h('span', {class: 'n'}, number(get.step(row))),
    h('span', {class: 'n'}, fixed(get.reward(row), 2)),
    h('span', {class: 'n'}, signed(fixed(get.advantage(row), 2))),
    h('span', {class: `n ${get.finish(row) === 'length' ? 'clipped' : ''}`}, number(get.length(row))),
    h('bdi', {class: 'text'}, oneLine(get.response(row))),
    h('bdi', {class: 'text faint'}, oneLine(get.prompt(row))));
}

// Mean reward and share right by step: where the two part, the reward is earned by something else than right answers.
function stepStrip(bySteps, phase, choose) {
  const found = bySteps[phase];
  if (!found || found.step.length < 2) return null;
  // The reward is drawn broad, so that it is seen below the share right where both are the same.
  const line = (label, values, at) => ({label, colour: colour(at), wide: !at, dash: at > 1 ? '5 3' : null, xs: found.step, ys: values});
  const kept = (values) => values.some(isNumber);
  const lines = [];
  if (kept(found.reward)) lines.push(line('mean reward', found.reward.map((value) => value ?? NaN), 0));
  if (kept(found.right)) lines.push(line('share right', found.right.map((value) => value ?? NaN), 1));
  if (kept(found.clipped)) lines.push(line('share clipped', found.clipped.map((value) => value ?? NaN), 2));
  if (!lines.length) return null;
  const view = new View();
  const chart = new Chart(view, lines, {title: 'Reward and verdicts', xTitle: 'step', height: 112});
  chart.picture.addEventListener('click', () => view.at !== null && choose(view.at));
  const legend = h('div', {class: 'legend'}, lines.map((one) => h('span', null, h('i', {class: 'key', style: {background: one.colour}}), one.label)));
  return h('div', {class: 'strip'}, legend, chart.element);
}

function buildSamples(panel, runs) {
  const having = runs.filter((run) => run.samples.count);
  if (!having.length) {
    panel.append(h('p', {class: 'lonely'}, 'No responses have been logged.'));
    return;
  }
  const body = h('div');
  if (having.length > 1) {
    const pick = h('select', {'aria-label': 'Run', onchange: () => openBrowser(body, having[pick.value])},
      having.map((run, index) => h('option', {value: index}, run.label)));
    panel.append(h('div', {class: 'bar'}, h('label', null, 'Run ', pick)));
  }
  panel.append(body);
  openBrowser(body, having[0]);
}

// The samples of a run are unpacked when they are asked for.
async function openBrowser(body, run) {
  body.wanted = run; // another may be chosen before this one is there
  body.replaceChildren(h('p', {class: 'lonely', role: 'status'}, `Reading ${plural(run.samples.count, 'response')} …`));
  await new Promise((done) => { setTimeout(done, 20); }); // so that the sentence is seen
  try {
    run.sampleTable ||= new SampleTable(await unpack(run.blocks.samples));
    if (body.wanted === run) body.replaceChildren(sampleBrowser(run, run.sampleTable));
  } catch (error) {
    body.replaceChildren(h('p', {class: 'lonely', role: 'alert'}, `The samples cannot be shown: ${error.message}`));
    throw error;
  }
}

function sampleBrowser(run, samples) {
  const state = {phase: '', step: null, chip: '', text: '', exact: null, sort: 'step', falling: false};
  const detail = h('article', {class: 'detail', 'aria-label': 'The chosen response', 'aria-live': 'polite'});
  const list = new VirtualList({
    label: 'Responses', rowHeight: ROW_HEIGHT,
    draw: (row, element) => sampleRow(samples, row, element),
    choose: (row) => showSample(detail, run, samples, row, jump),
  });
  const jump = (row) => {
    const place = list.items.indexOf(row);
    if (place >= 0) list.select(place);
    else showSample(detail, run, samples, row, jump);
  };
  const total = h('output', {class: 'total', 'aria-live': 'polite'});
  const strip = h('div');
  let steps = [];

  const chips = [{id: '', title: 'All'}, ...CHIPS].map((chip) => {
    const told = h('b');
    const button = h('button', {type: 'button', class: `chip ${chip.id}`, title: chip.hint, onclick: () => {
      state.chip = chip.id;
      refresh();
    }}, `${chip.title} `, told);
    return {...chip, button, told};
  });
  const slider = h('input', {type: 'range', min: -1, value: -1, step: 1, 'aria-label': 'Step', oninput: () => {
    setStep(Number(slider.value) < 0 ? null : steps[Number(slider.value)]);
  }});
  const where = h('output', {class: 'where'});
  const phase = h('select', {onchange: () => setPhase(phase.value)},
    h('option', {value: ''}, 'all phases'), samples.phases.map((name) => h('option', {value: name}, name)));
  const search = h('input', {type: 'search', placeholder: 'Search prompts and responses', 'aria-label': 'Search prompts and responses',
    oninput: debounce(() => {
      state.text = search.value;
      refresh();
    }, 150)});
  const sort = h('select', {onchange: () => {
    state.sort = sort.value;
    refresh();
  }}, SORTS.map(([value, title]) => h('option', {value}, title)));
  const falling = h('button', {type: 'button', class: 'quiet', 'aria-pressed': 'false', onclick: () => {
    state.falling = !state.falling;
    falling.textContent = state.falling ? '↓ falling' : '↑ rising';
    falling.setAttribute('aria-pressed', state.falling);
    refresh();
  }}, '↑ rising');
  const only = h('div', {class: 'only', hidden: true});
  const frequent = h('details', {class: 'frequent', ontoggle: () => drawFrequent()}, h('summary', null, 'Responses that come up most often'));

  function setPhase(name) {
    state.phase = name;
    steps = samples.steps(name);
    slider.max = steps.length - 1;
    const told = stepStrip(run.samples.by_step, name || mainPhase(run.samples.by_step), (step) => setStep(step));
    strip.replaceChildren(...(told ? [told] : []));
    setStep(null);
  }

  function setStep(step) {
    state.step = step;
    slider.value = step === null ? -1 : steps.indexOf(step);
    where.textContent = step === null ? `all ${plural(steps.length, 'step')}` : `step ${step}`;
    refresh();
  }

  function setExact(text) {
    state.exact = text;
    only.hidden = text === null;
    only.replaceChildren(...(text === null ? [] : [
      'Only this response: ', h('q', null, h('bdi', null, oneLine(text))),
      h('button', {type: 'button', class: 'quiet', onclick: () => setExact(null)}, 'show others again')]));
    refresh();
  }

  function drawFrequent() {
    if (!frequent.open) return;
    const found = samples.frequent(list.items, 12);
    const rows = found.map((one) => h('tr', null,
      h('td', {class: 'n'}, count(one.count)), h('td', {class: 'n'}, percent(one.count / list.items.length, 0)),
      h('td', {class: 'n'}, fixed(one.reward / one.count, 2)), h('td', {class: 'n'}, percent(one.right / one.count, 0)),
      h('td', null, h('button', {type: 'button', class: 'link', onclick: () => setExact(one.text)}, h('bdi', null, oneLine(one.text) || '(empty)')))));
    const head = ['times', 'share', 'mean reward', 'right', 'response'].map((name, index) => h('th', {class: index < 4 ? 'n' : null, scope: 'col'}, name));
    const shown = rows.length ? h('table', null, h('thead', null, h('tr', null, head)), h('tbody', null, rows)) : h('p', null, 'Every response is another one.');
    frequent.replaceChildren(frequent.firstChild, shown);
  }

  function refresh() {
    const {rows, counts, all} = samples.filter(state);
    for (const {id, button, told} of chips) {
      const own = id ? counts[id] : all;
      told.textContent = count(own);
      button.setAttribute('aria-pressed', id === state.chip);
      button.disabled = !own && id !== state.chip && id !== '';
    }
    total.textContent = plural(rows.length, 'response');
    list.show(rows);
    drawFrequent();
  }

  const heads = [['', ''], ['step', 'n'], ['reward', 'n'], ['advantage', 'n'], ['length', 'n'], ['response', ''], ['prompt', '']];
  const browser = h('div', {class: 'browser'},
    h('div', {class: 'filters'},
      h('div', {class: 'bar chips', role: 'group', 'aria-label': 'Show'}, chips.map((chip) => chip.button)),
      h('div', {class: 'bar'}, search, h('label', null, 'Phase ', phase), h('label', null, 'Sort by ', sort), falling, total),
      h('div', {class: 'bar slide'}, h('label', {class: 'grow'}, 'Step ', slider), where,
        h('button', {type: 'button', class: 'quiet', onclick: () => setStep(null)}, 'all steps')),
      strip, frequent, only),
    h('div', {class: 'split'},
      h('div', {class: 'left'},
        h('div', {class: 'row head', 'aria-hidden': 'true'}, heads.map(([name, kind]) => h('span', {class: kind || 'text'}, name))),
        list.element),
      detail));
  // Once it has its place: the list needs its height.
  requestAnimationFrame(() => setPhase(''));
  return browser;
}

// The phase with the most steps: the one whose course says something.
function mainPhase(bySteps) {
  const names = Object.keys(bySteps);
  return names.reduce((best, name) => (bySteps[name].step.length > bySteps[best].step.length ? name : best), names[0]);
}
