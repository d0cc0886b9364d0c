// One generation: its tokens as a strip, the map of what fired, the task it looks like, and what classifiers make of it.
import {el, failure, gone, verdictLine, visible} from "./dom.js";
import {expert, signed} from "./colours.js";
import {Grid} from "./map.js";
import {events, post} from "./net.js";

export class Run {
  constructor(side, title, {info, colour, choose, open}) {
    Object.assign(this, {side, info, colour, choose, open, tokens: [], spans: [], maps: [], at: null, over: false});
    this.pace = el("span");
    this.strip = el("div", {class: "tokens", role: "listbox", tabindex: "0", "aria-label": `Tokens, ${title}`});
    this.strip.addEventListener("keydown", event => this.key(event));
    [this.maps_, this.meter, this.ends] = [el("div"), el("div", {class: "meter", role: "group", "aria-label": `Task, ${title}`}), el("div", {"aria-live": "polite"})];
    this.box = el("section", {class: "run", "aria-label": title}, el("h3", null, title, this.pace), this.strip, this.meter, this.ends, this.maps_);
  }

  async write(body, signal) {
    const began = performance.now();
    this.body = body;
    try {
      for await (const [kind, data] of events(body, signal)) {
        if (kind === "done") {
          const why = {length: "as many tokens as asked for", end: "the model ended the text", stopped: "the server is stopping"}[data.reason];
          this.pace.textContent = `${data.new_tokens} tokens in ${data.seconds.toFixed(2)} s: ${why}`;
          continue;
        }
        if (kind === "prompt") this.begin(data);
        data.tokens.forEach(token => this.show(token, kind === "prompt"));
        if (kind === "token") this.pace.textContent = `${this.written.length} tokens, ${(this.written.length / ((performance.now() - began) / 1000)).toFixed(0)} a second`;
        if (data.task) this.named(data.task);
      }
      this.over = true;
    } catch (error) {
      if (signal.aborted) this.pace.textContent = `${this.written.length} tokens, stopped`;
      else this.ends.replaceChildren(failure(error));
      throw error;
    }
    await this.classify();
  }

  get written() { return this.tokens.filter(token => !token.given); }

  begin(data) {
    const columns = data.tokens.length + this.body.max_new_tokens, {experts, circuits} = this.info, room = this.box.clientWidth;
    const letters = experts ? String(Math.max(...experts.counts) - 1).length : 0;
    const pick = (i, row, of) => { this.choose(this, i); const said = of(this.tokens[this.at], row); if (said) this.open(said.at); };
    const map = (title, names, of) => this.maps.push(new Grid({title, names, columns, room, letters, cell: (i, r) => of(this.tokens[i], r), pick: (i, r) => pick(i, r, of)}));
    if (experts) map("Layers by tokens: the expert that weighs most", experts.layers.map(l => `layer ${l}`),
      (token, r) => token.experts.ids[r].length ? expert(experts.layers[r], token.experts.ids[r][0], token.experts.weights[r][0]) : null);
    for (const circuit of circuits) {
      let most = 4;
      map(`Circuit of ${circuit.task}, ${circuit.unit === "z" ? "z: blue above its mean, orange below" : "activation: blue above 0, orange below"}`,
        circuit.neurons.map((n, k) => `#${k + 1} ${n}`), (token, r) => {
          const value = token.circuits[circuit.task][r];
          if (circuit.unit !== "z") most = Math.max(most, Math.abs(value || 0));
          return {...signed(value, most), label: "", at: circuit.neurons[r]};
        });
    }
    this.maps_.replaceChildren(...this.maps.map(m => m.box));
    if (data.read > data.tokens.length) this.strip.before(el("p", {class: "soft small"}, `${data.read - data.tokens.length} tokens before these are not shown.`));
  }

  show(token, given) {
    token.given = given;
    const i = this.tokens.push(token) - 1;
    const span = el("span", {role: "option", id: `${this.side}-${i}`, class: given ? "tok given" : "tok", "aria-selected": "false"}, el("b", null, visible(token.text)), el("small"));
    span.addEventListener("click", () => { this.choose(this, i); });
    this.spans.push(span);
    const box = this.strip, below = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    box.append(span);
    if (token.text.endsWith("\n")) box.append(el("br"));
    this.paint(i);
    if (below) box.scrollTop = box.scrollHeight;
    this.maps.forEach(m => m.add(i, this.at === null));
  }

  paint(i) {
    const said = this.colour().of(this.tokens[i], this.tokens), span = this.spans[i];
    span.style.setProperty("--hue", said ? said.hue : 0);
    span.style.setProperty("--much", said ? said.much : 0);
    span.lastChild.textContent = said ? said.label : "";
  }

  repaint() { this.tokens.forEach((_, i) => this.paint(i)); }
  redraw() { this.maps.forEach(m => m.again(this.tokens.length)); }

  differs(i, other) { this.spans[i].classList.toggle("other", other); }

  mark(i, scroll) {
    if (this.at !== null) { this.spans[this.at].classList.remove("at"); this.spans[this.at].setAttribute("aria-selected", "false"); }
    this.at = i === null || !this.tokens.length ? null : Math.max(0, Math.min(this.tokens.length - 1, i));
    this.maps.forEach(m => m.mark(this.at));
    if (this.at === null) { this.strip.removeAttribute("aria-activedescendant"); return; }
    const span = this.spans[this.at], box = this.strip;
    span.classList.add("at"); span.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", span.id);
    const top = span.offsetTop - box.offsetTop;
    if (scroll && (top < box.scrollTop || top > box.scrollTop + box.clientHeight - 40)) box.scrollTop = top - box.clientHeight / 2;
  }

  key(event) {
    if (!this.tokens.length || event.ctrlKey || event.altKey || event.metaKey) return;
    const last = this.tokens.length - 1, at = this.at === null ? last : this.at;
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last}[event.key];
    if (to !== undefined) this.choose(this, to, true);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") this.colour(event.key === "ArrowUp" ? -1 : 1);
    else if (event.key === "Enter") { const said = this.colour().of(this.tokens[at], this.tokens); if (said && said.at) this.open(said.at, true); }
    else return;
    event.preventDefault();
  }

  named({task, nearest, p, chances}) {  // a bar for each task, grey where the text is too strange for it
    const {tasks, unknown} = this.info.router;
    const rows = tasks.map((name, t) => {
      const off = chances[t] <= unknown, mine = name === task;
      return el("div", {class: mine ? "named" : off ? "off" : null}, el("span", null, name), el("i", {css: {"--share": chances[t]}}), el("span", null, `p ${chances[t].toFixed(3)}`));
    });
    rows.push(el("div", {class: task ? "off" : "named"}, el("span", null, "unknown"), el("span", {class: "soft"}, task ? "" : `nearest ${nearest}`), el("span", null, task ? "–" : `p ${p.toFixed(3)}`)));
    this.meter.replaceChildren(el("h4", null, `Looks like, so far (grey: at most ${unknown}, so not of that task)`), ...rows);
  }

  async classify() {  // what was written, as each classifier reads its texts, and how deep it goes for it
    const prompt = this.body.prompt, said = this.written.map(token => token.text).join("");
    if (!said.trim() || !this.info.classifiers.length) return;
    const found = await Promise.all(this.info.classifiers.map(async made => {
      const {task, fields, path} = made;
      if (fields && fields.length > 2) return null;
      const rows = fields && [fields.length === 1 ? {[fields[0]]: prompt + said} : {[fields[0]]: prompt, [fields[1]]: said}];
      const how = fields && fields.length === 2 ? `${task} reads the prompt as its ${fields[0]} and what was written as its ${fields[1]}` : `${task} reads both together`;
      try {
        const answer = await (rows ? post(path, {rows}) : post("v1/classify", {texts: [prompt + said], task})).then(a => a.json());
        const {results, recommendation} = rows ? answer : answer.answers[0];
        return [verdictLine(task, results[0], recommendation), how];
      } catch (error) { return [el("p", {class: "soft small"}, `${task}: ${gone(error)}`), ""]; }
    }));
    const shown = found.filter(Boolean);
    this.ends.replaceChildren(el("h4", null, "What classifiers take it for, and the layers that they need"), ...shown.map(([line]) => line),
      el("p", {class: "soft small"}, shown.map(([, how]) => how).filter(Boolean).join("; ")));
  }
}
