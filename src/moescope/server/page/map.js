// Rows (layers, or a circuit's neurons) by tokens, drawn as tokens come. What it shows stands as text in the table of the chosen token.
import {css, el} from "./dom.js";

const WIDE = [10, 22], TALL = [9, 20];  // least and most pixels of a token, and of a row

export class Grid {
  constructor({title, names, columns, room, letters, cell, pick}) {
    Object.assign(this, {rows: names.length, columns, cell});
    this.tall = Math.max(TALL[0], Math.min(TALL[1], Math.floor(360 / this.rows)));
    this.wide = Math.max(WIDE[0], Math.min(WIDE[1], Math.floor((room - 130) / columns)));
    this.lettered = this.tall >= 15 && this.wide >= 4 + 6 * letters;
    this.canvas = el("canvas", {role: "img", "aria-label": `${title}; the chosen token's values stand in the table below`});
    this.cursor = el("div", {class: "cursor", hidden: true, css: {"--wide": `${this.wide}px`}});
    this.over = el("div", {class: "over", tabindex: "0", role: "group", "aria-label": title}, this.canvas, this.cursor);
    const every = this.tall < 11 ? 4 : 1;
    const left = el("div", {class: "names", "aria-hidden": "true"}, ...names.map((n, r) => el("div", {css: {"--tall": `${this.tall}px`}}, r % every ? "" : n)));
    this.box = el("div", null, el("h4", null, title), el("div", {class: "map"}, left, this.over));
    this.canvas.addEventListener("click", event => {
      const box = this.canvas.getBoundingClientRect();
      pick(Math.floor((event.clientX - box.left) / this.wide), Math.floor((event.clientY - box.top) / this.tall));
    });
    this.size();
  }
  size() {
    const width = this.columns * this.wide, tall = this.rows * this.tall;
    const scale = Math.min(window.devicePixelRatio || 1, 2, 16000 / width);
    this.canvas.width = Math.round(width * scale); this.canvas.height = Math.round(tall * scale);
    this.canvas.style.width = `${width}px`; this.canvas.style.height = `${tall}px`;
    this.pen = this.canvas.getContext("2d");
    this.pen.setTransform(this.canvas.width / width, 0, 0, this.canvas.height / tall, 0, 0);
    this.pen.font = `${this.tall - 7}px ui-monospace, monospace`;
    this.pen.textAlign = "center"; this.pen.textBaseline = "middle";
    [this.sat, this.light, this.ink] = ["--sat", "--light", "--ink"].map(css);
  }
  paint(i) {
    for (let r = 0; r < this.rows; r++) {
      const said = this.cell(i, r);
      if (!said) continue;
      const x = i * this.wide, y = r * this.tall;
      this.pen.clearRect(x, y, this.wide, this.tall);
      this.pen.globalAlpha = said.much;
      this.pen.fillStyle = `hsl(${said.hue} ${this.sat} ${this.light})`;
      this.pen.fillRect(x + .5, y + .5, this.wide - 1, this.tall - 1);
      this.pen.globalAlpha = 1;
      if (!this.lettered) continue;
      this.pen.fillStyle = this.ink;
      this.pen.fillText(said.label, x + this.wide / 2, y + this.tall / 2);
    }
  }
  add(i, follow) { this.paint(i); if (follow) this.over.scrollLeft = Math.max(0, (i + 1) * this.wide - this.over.clientWidth); }
  again(end) { this.size(); for (let i = 0; i < end; i++) this.paint(i); }
  mark(i) {
    this.cursor.hidden = i === null;
    if (i === null) return;
    const {scrollLeft, clientWidth} = this.over, x = i * this.wide;
    this.cursor.style.setProperty("--left", `${x}px`);
    if (x < scrollLeft || x + this.wide > scrollLeft + clientWidth) this.over.scrollLeft = x - clientWidth / 2;
  }
}
