// What the runs are: results before and after, claim, config, pictures.

function runHead(run) {
  const steps = `${run.steps.split('/').map((part) => (part === '-' ? '0' : number(Number(part)))).join(' of ')} steps`;
  const told = [run.recipe && `${run.recipe}, seed ${run.seed}`, run.status, steps,
    run.seconds ? `${duration(run.seconds)} in steps and evaluations` : null, run.began ? `began ${date(run.began)}` : null];
  return h('div', {class: 'about'},
    h('i', {class: 'key', style: {background: colour(run.index)}}), h('b', null, run.label), ' ',
    h('span', null, told.filter(Boolean).join(' · ')), run.tags.map((tag) => h('span', {class: 'tag'}, tag)));
}

const RESULT_NAME = /^(heldout|evaluation|final)\//;

// Every result at its first and last measurement.
function outcomeTable(runs) {
  const having = runs.filter((run) => run.outcomes.length);
  if (!having.length) return null;
  const names = [...new Set(having.flatMap((run) => run.outcomes.map((one) => one.name)))];
  const several = having.length > 1;
  const rows = names.map((name) => h('tr', null, h('th', {scope: 'row', title: name}, name.replace(RESULT_NAME, '').replace(/_/g, ' ')),
    having.map((run) => outcomeCells(run.outcomes.find((one) => one.name === name)))));
  const first = several ? h('tr', null, h('td'), having.map((run) => h('th', {colspan: 5, scope: 'colgroup'}, h('i', {class: 'key', style: {background: colour(run.index)}}), run.label))) : null;
  const ends = having.map((run) => {
    const steps = [Math.min(...run.outcomes.map((one) => one.first.step)), Math.max(...run.outcomes.map((one) => one.last.step))];
    return [steps.map((step) => [h('th', {scope: 'col', class: 'n'}, `step ${number(step)}`), h('td')]), h('th', {scope: 'col', class: 'n'}, 'change')];
  });
  return h('div', {class: 'scroll'}, h('table', {class: 'outcomes'},
    h('thead', null, first, h('tr', null, h('th', {scope: 'col'}, 'result'), ends)), h('tbody', null, rows)));
}

function outcomeCells(outcome) {
  if (!outcome) return h('td', {class: 'n faint', colspan: 5}, 'not measured');
  const {first, last, share} = outcome;
  const decimals = decimalsFor([first.value, last.value]);
  const show = (value) => (share ? percent(value) : fixed(value, decimals));
  const cells = (one) => [h('td', {class: 'n'}, show(one.value)),
    h('td', {class: 'ends'}, isNumber(one.low) && isNumber(one.high) ? `${show(one.low)} to ${show(one.high)}` : null)];
  if (first.step === last.step) return [cells(first), h('td', {class: 'n faint', colspan: 3}, 'measured once')];
  const change = last.value - first.value;
  return [cells(first), cells(last), h('td', {class: 'n'}, signed(share ? `${fixed(100 * change, 1)} points` : fixed(change, decimals)))];
}

function buildOverview(panel, runs, made) {
  fill(panel, null, [runs.map(runHead)]);
  const seen = new Set();
  for (const run of runs.filter((one) => one.claim)) {
    const key = `${run.claim.slug}/${run.claim.name}`;
    if (seen.has(key)) continue;
    seen.add(key);
    panel.append(heading(`Claim of ${run.claim.slug}: ${run.claim.name}`));
    if (run.claim.arms) panel.append(claimView(run.claim, runs.length === 1 ? run.claim : null));
    else panel.append(h('p', null, verdictBadge(run.claim.verdict), ` Arm ${run.claim.arm}, seed ${run.claim.seed}; there is no result in ${run.claim.file}.`));
  }
  const results = outcomeTable(runs);
  const names = metricNames(runs).filter((name) => runs.some((run) => run.headlines.includes(name)));
  const view = new View();
  const options = {axis: 'step', log: false, smooth: 1, height: 150};
  const charts = h('div', {class: 'charts small'}, names.map((name) => metricChart(view, runs, name, options)));
  const told = h('small', null, 'ranges are 95 % intervals over problems or episodes, not over seeds');
  fill(panel, null, [h('div', {class: runs.length > 1 ? null : 'beside'},
    results && h('div', null, heading('Before and after'), results, told),
    names.length ? h('div', null, heading('Curves'), charts) : null)]);
  const left = runs.flatMap((run) => run.notes.map((note) => (runs.length > 1 ? `${run.label}: ${note}` : note)));
  fill(panel, null, [remarks(left), h('p', {class: 'made'}, `Made with zerozoo ${made.version}, ${date(made.time)}. Everything is in this file.`)]);
}

// Fields by runs; rows in which runs differ are marked.
function valueTable(runs, part) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run[part])))];
  const rows = names.map((name) => {
    const values = runs.map((run) => run[part][name]);
    const differs = values.some((value) => value !== values[0]);
    const element = h('tr', {class: differs ? 'differs' : null}, h('th', {scope: 'row'}, name),
      values.map((value) => h('td', null, value === undefined ? h('span', {class: 'faint'}, 'absent') : value === '' ? '""' : h('bdi', null, value))));
    return {name, differs, element, text: `${name} ${values.join(' ')}`.toLowerCase()};
  });
  const head = h('tr', null, h('th', {scope: 'col'}, 'field'), runs.map((run) => h('th', {scope: 'col'}, h('i', {class: 'key', style: {background: colour(run.index)}}), run.label)));
  return {rows, element: h('div', {class: 'scroll'}, h('table', {class: 'config'}, h('thead', null, head), h('tbody', null, rows.map((row) => row.element))))};
}

function buildConfig(panel, runs) {
  const parts = [['Config', 'config'], ['Made with', 'versions']].map(([title, part]) => ({title, ...valueTable(runs, part)}));
  const search = h('input', {type: 'search', placeholder: 'Find a field', 'aria-label': 'Find a field', oninput: () => filter()});
  const only = h('input', {type: 'checkbox', onchange: () => filter()});
  function filter() {
    for (const row of parts.flatMap((part) => part.rows)) {
      row.element.hidden = (only.checked && !row.differs) || !row.text.includes(search.value.toLowerCase());
    }
  }
  const differing = parts.map((part) => part.rows.filter((row) => row.differs).length);
  panel.append(h('div', {class: 'bar'}, search, runs.length > 1 ? h('label', null, only, ` only what differs (${differing[0]} of the config)`) : ''));
  for (const part of parts) panel.append(heading(part.title), part.element);
}

// Figures of the pictures that `wanted` takes.
function pictures(run, wanted) {
  return run.pictures.filter(wanted).map((picture) => h('figure', {class: 'card picture'},
    h('figcaption', null, `${run.label}: ${picture.name}`),
    h('img', {alt: picture.name, src: document.getElementById(picture.block).textContent})));
}

function buildPictures(panel, runs) {
  panel.append(h('div', {class: 'pictures'}, runs.flatMap((run) => pictures(run, () => true))));
}
