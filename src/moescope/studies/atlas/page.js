"use strict";
const cards = [...document.querySelectorAll(".card")].map((card) => ({ card, text: card.textContent.toLowerCase(), cell: document.querySelector(`.map a[href="#${card.id}"]`) }));
const [form, query, category, labelled, count] = ["find", "query", "category", "labelled", "count"].map((id) => document.getElementById(id));
function show() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { card, text, cell } of cards) {
    const fits = words.every((word) => text.includes(word)) && (!category || !category.value || card.dataset.category === category.value) && (!labelled.checked || "label" in card.dataset);
    card.hidden = !fits;
    if (cell) cell.parentElement.classList.toggle("off", !fits);
    shown += fits;
  }
  count.value = `${shown} of ${cards.length} experts`;
}
form.hidden = false;
form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
// a link to an expert that the search hides shows it
window.addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target && target.hidden) { form.reset(); show(); target.scrollIntoView(); }
});
show();
