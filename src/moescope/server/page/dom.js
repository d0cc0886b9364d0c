// Elements, numbers and verdicts as the page writes them. Text goes in as text nodes only, so nothing that a model says is markup.
export const $ = id => document.getElementById(id);

export function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "css") for (const [name, said] of Object.entries(value)) made.style.setProperty(name, said);
    else if (key === "on") for (const [name, does] of Object.entries(value)) made.addEventListener(name, does);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(c => c !== null && c !== undefined));
  return made;
}

export const percent = p => (100 * p).toFixed(1) + " %";
export const short = p => p.toFixed(2).replace(/^0/, "");
export const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const visible = text => text === "" ? "∅" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");

const MARKS = {"reproduced": ["★", "reproduced"], "holds": ["✓", "reproduced"], "weaker": ["↓", "chance"], "contradicted": ["✗", "failed"],
  "inconclusive": ["?", "chance"], "undertrained": ["⊘", "chance"], "identity": ["=", "identity"], "descriptive": ["·", "measured"],
  "not tested": ["○", "measured"]};

export function says(before, said) {  // a study's claim beside what it is about
  const explained = said.outcome === "holds" && said.verdict.includes("explained by");
  const [mark, tone] = explained ? ["¶", "cue"] : MARKS[said.outcome];
  return el("p", {class: `says ${tone}`}, el("strong", null, `${before}${said.claim}`), " ",
    el("span", {class: "badge"}, `${mark} ${said.verdict}`), " ", el("span", {class: "soft"}, said.words));
}

export const gone = error => error instanceof TypeError ? "the server does not answer; is it still running?" : error.message;
export const failure = error => el("p", {class: "says error", role: "alert"}, gone(error));

export function depthBar(depth, of) {
  const bar = el("span", {class: of > 40 ? "bar many" : "bar", "aria-hidden": "true"});
  for (let i = 0; i < of; i++) bar.append(el("i", {class: i < depth ? "run" : null}));
  return el("span", {class: "depth"}, bar, el("span", null, `${depth} of ${of} layers`));
}

export function verdictLine(task, {label, probabilities, depth, of}, advice) {
  const no = advice && advice.startsWith("no");
  return el("div", {class: "line"}, el("span", {class: "soft"}, task), el("span", null, el("strong", null, label), ` ${percent(probabilities[label])}`),
    depthBar(depth, of), no ? el("span", {class: "small cue"}, advice) : null);
}
