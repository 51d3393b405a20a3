// A list of any length of which only the rows in sight are elements. Arrows, Page Up and Down, Home and End move in it.

class VirtualList {
  // label: what the list is of. rowHeight in pixels. draw(item, row element): fills an element for one item of `items`.
  // choose(item): is told what was selected.
  constructor({label, rowHeight, draw, choose}) {
    Object.assign(this, {rowHeight, draw, choose});
    this.items = [];
    this.selected = -1;
    this.id = `list-${VirtualList.made++}`;
    this.space = h('div', {class: 'space', role: 'presentation'});
    this.element = h('div', {
      class: 'list', role: 'listbox', tabindex: 0, 'aria-label': label,
      onkeydown: (event) => this.key(event),
      onclick: (event) => this.click(event),
    }, this.space);
    this.element.addEventListener('scroll', () => this.later(), {passive: true});
    new ResizeObserver(() => this.later()).observe(this.element);
  }

  // items: an array of row numbers; the row that was selected stays selected if it is still there.
  show(items) {
    const before = this.selected >= 0 ? this.items[this.selected] : null;
    this.items = items;
    this.space.style.height = `${items.length * this.rowHeight}px`;
    const at = before === null ? -1 : items.indexOf(before);
    this.selected = at >= 0 ? at : items.length ? 0 : -1;
    if (at < 0) this.element.scrollTop = 0;
    else this.reveal();
    this.render();
    this.choose(this.selected < 0 ? null : items[this.selected]);
  }

  select(place) {
    if (!this.items.length) return;
    this.selected = Math.max(0, Math.min(this.items.length - 1, place));
    this.reveal();
    this.render();
    this.choose(this.items[this.selected]);
  }

  reveal() {
    const top = this.selected * this.rowHeight;
    const {scrollTop, clientHeight} = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight) this.element.scrollTop = top + this.rowHeight - clientHeight;
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.render();
    });
  }

  render() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.rowHeight) - 4);
    const last = Math.min(this.items.length, first + Math.ceil((this.element.clientHeight || 600) / this.rowHeight) + 8);
    const rows = [];
    for (let place = first; place < last; place++) {
      const row = h('div', {
        class: 'row', role: 'option', id: `${this.id}-${place}`, 'data-place': place,
        'aria-selected': String(place === this.selected), 'aria-setsize': this.items.length, 'aria-posinset': place + 1,
        style: {top: `${place * this.rowHeight}px`, height: `${this.rowHeight}px`},
      });
      this.draw(this.items[place], row);
      rows.push(row);
    }
    this.space.replaceChildren(...rows);
    if (this.selected >= 0) this.element.setAttribute('aria-activedescendant', `${this.id}-${this.selected}`);
    else this.element.removeAttribute('aria-activedescendant');
  }

  click(event) {
    const row = event.target.closest('.row');
    if (row) this.select(Number(row.dataset.place));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    const moves = {ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity};
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.select(this.selected + moves[event.key]);
  }
}

VirtualList.made = 0;
