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
