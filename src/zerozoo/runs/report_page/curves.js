// Curves: any metrics of any runs over one another.

// Every metric of the runs, ends of intervals apart: they are drawn as bands.
function metricNames(runs) {
  const names = new Set(runs.flatMap((run) => Object.keys(run.metrics.series)));
  const ends = new Set(runs.flatMap((run) => Object.values(run.intervals).flat()));
  return [...names].filter((name) => !ends.has(name));
}

// One metric of one run as a line of a chart, over steps or seconds; null if it was not logged.
function metricLine(run, name, axis) {
  const found = run.metrics.series[name];
  if (!found) return null;
  const over = run.metrics[axis];
  const rows = found.at || over.map((_, row) => row);
  const order = rows.map((_, place) => place).sort((a, b) => over[rows[a]] - over[rows[b]] || a - b);
  const line = {label: run.label, colour: colour(run.index), dash: run.index < 8 ? null : '5 3'};
  line.xs = order.map((place) => over[rows[place]]);
  line.ys = order.map((place) => found.values[place]);
  const ends = run.intervals[name];
  if (ends && ends.every((end) => run.metrics.series[end])) {
    const [lows, highs] = ends.map((end) => {
      const bound = run.metrics.series[end];
      const values = new Map(bound.values.map((value, place) => [bound.at ? bound.at[place] : place, value]));
      return order.map((place) => values.get(rows[place]) ?? null);
    });
    Object.assign(line, {lows, highs});
  }
  // A line between the first and the last step would say something about the steps in between.
  line.single = line.xs.length <= 2 && over.length > 10;
  return line;
}

function metricChart(view, runs, name, options) {
  const lines = runs.map((run) => metricLine(run, name, options.axis)).filter(Boolean);
  const xTitle = options.axis === 'step' ? 'step' : 'seconds';
  const share = runs.some((run) => run.shares.includes(name)) && lines.every((line) => line.ys.every((value) => value >= 0 && value <= 1));
  const chart = new Chart(view, lines, {...options, title: name, xTitle, share});
  const note = options.log && !chart.log ? h('small', null, 'no values above 0: linear') : null;
  return h('figure', {class: 'card'}, h('figcaption', null, name, note), chart.element);
}

function grouped(names) {
  const groups = new Map();
  for (const name of names) {
    const group = name.includes('/') ? name.split('/')[0] : 'training';
    groups.set(group, [...(groups.get(group) || []), name]);
  }
  return groups;
}

function buildCurves(panel, runs, shownRuns) {
  const names = metricNames(runs);
  if (!names.length) {
    panel.append(h('p', {class: 'lonely'}, 'No metrics have been logged yet.'));
    return () => {};
  }
  const state = {chosen: new Set(runs.flatMap((run) => run.headlines)), axis: 'step', log: false, smooth: 1};
  const charts = h('div', {class: 'charts'});
  const reset = h('button', {type: 'button', class: 'quiet', onclick: () => view.zoom(null)}, 'Whole range');
  let view = new View();

  function redraw() {
    const range = view.range;
    view = new View();
    view.range = range;
    const wanted = names.filter((name) => state.chosen.has(name));
    charts.replaceChildren(...wanted.map((name) => metricChart(view, shownRuns(), name, state)));
    if (!wanted.length) charts.replaceChildren(h('p', {class: 'lonely'}, 'Choose a metric on the left.'));
  }

  const boxes = names.map((name) => {
    const box = h('input', {type: 'checkbox', checked: state.chosen.has(name), onchange: () => {
      if (box.checked) state.chosen.add(name);
      else state.chosen.delete(name);
      redraw();
    }});
    return {name, row: h('label', {class: 'choice'}, box, h('span', null, name.includes('/') ? name.slice(name.indexOf('/') + 1) : name))};
  });
  const sections = [...grouped(names)].map(([group, members]) => h('fieldset', null, h('legend', null, group),
    boxes.filter((box) => members.includes(box.name)).map((box) => box.row)));
  const search = h('input', {type: 'search', placeholder: 'Find a metric', 'aria-label': 'Find a metric', oninput: () => {
    const wanted = search.value.toLowerCase();
    for (const {name, row} of boxes) row.hidden = !name.toLowerCase().includes(wanted);
    for (const section of sections) section.hidden = ![...section.querySelectorAll('label')].some((row) => !row.hidden);
  }});
  const choose = (label, values, pick) => h('label', null, `${label} `, h('select', {onchange: (event) => {
    pick(event.target.value);
    view.range = null;
    redraw();
  }}, values.map(([value, text]) => h('option', {value}, text))));
  const smooth = h('input', {type: 'range', min: 1, max: 31, step: 2, value: 1, 'aria-label': 'Mean of so many points', oninput: () => {
    state.smooth = Number(smooth.value);
    told.textContent = state.smooth > 1 ? `mean of ${state.smooth}` : 'as logged';
    redraw();
  }});
  const told = h('output', null, 'as logged');
  const bar = h('div', {class: 'bar'},
    choose('Over', [['step', 'steps'], ['seconds', 'seconds']], (value) => { state.axis = value; }),
    choose('Scale', [['', 'linear'], ['log', 'logarithmic']], (value) => { state.log = value === 'log'; }),
    h('label', {class: 'smooth'}, 'Smooth ', smooth, told),
    reset,
    h('small', null, 'Drag to zoom, double-click for the whole range.'));
  panel.append(h('div', {class: 'sided'},
    h('aside', {class: 'metrics', 'aria-label': 'Metrics'}, search, sections), h('div', {class: 'main'}, bar, charts)));
  redraw();
  return redraw;
}
