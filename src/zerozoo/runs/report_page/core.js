// What both pages share: elements, numbers, data, tabs. Text of models and files goes into the page as text nodes only;
// nothing here or elsewhere parses HTML, and the content policy would not run it.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else if (name === 'style') for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Puts children, which may be nested arrays with gaps, in place of those that a node has.
function refill(node, ...children) {
  node.replaceChildren();
  return fill(node, null, children);
}

function debounce(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

// The JSON of a data block. A packed block is base64 of gzip, so the file may hold any text and stays small.
async function unpack(id) {
  const block = document.getElementById(id);
  if (!block) throw new Error(`the file has no block ${id}: it may have been cut off`);
  if (block.dataset.packed !== 'gzip') return JSON.parse(block.textContent);
  if (typeof DecompressionStream === 'undefined') {
    throw new Error('this browser cannot unpack the data: make the page again with --plain, or use a newer browser');
  }
  const stream = new Blob([fromBase64(block.textContent)]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  return bytes;
}

// ---- numbers as people read them -----------------------------------------------------------------------------------

const MISSING = '–';

function isNumber(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

// 1234, 12.3, 0.0123, 1.2e-5
function number(value, digits = 3) {
  if (!isNumber(value)) return MISSING;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return minus(Math.abs(value) < 1e4 ? String(value) : count(value));
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return minus(value.toExponential(digits - 1));
  if (size >= 100) return minus(value.toFixed(size >= 1000 ? 0 : 1));
  return minus(String(Number(value.toPrecision(digits))));
}

// So many that the largest of some values that stand below one another has four digits.
function decimalsFor(values) {
  const size = Math.max(0, ...values.filter(isNumber).map(Math.abs));
  return size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.01 || !size ? 3 : 5;
}

// A column of numbers wants the same decimals in every row.
const fixed = (value, decimals) => (isNumber(value) ? minus(value.toFixed(decimals)) : MISSING);
const percent = (value, decimals = 1) => (isNumber(value) ? `${minus((100 * value).toFixed(decimals))} %` : MISSING);
const signed = (text) => (text.startsWith('−') || text === MISSING || /^0(\.0*)?( |$)/.test(text) ? text : `+${text}`);
const minus = (text) => text.replace(/^-/, '−').replace(/e-/, 'e−').replace(/e\+/, 'e');
const count = (value) => value.toLocaleString('en-US').replace(/,/g, '\u202f');
const plural = (value, word) => `${count(value)} ${word}${value === 1 ? '' : 's'}`;

function duration(seconds) {
  if (!isNumber(seconds)) return MISSING;
  const whole = Math.round(seconds);
  const two = (part) => String(part).padStart(2, '0');
  if (whole < 60) return seconds < 10 ? `${seconds.toFixed(1)} s` : `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

function date(seconds) {
  if (!isNumber(seconds)) return '';
  const options = {day: 'numeric', month: 'short', year: 'numeric', hour: '2-digit', minute: '2-digit', hour12: false};
  return new Date(1000 * seconds).toLocaleString('en-GB', options);
}

// ---- columns ---------------------------------------------------------------------------------------------------------

// Rows kept by columns, as report_data.py writes them.
class Table {
  constructor(data) {
    this.count = data.count;
    this.columns = data.columns;
    this.names = Object.keys(data.columns);
  }

  has(name) {
    return Object.hasOwn(this.columns, name);
  }

  // A function from a row's place to its value, or to null.
  reader(name) {
    if (!this.has(name)) return () => null;
    const {numbers, texts, choices, at} = this.columns[name];
    if (numbers) return (row) => numbers[row];
    if (texts) return (row) => texts[row];
    return (row) => (at[row] < 0 ? null : choices[at[row]]);
  }

  value(name, row) {
    return this.reader(name)(row);
  }

  choices(name) {
    return this.has(name) ? this.columns[name].choices || null : null;
  }
}

// ---- the frame of a page -----------------------------------------------------------------------------------------------

// A value of the style sheet, for parts that are drawn.
const colour = (index) => `var(--run-${index % 8})`;

function themeButton() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches);
  const button = h('button', {class: 'quiet', type: 'button', onclick: () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    name();
  }});
  const name = () => {
    button.textContent = dark() ? 'Light' : 'Dark';
    button.setAttribute('aria-label', `${dark() ? 'Light' : 'Dark'} colours`);
  };
  name();
  return button;
}

// Tabs whose panels are built when they are first looked at. `tabs` are {id, title, build}: build(panel) fills it.
function makeTabs(tabs) {
  const built = new Set();
  const buttons = tabs.map((tab) => h('button', {
    role: 'tab', type: 'button', id: `tab-${tab.id}`, 'aria-controls': `panel-${tab.id}`, onclick: () => show(tab.id),
  }, tab.title));
  const panels = tabs.map((tab) => h('section', {
    role: 'tabpanel', id: `panel-${tab.id}`, 'aria-labelledby': `tab-${tab.id}`, class: `panel ${tab.id}`,
  }));
  const list = h('div', {role: 'tablist', class: 'tabs', 'aria-label': 'Parts of the page'}, buttons);
  list.addEventListener('keydown', (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (!step) return;
    const next = (buttons.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    show(tabs[next].id);
    buttons[next].focus();
  });
  function show(id) {
    const at = Math.max(0, tabs.findIndex((tab) => tab.id === id));
    tabs.forEach((tab, index) => {
      buttons[index].setAttribute('aria-selected', index === at);
      buttons[index].tabIndex = index === at ? 0 : -1;
      panels[index].hidden = index !== at;
    });
    if (!built.has(at)) {
      built.add(at);
      tabs[at].build(panels[at]);
    }
    history.replaceState(null, '', `#${tabs[at].id}`);
  }
  return {list, panels, show};
}

function heading(title, ...beside) {
  return h('div', {class: 'heading'}, h('h2', null, title), ...beside);
}

// A list of sentences for what was left out; nothing if there are none.
function remarks(sentences) {
  if (!sentences.length) return null;
  return h('div', {class: 'remarks', role: 'note'},
    h('p', null, 'Left out or not as it should be'), h('ul', null, sentences.map((text) => h('li', null, text))));
}

// Shows what went wrong in place of a page that stays empty.
async function start(build) {
  const place = document.getElementById('page');
  try {
    const data = await unpack('data');
    place.replaceChildren();
    build(place, data);
    document.documentElement.dataset.ready = 'yes';
  } catch (error) {
    place.replaceChildren(h('p', {class: 'lonely', role: 'alert'}, `This page cannot be shown: ${error.message}`));
    throw error;
  }
}
