// Baseline: every choice is on the page already; show the chosen one.
for (const select of all("select.baseline")) {
  const run = select.closest(".run");
  const show = () => all(".against", run).forEach((block) => { block.hidden = block.dataset.base !== select.value; });
  select.addEventListener("change", show);
  show();
}

// Evidence: a copy of the samples behind a number, in a dialog.
const detail = one("#detail");
const open = (hash) => {
  const source = hash.startsWith("#e") ? document.getElementById(hash.slice(1)) : null;
  if (!source) return false;
  const copy = source.cloneNode(true);
  copy.removeAttribute("id");
  one(".body", detail).replaceChildren(copy);
  detail.setAttribute("aria-label", one("h3", copy).textContent);
  hide();
  detail.showModal();
  detail.scrollTop = 0;
  return true;
};
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#e']");
  if (link && open(link.getAttribute("href"))) event.preventDefault();
  if (event.target === detail) detail.close();
});
open(location.hash);
