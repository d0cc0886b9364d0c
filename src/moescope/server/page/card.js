// The table of the chosen token, and the card of an expert or a neuron with what can be done to it.
import {$, el, percent, short} from "./dom.js";
import {add} from "./edits.js";
import {hueOf, signed} from "./colours.js";
import {getJson} from "./net.js";

const unit = (at, text, {hue, much}, open) => el("button", {type: "button", class: "unit", css: {"--hue": hue, "--much": much}, on: {click: () => open(at, true)}, "aria-label": `Card of ${at}: ${text}`}, text);

export function tell(run, info, open) {  // what fired at the chosen token
  const token = run.at === null ? null : run.tokens[run.at], parts = [], box = $("chosen");
  box.hidden = !token;
  if (!token) return;
  if (token.experts) {
    const body = info.experts.layers.map((layer, l) => el("tr", null, el("th", {scope: "row"}, `layer ${layer}`), el("td", null,
      ...token.experts.ids[l].map((e, k) => unit(`${layer}:${e}`, `${e} ${percent(token.experts.weights[l][k])}`, {hue: hueOf(e), much: .3 + .7 * token.experts.weights[l][k]}, open)))));
    parts.push(scroll("Experts of the token", el("table", null, el("thead", null, el("tr", null, el("th", null, "layer"), el("th", null, "experts and their weights"))), el("tbody", null, ...body))));
  }
  for (const circuit of token.circuits ? info.circuits : []) {
    const names = Object.keys(circuit.classes), values = token.circuits[circuit.task];
    const body = values.map((v, k) => el("tr", null, el("td", null, unit(circuit.neurons[k], `#${k + 1} ${circuit.neurons[k]}`, signed(v), open)),
      el("td", {class: "n"}, v === null ? "–" : v.toFixed(2)), ...names.map(n => el("td", {class: "n soft"}, circuit.classes[n][k].toFixed(2)))));
    parts.push(scroll(`Circuit of ${circuit.task}`, el("table", null, el("thead", null, el("tr", null, el("th", null, circuit.task), el("th", {class: "n"}, circuit.unit === "z" ? "z here" : "activation"),
      ...names.map(n => el("th", {class: "n"}, `mean of ${n}`)))), el("tbody", null, ...body))));
  }
  const odds = token.p === undefined ? [] : [el("p", {class: "small"}, `It had a probability of ${percent(token.p)}. Likeliest: `, ...token.likely.flatMap(([text, p]) => [el("code", null, JSON.stringify(text)), ` ${short(p)} `]))];
  box.replaceChildren(el("h3", {id: "chosen-head"}, "Token ", el("code", null, JSON.stringify(token.text)), el("span", {class: "soft small"}, ` number ${run.at}, id ${token.id}, ${token.given ? "of the prompt" : "written"}, ${run.side}`)), ...odds, ...parts);
}

const scroll = (name, table) => el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": name}, table);

export async function card(at, info, focus) {
  const box = $("card"), expert = /^\d+:\d+$/.test(at);
  let found = null, why = "";
  try { found = await getJson(`v1/card?at=${encodeURIComponent(at)}`); } catch (error) { why = info.cards ? error.message : "The server was started without cards."; }
  box.hidden = false;
  box.replaceChildren(el("h3", {id: "card-head"}, `${expert ? "Expert" : "Neuron"} ${at}`, found && found.label ? `: ${found.label}` : ""), acts(at, expert), ...(found ? body(found) : [el("p", {class: "soft"}, why)]));
  if (focus) box.focus();
}

function acts(at, expert) {
  const button = (name, does) => el("button", {type: "button", class: "plain small", on: {click: does}}, name);
  const by = (does, value, name) => {
    const input = el("input", {type: "number", step: "any", min: -100, max: 100, value});
    const go = () => { if (input.reportValidity() && input.value !== "") add({at, do: does, by: Number(input.value)}); };
    return el("span", {class: "acts"}, button(name, go), el("label", null, does === "boost" ? "by" : "×", input));
  };
  const plain = (name, does) => button(name, () => add({at, do: does}));
  return el("div", {class: "acts", role: "group", "aria-label": `What is done to ${at}`},
    ...(expert ? [plain("Ban", "ban"), plain("Force", "force"), by("boost", 2, "Boost")] : []), by("scale", .5, "Scale"), plain("Ablate", "ablate"));
}

const list = (name, items, kind) => items && items.length ? [el("h4", null, name), el("ul", {class: kind || null}, ...items)] : [];

function body({says, beneath, tokens, categories, contexts, classes}) {
  const pairs = (items, code) => (items || []).map(([name, times, more]) => el("li", null, el(code ? "code" : "span", null, name), el("span", null, times, more ? el("span", {class: "soft"}, ` (${more})`) : null)));
  return [el("p", null, says),
    ...list("Mean of each class, z", Object.entries(classes || {}).map(([name, value]) => el("li", null, el("span", null, name), el("span", null, value.toFixed(2)))), "lifts"),
    ...list("Tokens, times its usual rate", pairs(tokens, true), "lifts"),
    ...list("Categories, times its usual rate", pairs(categories, false), "lifts"),
    ...list(classes ? "Where it is farthest from its mean" : "Where it weighs most; its tokens are marked",
      (contexts || []).map(([name, pieces]) => el("li", null, el("span", {class: "soft small"}, `${name} `), ...pieces.map(([text, marked]) => marked ? el("mark", null, text) : text)))),
    el("p", {class: "soft small"}, beneath)];
}
