// A claim: its verdict, the effect with its interval against the threshold, and the numbers of every seed.

function verdictBadge(verdict) {
  return h('span', {class: `badge ${String(verdict).toLowerCase().replace(/[^a-z]+/g, '-')}`}, verdict);
}

const interval = (low, high) => `[${signed(number(low))}, ${signed(number(high))}]`;

function effectText(effect) {
  if (!effect || !isNumber(effect.value)) return MISSING;
  return `${signed(number(effect.value))} ${interval(effect.low, effect.high)}`;
}

// A bar from low to high with a dot at the value, and a line at the threshold. Ends that nothing bounds run out of the
// picture.
function effectPicture(effect, width, height, labels) {
  if (!effect || !isNumber(effect.value)) return null;
  const known = [effect.value, effect.low, effect.high, effect.threshold].filter(isNumber);
  const room = 0.12 * (Math.max(...known) - Math.min(...known)) || Math.abs(known[0]) * 0.2 || 1;
  const [least, most] = [Math.min(...known) - room, Math.max(...known) + room];
  const middle = labels ? height * 0.45 : height / 2;
  const x = (value) => 6 + (value - least) / (most - least) * (width - 12);
  const low = isNumber(effect.low) ? x(effect.low) : 0;
  const high = isNumber(effect.high) ? x(effect.high) : width;
  const label = `effect ${effectText(effect)}, threshold ${number(effect.threshold)}`;
  const parts = [svg('line', {class: 'axis', x1: 0, x2: width, y1: middle, y2: middle})];
  if (isNumber(effect.threshold)) {
    const at = x(effect.threshold);
    parts.push(svg('line', {class: 'threshold', x1: at, x2: at, y1: labels ? 4 : 2, y2: labels ? height - 22 : height - 2}));
    if (labels) parts.push(svg('text', {class: 'tick', x: at, y: height - 6, 'text-anchor': anchor(at, width)}, `threshold ${number(effect.threshold)}`));
  }
  parts.push(svg('line', {class: 'interval', x1: low, x2: high, y1: middle, y2: middle}));
  parts.push(svg('circle', {class: 'value', cx: x(effect.value), cy: middle, r: labels ? 5 : 3.5}));
  return svg('svg', {class: 'effect', role: 'img', 'aria-label': label, width, height, viewBox: `0 0 ${width} ${height}`}, parts);
}

const anchor = (at, width) => (at < 60 ? 'start' : at > width - 60 ? 'end' : 'middle');

// Arms by seeds; `own` is the arm and seed of the run that is looked at.
function armsTable(claim, own) {
  const seeds = claim.seeds;
  const head = ['arm', ...seeds.map((seed) => `seed ${seed}`), 'mean', '95 % interval'];
  const decimals = decimalsFor(Object.values(claim.arms).flatMap((bySeed) => Object.values(bySeed)));
  const rows = Object.entries(claim.arms).map(([arm, bySeed]) => {
    const summary = claim.summary[arm] || {};
    return h('tr', null, h('th', {scope: 'row'}, arm),
      seeds.map((seed) => h('td', {class: own && own.arm === arm && String(own.seed) === seed ? 'n own' : 'n'}, fixed(bySeed[seed], decimals))),
      h('td', {class: 'n strong'}, fixed(summary.mean, decimals)), h('td', {class: 'n'}, `[${fixed(summary.low, decimals)}, ${fixed(summary.high, decimals)}]`));
  });
  return h('div', {class: 'scroll'}, h('table', null, h('caption', null, `${claim.metric} by arm and seed`),
    h('thead', null, h('tr', null, head.map((name, index) => h('th', {scope: 'col', class: index ? 'n' : null}, name)))), h('tbody', null, rows)));
}

function claimView(claim, own) {
  const judged = claim.effect && isNumber(claim.effect.value);
  return h('div', {class: 'claim'},
    h('p', {class: 'statement'}, verdictBadge(claim.verdict), claim.statement || h('em', null, 'The statement is in the recipe.')),
    judged ? h('div', {class: 'effects'}, effectPicture(claim.effect, 420, 70, true),
      h('p', null, 'effect ', h('b', null, signed(number(claim.effect.value))), ` with 95 % interval ${interval(claim.effect.low, claim.effect.high)}`)) : null,
    claim.reason ? h('p', {class: 'reason'}, claim.reason) : null,
    claim.arms && Object.keys(claim.arms).length ? armsTable(claim, own) : null);
}
