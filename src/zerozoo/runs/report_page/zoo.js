// The page of the zoo: one row for every recipe and planned system, with the verdict of its claim.

const STATES = ['HOLDS', 'FAILS', 'INCONCLUSIVE', 'not run', 'not written yet', 'no claim', 'unreadable'];
const COLUMNS = [
  {title: 'Family', key: (row) => row.family},
  {title: 'Recipe', key: (row) => row.slug},
  {title: 'Paper and claim', key: (row) => row.paper.toLowerCase()},
  {title: 'Verdict', key: (row) => STATES.indexOf(row.status)},
  {title: 'Effect', key: (row) => (row.claim && row.claim.effect ? row.claim.effect.value : null)},
  {title: 'Seeds', number: true, key: (row) => (row.claim && row.claim.seeds ? row.claim.seeds.length : null)},
  {title: 'Time', number: true, key: (row) => (row.claim ? row.claim.seconds ?? null : null)},
];

const links = (row) => [row.docs && h('a', {href: row.docs}, 'docs'), row.results && h('a', {href: row.results}, 'results')]
  .filter(Boolean).flatMap((link, index) => (index ? [' · ', link] : [link]));

// The paper with its number as a link.
function paperText(row) {
  const found = /(?:arXiv )?\b\d{4}\.\d{4,5}\b/.exec(row.paper);
  if (!found || !row.arxiv) return row.paper;
  const link = h('a', {href: row.arxiv, rel: 'noreferrer'}, found[0]);
  return [row.paper.slice(0, found.index), link, row.paper.slice(found.index + found[0].length)];
}

function effectCell(claim) {
  if (!claim || !claim.effect || !isNumber(claim.effect.value)) return h('td', {class: 'faint'}, MISSING);
  return h('td', {class: 'effect-cell', title: `${claim.metric}: ${claim.reason}`}, effectPicture(claim.effect, 130, 20, false),
    h('div', {class: 'numbers'}, effectText(claim.effect)), h('small', null, `threshold ${number(claim.effect.threshold)}`));
}

function claimCells(claim) {
  const seeds = claim && claim.seeds ? claim.seeds.length : null;
  return [effectCell(claim), h('td', {class: 'n'}, seeds === null ? MISSING : seeds), h('td', {class: 'n'}, claim ? duration(claim.seconds) : MISSING)];
}

function zooRow(row) {
  const statement = row.claim && row.claim.statement;
  const main = h('tr', {class: row.others.length ? 'parent' : null},
    h('td', {class: 'family'}, row.family.replace(/_/g, ' ')),
    h('th', {scope: 'row'}, row.slug, h('div', {class: 'links'}, links(row))),
    h('td', {class: 'about'}, h('div', {class: 'paper'}, paperText(row)), statement ? h('div', {class: 'statement'}, statement) : row.summary ? h('div', {class: 'statement faint'}, row.summary) : null),
    h('td', null, verdictBadge(row.status)), claimCells(row.claim));
  const others = row.others.map((claim) => h('tr', {class: 'other'}, h('td'), h('td', {class: 'faint'}, claim.name),
    h('td', {class: 'about'}, h('div', {class: 'statement'}, claim.statement)), h('td', null, verdictBadge(claim.verdict)), claimCells(claim)));
  const told = [row.slug, row.family, row.paper, statement, row.summary, ...row.others.map((claim) => claim.statement)];
  return {row, elements: [main, ...others], text: told.join(' ').toLowerCase()};
}

start((place, {rows, notes, made}) => {
  const state = {status: '', family: '', text: '', sort: null, falling: false};
  const entries = rows.map(zooRow);
  const body = h('tbody');
  const total = h('output', {class: 'total', 'aria-live': 'polite'});

  const chips = ['', ...STATES].map((status) => {
    const found = rows.filter((row) => !status || row.status === status).length;
    const button = h('button', {type: 'button', class: 'chip', onclick: () => {
      state.status = status;
      refresh();
    }}, `${status || 'All'} `, h('b', null, found));
    return {status, found, button};
  }).filter((chip) => chip.found || !chip.status);
  const family = h('select', {onchange: () => {
    state.family = family.value;
    refresh();
  }}, h('option', {value: ''}, 'all families'), [...new Set(rows.map((row) => row.family))].map((name) => h('option', {value: name}, name.replace(/_/g, ' '))));
  const search = h('input', {type: 'search', placeholder: 'Search recipes, papers, claims', 'aria-label': 'Search recipes, papers, claims', oninput: () => {
    state.text = search.value.toLowerCase();
    refresh();
  }});
  const heads = COLUMNS.map((column, index) => {
    const button = h('button', {type: 'button', class: 'sort', onclick: () => sortBy(index)}, column.title);
    return h('th', {scope: 'col', class: column.number ? 'n' : null}, button);
  });

  function sortBy(index) {
    state.falling = state.sort === index ? !state.falling : false;
    state.sort = index;
    heads.forEach((head, at) => {
      if (at === index) head.setAttribute('aria-sort', state.falling ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
    refresh();
  }

  // Rows without a value come last either way.
  function sorted(found) {
    if (state.sort === null) return found;
    const {key} = COLUMNS[state.sort];
    const missing = (entry) => key(entry.row) === null || key(entry.row) === undefined;
    const sign = state.falling ? -1 : 1;
    const order = (a, b) => (key(a.row) === key(b.row) ? 0 : key(a.row) < key(b.row) ? -sign : sign);
    return [...found.filter((one) => !missing(one)).sort(order), ...found.filter(missing)];
  }

  function refresh() {
    const found = entries.filter(({row, text}) => (!state.status || row.status === state.status)
      && (!state.family || row.family === state.family) && text.includes(state.text));
    body.replaceChildren(...sorted(found).flatMap((entry) => entry.elements));
    total.textContent = plural(found.length, 'row');
    for (const {status, button} of chips) button.setAttribute('aria-pressed', status === state.status);
  }

  const systems = rows.filter((row) => row.planned).length;
  const written = rows.filter((row) => row.planned && row.status !== 'not written yet').length;
  const intro = `${systems} systems from papers, ${written} of them written, and ${plural(rows.length - systems, 'further recipe')}. `
    + 'A verdict is what zerozoo reproduce has written into the results file; a row without one says why.';
  refresh();
  fill(place, null, [
    h('header', {class: 'top'}, h('h1', null, 'The zoo'), themeButton()),
    h('main', {class: 'zoo'}, h('p', {class: 'intro'}, intro),
      h('div', {class: 'bar chips', role: 'group', 'aria-label': 'Verdict'}, chips.map((chip) => chip.button)),
      h('div', {class: 'bar'}, search, h('label', null, 'Family ', family), total),
      h('div', {class: 'scroll'}, h('table', {class: 'zoo-table'}, h('thead', null, h('tr', null, heads)), body)),
      remarks(notes),
      h('p', {class: 'made'}, `Made with zerozoo ${made.version}, ${date(made.time)}.`)),
  ]);
});
