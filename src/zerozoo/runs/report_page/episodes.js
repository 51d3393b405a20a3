// Episodes of control runs: returns by step, every episode of every evaluation, and what the environment drew.

const SCATTERED = 5000; // episodes at most that are drawn as points

function episodeLines(runs, phase) {
  const lines = [];
  for (const run of runs) {
    const found = run.episodes.by_step[phase];
    if (!found || !found.step.length) continue;
    if (runs.length === 1 && run.episodes.count <= SCATTERED) lines.push(scatter(run, phase));
    lines.push({
      label: run.label, colour: colour(run.index), xs: found.step, ys: found.mean, lows: found.low, highs: found.high,
    });
  }
  return lines;
}

function scatter(run, phase) {
  const table = new Table(run.episodes);
  const [step, earned, name] = ['step', 'return', 'phase'].map((column) => table.reader(column));
  const rows = Array.from({length: table.count}, (_, row) => row);
  const kept = rows.filter((row) => (name(row) ?? '') === phase && isNumber(step(row)) && isNumber(earned(row)));
  kept.sort((a, b) => step(a) - step(b));
  return {label: 'episodes', colour: colour(run.index), xs: kept.map(step), ys: kept.map(earned), scatter: true};
}

function buildEpisodes(panel, runs, shownRuns) {
  const charts = h('div', {class: 'charts wide'});
  const having = runs.filter((run) => run.episodes.count);
  const phases = [...new Set(runs.flatMap((run) => Object.keys(run.episodes.by_step)))];

  function redraw() {
    const view = new View();
    charts.replaceChildren(...phases.map((phase) => {
      const lines = episodeLines(shownRuns(), phase);
      const title = `Return per episode${phase ? `, ${phase}` : ''}`;
      const note = h('small', null, `line: mean with its 95 % interval${lines.some((line) => line.scatter) ? '; points: single episodes' : ''}`);
      return h('figure', {class: 'card'}, h('figcaption', null, title, note), new Chart(view, lines, {title, xTitle: 'step', height: 260}).element);
    }));
  }

  redraw();
  panel.append(charts);
  for (const run of runs) panel.append(...pictures(run, (picture) => !picture.name.startsWith('figures/')));
  const body = h('div');
  const pick = h('select', {'aria-label': 'Run', onchange: () => body.replaceChildren(episodeList(having[pick.value]))},
    having.map((run, index) => h('option', {value: index}, run.label)));
  panel.append(heading('Every episode', having.length > 1 ? h('label', null, 'Run ', pick) : null), body);
  body.append(episodeList(having[0]));
  return redraw;
}

function episodeList(run) {
  const table = new Table(run.episodes);
  const names = table.names;
  const readers = names.map((name) => table.reader(name));
  const state = {sort: null, falling: false};
  const list = new VirtualList({
    label: 'Episodes', rowHeight: 30, choose: () => {},
    draw: (row, element) => fill(element, null, readers.map((read) => h('span', {class: 'n'}, cell(read(row))))),
  });
  const cell = (value) => (typeof value === 'boolean' ? (value ? 'yes' : 'no') : Number.isInteger(value) ? minus(String(value)) : isNumber(value) ? number(value, 5) : value ?? MISSING);
  const heads = names.map((name, index) => h('button', {type: 'button', class: 'n sort', onclick: () => {
    state.falling = state.sort === index ? !state.falling : true;
    state.sort = index;
    heads.forEach((head, at) => { head.dataset.order = at === index ? (state.falling ? 'falling' : 'rising') : ''; });
    show();
  }}, name));
  function show() {
    const rows = Array.from({length: table.count}, (_, row) => row);
    if (state.sort !== null) {
      const read = readers[state.sort];
      const sign = state.falling ? -1 : 1;
      rows.sort((a, b) => sign * compare(read(a), read(b)) || a - b);
    }
    list.show(rows);
  }
  requestAnimationFrame(show);
  return h('div', {class: 'episodes-list', style: {'--columns': names.length}}, h('div', {class: 'row head'}, heads), list.element);
}

// Numbers by size, texts by the alphabet, nothing before anything.
function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return a < b ? -1 : 1;
}
