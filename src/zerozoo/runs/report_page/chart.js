// Line charts in SVG: zoom by dragging, hover with the values of every run, keyboard, linear and logarithmic.

const MARGIN = {left: 58, right: 14, top: 10, bottom: 26};

// About `most` round numbers between low and high.
function ticks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + 1e-9 * step; index++) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

// Powers of ten between low and high, or round numbers where there are fewer than two.
function logTicks(low, high) {
  const found = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * (1 + 1e-9); power++) found.push(10 ** power);
  return found.length > 1 ? found : ticks(low, high, 4).filter((value) => value > 0);
}

// Mean of `width` values around each; at the ends of those that there are.
function movingAverage(values, width) {
  const half = Math.floor(width / 2);
  let sum = 0;
  let from = 0;
  let to = 0;
  return values.map((_, index) => {
    while (to < Math.min(values.length, index + half + 1)) sum += values[to++];
    while (from < index - half) sum -= values[from++];
    return sum / (to - from);
  });
}

// The first place at which xs, in order, is at least x.
function lowerBound(xs, x) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearest(xs, x) {
  const at = lowerBound(xs, x);
  return at > 0 && (at === xs.length || x - xs[at - 1] <= xs[at] - x) ? at - 1 : at;
}

// What the charts of one page share: the part of the x-axis that is shown, and where the pointer is.
class View {
  constructor() {
    this.range = null;
    this.at = null;
    this.charts = [];
  }

  zoom(range) {
    this.range = range;
    for (const chart of this.charts) chart.draw();
  }

  point(x) {
    this.at = x;
    for (const chart of this.charts) chart.drawCursor();
  }
}

class Chart {
  // lines: [{label, colour, dash, wide, xs, ys, lows, highs, scatter, single}], xs in order; a scatter is many points without a line,
  // single ones have their interval as a bar.
  // options: {title, xTitle, share, log, smooth, height}
  constructor(view, lines, options) {
    Object.assign(this, {view, lines, options});
    this.width = 600;
    this.height = options.height || 220;
    this.clip = `clip-${Chart.made++}`;
    this.picture = svg('svg', {
      class: 'chart', role: 'img', tabindex: 0, 'aria-label': this.describe(), height: this.height,
      onkeydown: (event) => this.key(event),
      onpointermove: (event) => this.move(event),
      onpointerdown: (event) => this.press(event),
      onpointerup: (event) => this.release(event),
      onpointerleave: () => this.leave(),
      ondblclick: () => view.zoom(null),
    });
    this.tip = h('div', {class: 'tip', role: 'status', hidden: true});
    this.element = h('div', {class: 'plot'}, this.picture, this.tip);
    view.charts.push(this);
    new ResizeObserver(() => {
      const width = Math.round(this.element.clientWidth);
      if (width && width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(this.element);
    this.draw();
  }

  format(value) {
    return this.options.share ? percent(value) : number(value, 4);
  }

  describe() {
    const told = this.lines.filter((line) => line.ys.length && !line.scatter).map((line) => {
      const [first, last] = [line.ys[0], line.ys[line.ys.length - 1]];
      return `${line.label}: from ${this.format(first)} to ${this.format(last)}`;
    });
    return `${this.options.title} over ${this.options.xTitle}. ${told.join('; ')}. Arrows move along the curve, plus and minus zoom.`;
  }

  whole() {
    const lows = this.lines.filter((line) => line.xs.length).map((line) => line.xs[0]);
    const highs = this.lines.filter((line) => line.xs.length).map((line) => line.xs[line.xs.length - 1]);
    if (!lows.length) return [0, 1];
    const [low, high] = [Math.min(...lows), Math.max(...highs)];
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  }

  scaleX(x) {
    const {left, right} = MARGIN;
    return left + (x - this.x[0]) / (this.x[1] - this.x[0]) * (this.width - left - right);
  }

  unscaleX(pixel) {
    const {left, right} = MARGIN;
    return this.x[0] + (pixel - left) / (this.width - left - right) * (this.x[1] - this.x[0]);
  }

  scaleY(y) {
    const place = this.log ? Math.log(y / this.y[0]) / Math.log(this.y[1] / this.y[0]) : (y - this.y[0]) / (this.y[1] - this.y[0]);
    return this.height - MARGIN.bottom - place * (this.height - MARGIN.top - MARGIN.bottom);
  }

  // The places of the points in sight, and one more on each side, so that lines go on to the edge.
  visible(line) {
    const first = Math.max(0, lowerBound(line.xs, this.x[0]) - 1);
    let last = lowerBound(line.xs, this.x[1]);
    while (last < line.xs.length && line.xs[last] <= this.x[1]) last++;
    return [first, Math.min(line.xs.length, last + 1)];
  }

  // The logarithm needs values above 0; where a metric has none the axis stays linear, and says so.
  fit() {
    this.x = this.view.range || this.whole();
    let low = Infinity;
    let high = -Infinity;
    let above = Infinity;
    for (const line of this.lines) {
      const [first, last] = this.visible(line);
      for (let place = first; place < last; place++) {
        if (line.xs[place] < this.x[0] || line.xs[place] > this.x[1]) continue;
        for (const values of [line.ys, line.lows, line.highs]) {
          const value = values ? values[place] : null;
          if (!isNumber(value)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
          if (value > 0) above = Math.min(above, value);
        }
      }
    }
    if (low > high) [low, high] = [0, 1];
    this.log = Boolean(this.options.log) && above < Infinity;
    if (this.log) {
      this.y = above < high ? [above / 1.15, high * 1.15] : [above / 2, high * 2];
      return;
    }
    if (this.options.share && low >= 0 && high <= 1) {
      this.y = [0, Math.min(1, Math.max(1.1 * high, 0.02))];
      return;
    }
    const room = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
    this.y = [low >= 0 && low - room < 0.3 * high ? 0 : low - room, high + room];
  }

  draw() {
    this.fit();
    const {left, right, bottom, top} = MARGIN;
    const parts = [svg('clipPath', {id: this.clip}, svg('rect', {
      x: left - 6, y: top - 4, width: Math.max(0, this.width - left - right + 12), height: this.height - top - bottom + 8,
    }))];
    for (const value of this.log ? logTicks(...this.y) : ticks(...this.y, 4)) {
      const y = this.scaleY(value);
      parts.push(svg('line', {class: 'grid', x1: left, x2: this.width - right, y1: y, y2: y}));
      const text = this.options.share ? percent(value, value * 100 % 1 ? 1 : 0) : number(value);
      parts.push(svg('text', {class: 'tick', x: left - 8, y: y + 4, 'text-anchor': 'end'}, text));
    }
    for (const value of ticks(...this.x, Math.max(3, Math.floor(this.width / 110)))) {
      const x = this.scaleX(value);
      const last = x > this.width - 30;
      parts.push(svg('text', {class: 'tick', x: last ? this.width : x, y: this.height - 8, 'text-anchor': last ? 'end' : 'middle'}, number(value, 6)));
    }
    const curves = svg('g', {'clip-path': `url(#${this.clip})`});
    for (const line of this.lines) curves.append(...this.drawLine(line));
    this.cursor = svg('g', {class: 'cursor'});
    this.marked = svg('rect', {class: 'marked', y: top, height: this.height - top - bottom, width: 0});
    this.picture.setAttribute('width', this.width);
    this.picture.replaceChildren(...parts, curves, this.marked, this.cursor);
    this.drawCursor();
  }

  path(line, values, first, last) {
    let text = '';
    for (let place = first; place < last; place++) {
      const value = values[place];
      const gap = !isNumber(value) || (this.log && value <= 0);
      if (gap) continue;
      text += `${text ? 'L' : 'M'}${this.scaleX(line.xs[place]).toFixed(1)} ${this.scaleY(value).toFixed(1)}`;
    }
    return text;
  }

  drawLine(line) {
    const [first, last] = this.visible(line);
    if (line.scatter) return this.dots(line, first, last, 2, 'scatter');
    if (line.single) return [...this.bars(line, first, last), ...this.dots(line, first, last, 3.5, 'dot')];
    const look = {stroke: line.colour, 'stroke-dasharray': line.dash || null, fill: 'none'};
    const parts = [];
    if (line.lows && line.highs) {
      const over = this.path(line, line.highs, first, last);
      const under = this.path({xs: line.xs.slice(first, last).reverse()}, line.lows.slice(first, last).reverse(), 0, last - first);
      if (over && under) parts.push(svg('path', {class: 'band', d: `${over}L${under.slice(1)}Z`, fill: line.colour}));
    }
    const smooth = this.options.smooth > 1 && line.ys.length > this.options.smooth;
    parts.push(svg('path', {class: smooth ? 'raw' : line.wide ? 'line wide' : 'line', d: this.path(line, line.ys, first, last), ...look}));
    if (smooth) {
      const means = movingAverage(line.ys, this.options.smooth);
      parts.push(svg('path', {class: 'line', d: this.path(line, means, first, last), ...look}));
    }
    if (last - first <= 60 && !line.wide) parts.push(...this.dots(line, first, last, 2.4, 'dot'));
    return parts;
  }

  bars(line, first, last) {
    const parts = [];
    for (let place = first; place < last && line.lows; place++) {
      const ends = [line.lows[place], line.highs[place]];
      if (!ends.every((end) => isNumber(end) && !(this.log && end <= 0))) continue;
      const x = this.scaleX(line.xs[place]);
      parts.push(svg('line', {class: 'bar-line', x1: x, x2: x, y1: this.scaleY(ends[0]), y2: this.scaleY(ends[1]), stroke: line.colour}));
    }
    return parts;
  }

  dots(line, first, last, r, kind) {
    const parts = [];
    for (let place = first; place < last; place++) {
      if (!isNumber(line.ys[place]) || (this.log && line.ys[place] <= 0)) continue;
      parts.push(svg('circle', {class: kind, r, cx: this.scaleX(line.xs[place]), cy: this.scaleY(line.ys[place]), fill: line.colour}));
    }
    return parts;
  }

  drawCursor() {
    const at = this.view.at;
    if (at === null || at < this.x[0] || at > this.x[1]) {
      this.cursor.replaceChildren();
      this.tip.hidden = true;
      return;
    }
    const x = this.scaleX(at);
    const parts = [svg('line', {x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom})];
    const rows = [];
    for (const line of this.lines) {
      const place = nearest(line.xs, at);
      if (line.scatter || place >= line.xs.length || !isNumber(line.ys[place])) continue;
      const shown = !this.log || line.ys[place] > 0;
      if (shown) parts.push(svg('circle', {r: 3.6, cx: this.scaleX(line.xs[place]), cy: this.scaleY(line.ys[place]), fill: line.colour}));
      const interval = line.lows && line.highs ? ` [${this.format(line.lows[place])}, ${this.format(line.highs[place])}]` : '';
      const where = line.xs[place] === at ? '' : ` at ${number(line.xs[place], 6)}`;
      rows.push(h('div', null, h('i', {class: 'key', style: {background: line.colour}}),
        this.lines.length > 1 ? `${line.label}: ` : '', h('b', null, this.format(line.ys[place])), interval, h('small', null, where)));
    }
    this.cursor.replaceChildren(...parts);
    this.tip.hidden = this.view.chart !== this;
    if (this.tip.hidden) return;
    this.tip.replaceChildren(h('div', {class: 'where'}, `${this.options.xTitle} ${number(at, 6)}`), ...rows);
    this.tip.classList.toggle('left', x > this.width / 2);
    this.tip.style.setProperty('--x', `${x > this.width / 2 ? this.width - x + 12 : x + 12}px`);
  }

  // The x of the point that is nearest to the pointer.
  snapped(event) {
    const pixel = event.clientX - this.picture.getBoundingClientRect().left;
    const x = this.unscaleX(Math.max(MARGIN.left, Math.min(this.width - MARGIN.right, pixel)));
    const candidates = this.lines.filter((line) => line.xs.length).map((line) => line.xs[nearest(line.xs, x)]);
    if (!candidates.length) return x;
    return candidates.reduce((best, one) => (Math.abs(one - x) < Math.abs(best - x) ? one : best));
  }

  move(event) {
    this.view.chart = this;
    if (this.pressed !== undefined) {
      const [from, to] = this.dragged(event);
      this.marked.setAttribute('x', from);
      this.marked.setAttribute('width', to - from);
    }
    this.view.point(this.snapped(event));
  }

  dragged(event) {
    const limit = (pixel) => Math.max(MARGIN.left, Math.min(this.width - MARGIN.right, pixel));
    const here = limit(event.clientX - this.picture.getBoundingClientRect().left);
    return [Math.min(limit(this.pressed), here), Math.max(limit(this.pressed), here)];
  }

  press(event) {
    if (event.button !== 0) return;
    this.pressed = event.clientX - this.picture.getBoundingClientRect().left;
    this.picture.setPointerCapture(event.pointerId);
  }

  release(event) {
    if (this.pressed === undefined) return;
    const [from, to] = this.dragged(event);
    this.pressed = undefined;
    this.marked.setAttribute('width', 0);
    if (to - from > 8) this.view.zoom([this.unscaleX(from), this.unscaleX(to)]);
  }

  leave() {
    if (this.pressed === undefined) this.view.point(null);
  }

  key(event) {
    const [low, high] = this.x;
    const width = high - low;
    const [least, most] = this.whole();
    if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') {
      this.view.chart = this;
      this.step(event.key === 'ArrowRight' ? 1 : -1);
    } else if (event.key === '+' || event.key === '=') {
      const centre = this.view.at ?? (low + high) / 2;
      this.view.zoom([Math.max(least, centre - width / 4), Math.min(most, centre + width / 4)]);
    } else if (event.key === '-') {
      const range = [Math.max(least, low - width / 2), Math.min(most, high + width / 2)];
      this.view.zoom(range[0] <= least && range[1] >= most ? null : range);
    } else if (event.key === '0' || event.key === 'Escape') {
      this.view.zoom(null);
    } else return;
    event.preventDefault();
  }

  step(direction) {
    const xs = [...new Set(this.lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
    if (!xs.length) return;
    const at = this.view.at === null ? lowerBound(xs, this.x[0]) - direction : nearest(xs, this.view.at);
    this.view.point(xs[Math.max(0, Math.min(xs.length - 1, at + direction))]);
  }
}

Chart.made = 0;
