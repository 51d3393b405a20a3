// The page of runs.

start((place, {runs, made}) => {
  runs.forEach((run, index) => { run.index = index; });
  const hidden = new Set();
  const shownRuns = () => runs.filter((run) => !hidden.has(run.index));
  const redraws = [];
  const drawn = (build) => (panel) => redraws.push(build(panel, runs, shownRuns));

  const tabs = [
    {id: 'overview', title: 'Overview', build: (panel) => buildOverview(panel, runs, made)},
    {id: 'curves', title: 'Curves', build: drawn(buildCurves)},
  ];
  const samples = runs.reduce((sum, run) => sum + run.samples.count, 0);
  const episodes = runs.reduce((sum, run) => sum + run.episodes.count, 0);
  if (samples) tabs.push({id: 'samples', title: `Samples ${count(samples)}`, build: (panel) => buildSamples(panel, runs)});
  if (episodes) tabs.push({id: 'episodes', title: `Episodes ${count(episodes)}`, build: drawn(buildEpisodes)});
  tabs.push({id: 'config', title: 'Config', build: (panel) => buildConfig(panel, runs)});
  const drawings = runs.reduce((sum, run) => sum + run.pictures.length, 0);
  if (drawings) tabs.push({id: 'pictures', title: `Figures ${count(drawings)}`, build: (panel) => buildPictures(panel, runs)});

  const {list, panels, show} = makeTabs(tabs);
  const title = runs.length === 1 ? runs[0].label : plural(runs.length, 'run');
  place.append(
    h('header', {class: 'top'}, h('h1', null, title), list, runs.length > 1 ? runKeys(runs, hidden, () => redraws.forEach((redraw) => redraw())) : '', themeButton()),
    h('main', null, panels));
  show(location.hash.slice(1));
});

// The runs by colour; each can be taken out of the curves.
function runKeys(runs, hidden, redraw) {
  return h('div', {class: 'keys', role: 'group', 'aria-label': 'Runs in the curves'}, runs.map((run) => {
    const box = h('input', {type: 'checkbox', checked: true, onchange: () => {
      if (box.checked) hidden.delete(run.index);
      else hidden.add(run.index);
      redraw();
    }});
    return h('label', null, box, h('i', {class: 'key', style: {background: colour(run.index)}}), run.label);
  }));
}
