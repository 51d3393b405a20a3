// One response: what was asked, what came, token by token, how it was judged, and what its group wrote.

// Shown in places of their own; every other column of a row is listed below them, so that nothing is hidden.
const KNOWN = new Set(['step', 'phase', 'group', 'task', 'question', 'prompt', 'gold', 'response', 'verdict', 'extracted',
  'reward', 'advantage', 'length', 'finish']);
const PART = /^(reward|parts|reward_parts|terms)[./]/;
const SURPRISE = 4; // nats from which on a token has the full shade
const MATES = 64;

// The parts of a response by token. A tokenizer may leave out the blank before a word; then it is taken from the text.
// `beyond` marks what was drawn but is no part of the text: a stop text, the end-of-text token.
function pieces(response, tokens) {
  let at = 0;
  return tokens.map((token) => {
    let text = token;
    if (!response.startsWith(text, at)) {
      const blanks = /^\s+/.exec(response.slice(at, at + 20));
      if (blanks && response.startsWith(text, at + blanks[0].length)) text = blanks[0] + text;
    }
    const inside = text !== '' && response.startsWith(text, at);
    if (inside) at += text.length;
    return {text, beyond: !inside && at >= response.trimEnd().length};
  });
}

function shadedResponse(response, tokens, logprobs) {
  return pieces(response, tokens).map(({text, beyond}, place) => {
    const logprob = logprobs[place];
    const shade = isNumber(logprob) ? Math.min(1, -logprob / SURPRISE) : 0;
    const told = isNumber(logprob) ? `log-prob ${fixed(logprob, 2)}, probability ${percent(Math.exp(logprob))}` : 'no log-prob';
    return h('span', {class: beyond ? 'token beyond' : 'token', title: told, style: {'--shade': `${Math.round(100 * shade)}%`}}, text);
  });
}

// {tokens, logprobs} of one row, unpacked when the first is asked for; null if none were logged.
async function tokensOf(run, row) {
  if (!run.blocks.tokens) return null;
  run.tokenData ||= unpack(run.blocks.tokens);
  const {words, token, logprob, start} = await run.tokenData;
  if (start[row] === start[row + 1]) return null;
  const tokens = token.slice(start[row], start[row + 1]).map((place) => words[place]);
  return {tokens, logprobs: logprob.slice(start[row], start[row + 1])};
}

function facts(pairs) {
  return h('dl', {class: 'facts'}, pairs.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))));
}

// The other rows for which test is true, with a button for each.
function mates(title, samples, row, test, jump) {
  const found = [];
  for (let other = 0; other < samples.table.count && found.length < MATES; other++) {
    if (other !== row && test(other)) found.push(other);
  }
  if (!found.length) return null;
  const {get} = samples;
  const items = found.map((other) => h('li', null, h('button', {type: 'button', class: 'link mate', onclick: () => jump(other)},
    verdictMark(get.verdict(other)), h('span', {class: 'n'}, `step ${number(get.step(other))}`), h('span', {class: 'n'}, fixed(get.reward(other), 2)),
    h('bdi', {class: 'text'}, oneLine(get.response(other)) || '(empty)'))));
  return h('details', {open: true}, h('summary', null, `${title} (${found.length}${found.length === MATES ? ' or more' : ''})`), h('ul', {class: 'mates'}, items));
}

function showSample(place, run, samples, row, jump) {
  if (row === null) {
    place.replaceChildren(h('p', {class: 'lonely'}, 'No response meets the filters.'));
    return;
  }
  const {get, table} = samples;
  const value = (name) => table.value(name, row);
  const verdict = get.verdict(row);
  const parts = table.names.filter((name) => PART.test(name) && isNumber(value(name)));
  const others = table.names.filter((name) => !KNOWN.has(name) && !parts.includes(name) && value(name) !== null);
  const group = get.group(row);
  const step = get.step(row);
  const phase = get.phase(row);
  const task = get.task(row);
  const response = String(get.response(row) ?? '');
  const text = h('pre', {class: 'response', dir: 'auto', tabindex: 0, 'aria-label': 'Response'}, response || h('em', null, '(empty)'));
  const legend = h('p', {class: 'shading', hidden: true});
  refill(place,
    h('p', {class: 'crumbs'}, [`step ${number(step)}`, phase, group === null ? null : `group ${group}`, task].filter((one) => one !== null && one !== '').join(' · ')),
    h('p', {class: `verdict ${verdict || 'none'}`}, verdictMark(verdict), verdict || 'no verdict',
      get.finish(row) === 'length' ? h('span', {class: 'cut'}, 'cut off at the limit') : null),
    facts([
      ['reward', number(get.reward(row), 4)],
      ...parts.map((name) => [name.replace(PART, '↳ '), number(value(name), 4)]),
      ['advantage', signed(fixed(get.advantage(row), 3))],
      ['length', isNumber(get.length(row)) ? plural(get.length(row), 'token') : MISSING],
    ]),
    samples.prompts.map((name) => [h('h3', null, name === 'question' ? 'Question' : 'Prompt'),
      h('pre', {class: 'prompt', dir: 'auto', tabindex: 0, 'aria-label': name}, value(name) ?? '')]),
    h('h3', null, 'Response'), text, legend,
    facts([['right answer', h('bdi', null, value('gold') ?? MISSING)], ['answer found', h('bdi', null, value('extracted') ?? MISSING)],
      ...others.map((name) => [name, h('bdi', null, String(value(name)))])]),
    group === null ? null : mates('The same group', samples, row, (other) => get.group(other) === group && get.step(other) === step && get.phase(other) === phase, jump),
    task === null ? null : mates('The same task at other steps', samples, row, (other) => get.task(other) === task && get.step(other) !== step, jump));
  place.scrollTop = 0;
  place.dataset.row = row;
  tokensOf(run, row).then((found) => {
    if (!found || place.dataset.row !== String(row)) return;
    text.replaceChildren(...shadedResponse(response, found.tokens, found.logprobs));
    const known = found.logprobs.filter(isNumber);
    const mean = known.reduce((sum, one) => sum + one, 0) / known.length;
    legend.hidden = false;
    legend.textContent = `The stronger the shade, the less likely the token. Mean log-prob ${fixed(mean, 2)}, least likely ${fixed(Math.min(...known), 2)}.`;
  });
}
