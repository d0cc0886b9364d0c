// Texts, or one row of a task's fields, and what classifiers and the router make of them.
import {$, el, failure, gone, says, verdictLine} from "./dom.js";
import {post} from "./net.js";

let info = null;

export function arrange(served) {
  info = served;
  const {classifiers, router} = info;
  $("classify").hidden = !classifiers.length && !router;
  const can = classifiers.map(c => `${c.task} (${c.classes.join(", ")})`);
  $("classify-about").textContent = can.length ? `A text leaves the model at the first layer that is confident enough. Served: ${can.join("; ")}.`
    : router && router.acts ? `A text's first layers name its task (${router.tasks.join(", ")}), whose classifier answers in the same pass.`
    : router ? `No classifier is served, but texts are told apart: ${router.tasks.join(", ")}.` : "";
  $("recommendations").replaceChildren();
  const beside = (line) => $("recommendations").append(line);
  for (const c of classifiers) beside(c.recommendation ? says(`${c.task}: `, c.recommendation) : el("p", {class: "says soft"}, `${c.task}: no study stands beside this classifier, so nothing is known of what it is worth.`));
  if (router && router.verdict) beside(says("", router.verdict));
  const own = classifiers.filter(c => c.fields);
  $("classify-as").replaceChildren(...own.map(c => el("option", {value: c.task}, `a row of ${c.task}: ${c.fields.join(", ")}`)), el("option", {value: ""}, "texts as they stand, one a line, for all"));
  $("classify-as").addEventListener("change", fields);
  $("classify-form").addEventListener("submit", classify);
  $("classify-form").addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("classify-form").requestSubmit(); });
  fields();
}


const chosen = () => info.classifiers.find(c => c.fields && c.task === $("classify-as").value);

function fields() {
  const made = chosen(), names = made ? made.fields : ["texts"];
  const parts = names.map((name, i) => [el("label", {for: `part-${i}`}, made ? name : "Texts, one a line"), el("textarea", {id: `part-${i}`, rows: made ? 2 : 4, spellcheck: "false", required: true})]);
  const how = made ? [el("p", {class: "soft small"}, "The model reads ", el("code", null, JSON.stringify(made.template)))] : [];
  $("parts").replaceChildren(...parts.flat(), ...how);
  $("answers").replaceChildren();
}

async function classify(event) {
  event.preventDefault();
  const made = chosen(), values = [...$("parts").querySelectorAll("textarea")].map(area => area.value);
  const texts = made ? [] : values[0].split("\n").map(t => t.trim()).filter(Boolean);
  if (!made && !texts.length) { $("part-0").focus(); return; }
  $("classify-go").disabled = true;
  try {
    $("answers").replaceChildren(made ? await one(made, values) : await many(texts));
  } catch (error) {
    $("answers").replaceChildren(failure(error));
  } finally {
    $("classify-go").disabled = false;
  }
}

async function one(made, values) {
  const row = Object.fromEntries(made.fields.map((name, i) => [name, values[i]]));
  const answer = await (await post(made.path.slice(1), {rows: [row]})).json();
  return el("div", {class: "card"}, verdictLine(made.task, answer.results[0], answer.recommendation), time(answer, 1));
}

const time = ({task, milliseconds, notes}, n) => el("p", {class: "soft small"}, `${task || "routed"}: ${milliseconds.toFixed(0)} ms for ${n === 1 ? "the text" : n + " texts"}`, ...notes.map(note => `; ${note}`));

async function many(texts) {
  const acts = info.router && info.router.acts;
  const ask = [info.classifiers.length || acts ? post("v1/classify", {texts}).then(a => a.json()) : {answers: []}];
  if (info.router && !acts) ask.push(post("v1/route", {texts}).then(a => a.json(), error => ({refused: gone(error)})));
  const [{answers}, routed] = await Promise.all(ask);
  const shown = el("div", {class: "card"});
  texts.forEach((text, i) => {
    const box = el("div", {class: "answer"}, el("blockquote", null, text.length > 400 ? text.slice(0, 400) + " …" : text));
    for (const answer of answers) {
      const said = answer.results[i];
      if (!answer.task) box.append(el("div", {class: "line two"}, el("span", {class: "soft"}, "looks like"), named(said)));
      box.append(verdictLine(answer.task || said.nearest, said, answer.recommendation));
    }
    if (routed && routed.results) box.append(el("div", {class: "line two"}, el("span", {class: "soft"}, "looks like"), named(routed.results[i])));
    shown.append(box);
  });
  answers.forEach(answer => shown.append(time(answer, texts.length)));
  if (routed && routed.refused) shown.append(el("p", {class: "soft small"}, `task: ${routed.refused}`));
  return shown;
}

function named({task, nearest, p}) {
  if (task) return el("span", null, el("strong", null, task), el("span", {class: "soft"}, ` p = ${p.toFixed(2)}`));
  return el("span", {class: "soft"}, el("strong", null, "unknown"), ` nearest ${nearest}, p = ${p.toFixed(3)}`);
}
