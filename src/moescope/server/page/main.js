// What is served, what was asked for, and the address that says it, so that a link brings all of it back.
import {$, el, failure, gone, says} from "./dom.js";
import * as edits from "./edits.js";
import {coloursOf} from "./colours.js";
import {card, tell} from "./card.js";
import {arrange as arrangeClassify} from "./classify.js";
import {get, useToken} from "./net.js";
import {Run} from "./run.js";

let info = null, colours = [], abort = null;
const runs = {before: null, after: null};
const state = {key: "", side: "before", at: null, card: ""};

function colour(step = 0) {
  const box = $("colour");
  if (step) { box.selectedIndex = Math.max(0, Math.min(colours.length - 1, box.selectedIndex + step)); recolour(); }
  return colours[box.selectedIndex];
}

function recolour() { for (const run of Object.values(runs)) if (run) run.repaint(); remember(); }

function choose(run, i, scroll = false) {
  for (const other of Object.values(runs)) if (other) other.mark(i, scroll || other !== run);
  state.side = run.side; state.at = run.at;
  tell(run, info, open);
  remember();
}

function open(at, focus = false) {
  state.card = at;
  remember();
  return card(at, info, focus);
}

// ---- the address -------------------------------------------------------------------------------------------------------

const body = () => ({prompt: $("prompt").value, max_new_tokens: Number($("new-tokens").value), temperature: Number($("temperature").value), seed: Number($("seed").value),
  ...(info.model.template ? {chat: $("chat").checked} : {})});

function remember() {
  if (!state.key) return;
  const {prompt, max_new_tokens, temperature, seed, chat} = JSON.parse(state.key);
  const said = {p: prompt, n: max_new_tokens, t: temperature, s: seed, ...(chat === undefined ? {} : {c: Number(chat)}), by: colour().key};
  if (edits.all().length) said.e = edits.written();
  if (state.at !== null) said.at = `${state.side}.${state.at}`;
  if (state.card) said.card = state.card;
  history.replaceState(null, "", `#${new URLSearchParams(said)}`);
}

async function restore() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (!said.get("p")) return;
  $("prompt").value = said.get("p");
  for (const [id, name] of [["new-tokens", "n"], ["temperature", "t"], ["seed", "s"]]) if (Number.isFinite(parseFloat(said.get(name)))) $(id).value = said.get(name);
  if (said.has("c")) $("chat").checked = said.get("c") === "1";
  const place = colours.findIndex(c => c.key === said.get("by"));
  if (place >= 0) $("colour").selectedIndex = place;
  edits.set(edits.read(said.get("e") || ""), true);
  const [, side, at] = /^(before|after)\.(\d{1,6})$/.exec(said.get("at") || "") || [];
  const at_ = said.get("card");
  state.key = ""; state.card = "";
  if (!$("write-form").reportValidity()) return;
  await go();
  if (runs[side]) choose(runs[side], Number(at), true);
  if (at_) await open(at_);
}

// ---- writing -----------------------------------------------------------------------------------------------------------

async function write(side, title, asked) {
  const run = new Run(side, title, {info, colour, choose, open});
  runs[side] = run;
  lay();
  await run.write(asked, abort.signal);
}

function lay() {
  const shown = Object.values(runs).filter(Boolean);
  $("runs").classList.toggle("two", shown.length > 1);
  $("runs").replaceChildren(...shown.map(run => run.box));
  shown.forEach(run => run.redraw());
}

async function go() {
  const asked = body(), key = JSON.stringify(asked);
  if (!asked.prompt.trim()) { $("prompt").focus(); return; }
  if (abort) abort.abort();
  const mine = abort = new AbortController();
  $("live").hidden = false; $("compare").textContent = "";
  $("write-go").disabled = true; $("write-stop").disabled = false;
  runs.after = null; state.at = null; $("chosen").hidden = true;
  try {
    if (key !== state.key || !runs.before || !runs.before.over) {
      state.key = key;
      remember();
      await write("before", edits.all().length ? "Before" : "As the model writes", asked);
    } else lay();
    if (edits.all().length) {
      runs.before.box.querySelector("h3").firstChild.data = "Before";
      await write("after", `After: ${edits.all().map(edits.say).join(", ")}`, {...asked, edits: edits.all()});
      compare();
    }
  } catch (error) {
    if (!mine.signal.aborted && !Object.values(runs).some(run => run && run.ends.firstChild)) $("compare").replaceChildren(failure(error));
  }
  if (mine !== abort) return;  // another has begun
  abort = null;
  $("write-go").disabled = false; $("write-stop").disabled = true;
  const run = runs.after || runs.before;
  if (run && state.at === null && run.tokens.length) choose(run, run.tokens.length - 1);
}

function compare() {
  const [one, other] = [runs.before.written, runs.after.written], n = Math.max(one.length, other.length);
  const parted = Array.from({length: n}, (_, i) => !one[i] || !other[i] || one[i].id !== other[i].id);
  const given = runs.after.tokens.length - other.length, first = parted.indexOf(true);
  other.forEach((_, i) => runs.after.differs(given + i, parted[i]));
  const token = found => found ? JSON.stringify(found.text) : "the end";
  $("compare").replaceChildren(...(first < 0 ? ["Before and after are the same text."]
    : [el("strong", null, "The text changes. "), `${parted.filter(Boolean).length} of ${n} tokens differ; the first is number ${first + 1}: ${token(one[first])} before, ${token(other[first])} after.`]));
}

edits.whenChanged(() => { remember(); if (state.key) go(); });
$("write-form").addEventListener("submit", event => { event.preventDefault(); go(); });
$("write-stop").addEventListener("click", () => abort && abort.abort());
$("prompt").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("write-form").requestSubmit(); });
$("prompt").addEventListener("input", () => { $("example").value = ""; });
$("example").addEventListener("change", () => { const chosen = info.examples[$("example").value]; if (chosen) { $("prompt").value = chosen.text; go(); } });
$("colour").addEventListener("change", recolour);
window.addEventListener("hashchange", () => { if (info) restore(); });
window.addEventListener("keydown", event => { if (event.key === "Escape" && abort) abort.abort(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(runs).forEach(run => run && run.redraw()));

// ---- what is served ----------------------------------------------------------------------------------------------------

function arrange() {
  const {model, experts, circuits, limits, examples} = info;
  $("model").textContent = model.name;
  document.title = `${model.name} · moescope serve`;
  const kind = experts ? `mixture of ${Math.max(...experts.counts)} experts in ${experts.layers.length} layers` : "dense";
  $("about").textContent = `${model.type}, ${kind}; ${model.layers} layers of width ${model.width}, ${model.dtype} on ${model.device}`;
  arrangeClassify(info);
  $("write").hidden = Boolean(model.silent);
  $("new-tokens").max = limits.new_tokens;
  $("new-tokens").value = Math.min(32, limits.new_tokens);
  $("chat-row").hidden = !model.template;
  $("chat").checked = Boolean(model.chat);
  $("example").append(...examples.map((e, i) => el("option", {value: i}, `${e.category}: ${e.text.length > 70 ? e.text.slice(0, 70) + "…" : e.text}`)));
  $("write-about").textContent = experts ? "Each token is coloured by the expert that a layer sent it to. Choose a token to see all layers, an expert to read its card or to ban, boost, scale or ablate it: then the text is written again beside the first."
    : circuits.length ? "Each token is coloured by the circuit neuron that fires. Choose a token to see them all, a neuron to read its card or to scale or ablate it: then the text is written again beside the first."
    : "This model is dense, so no token is sent to experts, and tokens are coloured by how likely they were. moescope circuits finds neurons to watch; start with --circuits DIR.";
  for (const c of circuits) for (const v of c.verdicts) $("write-says").append(says("", v));
  colours = coloursOf(info);
  $("colour").replaceChildren(...colours.map(c => el("option", {value: c.key}, c.name)));
  edits.set([], true);
}

async function begin() {
  const answer = await get("v1/info");
  $("token-form").hidden = answer.status !== 401;
  $("broken").hidden = answer.ok || (answer.status === 401 && !$("token").value);
  if (!answer.ok) { $("broken").textContent = (await answer.json().catch(() => ({}))).error || `${answer.status} ${answer.statusText}`; return; }
  info = await answer.json();
  arrange();
  await restore();
}
const start = () => begin().catch(error => { $("broken").textContent = gone(error); $("broken").hidden = false; });
$("token-form").addEventListener("submit", event => { event.preventDefault(); useToken($("token").value.trim()); start(); });
start();
