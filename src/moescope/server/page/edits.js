// What is done to experts and neurons: kept as a list, shown as buttons that take each back.
import {$, el} from "./dom.js";

let edits = [], changed = () => {};

export const all = () => edits;
export const say = ({at, do: does, by}) => `${does} ${at}${by === undefined ? "" : does === "boost" ? ` by ${by}` : ` ×${by}`}`;
export const whenChanged = does => { changed = does; };

export function add(edit) {
  const clashes = old => old.at === edit.at && (old.do === edit.do || [old.do, edit.do].some(d => ["ban", "ablate"].includes(d)));
  set([...edits.filter(old => !clashes(old)), edit]);
}

export function set(list, quietly = false) {
  edits = list;
  show();
  if (!quietly) changed();
}

export const written = () => edits.map(e => [e.do, e.at, ...(e.by === undefined ? [] : [e.by])].join(" ")).join(",");
export function read(text) {
  return text.split(",").filter(Boolean).map(part => {
    const [does, at, by] = part.split(" ");
    return by === undefined ? {at: at || "", do: does} : {at: at || "", do: does, by: Number(by)};
  });
}

function show() {
  const buttons = edits.map(edit => el("button", {type: "button", class: "plain small", "aria-label": `Take back: ${say(edit)}`,
    on: {click: () => { set(edits.filter(other => other !== edit)); $("colour").focus(); }}}, `${say(edit)} ✕`));
  const none = el("span", {class: "soft"}, "Nothing is edited. Choose an expert or a neuron to ban, boost, scale or ablate it.");
  const clear = edits.length > 1 ? el("button", {type: "button", class: "plain small", on: {click: () => { set([]); $("colour").focus(); }}}, "Take all back") : null;
  $("edits").replaceChildren(...(edits.length ? buttons : [none]), ...(clear ? [clear] : []));
}
