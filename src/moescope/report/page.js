"use strict";
// what a cell holds in full
const full = (cell) => cell.dataset.v ?? cell.textContent;
const field = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
// numbers by size, with grouping and a true minus; all else as text
const size = (text) => (text.trim() && !Number.isNaN(Number(text.replaceAll(",", "").replace("\u2212", "-"))) ? Number(text.replaceAll(",", "").replace("\u2212", "-")) : null);
function compare(a, b) {
  const [x, y] = [size(a), size(b)];
  return x !== null && y !== null ? x - y : x !== null ? -1 : y !== null ? 1 : a.localeCompare(b);
}
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const tools = document.createElement("div"), filter = document.createElement("input"), save = document.createElement("button");
  tools.className = "tools";
  filter.type = "search";
  filter.placeholder = "filter rows";
  filter.setAttribute("aria-label", `Filter rows of ${table.dataset.name}`);
  save.type = "button";
  save.textContent = "CSV";
  save.setAttribute("aria-label", `Download the rows shown of ${table.dataset.name} as CSV`);
  tools.append(filter, save);
  table.closest(".scroll").before(tools);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
  save.addEventListener("click", () => {
    const lines = [heads.map((head) => field(head.textContent)), ...[...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((cell) => field(full(cell))))];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\n") + "\n"], { type: "text/csv" }));
    link.download = `${table.dataset.name}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = [...rows].sort((a, b) => compare(full(a.cells[column]), full(b.cells[column])));
      body.append(...(down ? sorted.reverse() : sorted));
    });
  });
}
// what a word means, or a mark of a figure says, beside it: for the pointer, the keyboard's focus and a touch
const tip = document.createElement("div");
tip.className = "tip";
tip.id = "tip";
tip.setAttribute("role", "tooltip");
tip.hidden = true;
document.body.append(tip);
for (const mark of document.querySelectorAll(".marks rect")) {
  mark.dataset.tip = mark.textContent;
  mark.textContent = ""; // else the browser shows it too
}
let told = null;
const said = (element) => element.dataset.tip ?? document.getElementById(element.hash.slice(1))?.nextElementSibling?.textContent;
function hide() {
  told?.removeAttribute("aria-describedby");
  told = null;
  tip.hidden = true;
}
function show(element) {
  if (told === element) return;
  hide();
  tip.textContent = said(element) ?? "";
  if (!tip.textContent) return;
  told = element;
  if (element.matches("a")) element.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  const at = element.getBoundingClientRect(), own = tip.getBoundingClientRect(), edge = 8;
  tip.style.left = `${Math.max(edge, Math.min(at.left, innerWidth - own.width - edge))}px`;
  tip.style.top = `${at.bottom + own.height + edge < innerHeight ? at.bottom + 4 : Math.max(edge, at.top - own.height - 4)}px`;
}
const worded = (event) => event.target.closest?.("a.term, .marks rect, .tokens i");
document.addEventListener("pointerover", (event) => (worded(event) ? show(worded(event)) : hide()));
document.addEventListener("focusin", (event) => (worded(event) ? show(worded(event)) : hide()));
document.addEventListener("focusout", hide);
document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("scroll", hide, { passive: true, capture: true });
let touched = false;
document.addEventListener("pointerdown", (event) => (touched = event.pointerType === "touch"));
document.addEventListener("click", (event) => {
  const word = worded(event);
  if (!touched || !word) return;
  event.preventDefault(); // a touch reads the word; the list is a scroll away
  show(word);
});
