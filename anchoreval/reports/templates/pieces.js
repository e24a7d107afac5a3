// Shared by every board: sorting, tips, arrow keys, theme.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

// Sorting: numbers by data-key, text by locale, empty last; equal rows keep their order.
const key = (row, column) => {
  const cell = row.cells[column];
  if (!("key" in cell.dataset)) return cell.textContent.trim();
  return cell.dataset.key === "" ? "" : Number(cell.dataset.key);
};
const order = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
};
const sort = (table, column, down) => {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row, column), row]);
  const empty = (value) => value === "" || value === "–";
  rows.sort(([a], [b]) => (empty(a) - empty(b)) || (down ? order(b, a) : order(a, b)));
  body.append(...rows.map(([, row]) => row));
};
// The first click puts the best first: the highest number, but the lowest p, and names in their order.
const bestIsHighest = (table, head, column) =>
  [...table.tBodies[0].rows].some((row) => row.cells[column].dataset.key) && !/^p\b/.test(head.textContent.trim());
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => one("button", head).addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const down = now === "none" ? bestIsHighest(table, head, column) : now === "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sort(table, column, down);
  }));
}

// Tips: the sentence that a cell's label already holds, on hover and on focus.
const tip = one("#tip");
const place = (target) => {
  const box = target.getBoundingClientRect();
  tip.textContent = target.getAttribute("aria-label");
  tip.hidden = false;
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
};
const hide = () => { tip.hidden = true; };
const cellOf = (event) => event.target.closest?.(".heat td a, a.tip");
document.addEventListener("mouseover", (event) => { const cell = cellOf(event); if (cell) place(cell); else hide(); });
document.addEventListener("focusin", (event) => {
  const cell = cellOf(event);
  if (cell && cell.matches(":focus-visible")) place(cell); else hide();
});
document.addEventListener("scroll", hide, true);

// Arrow keys walk a heat map.
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
  const cell = cellOf(event);
  const step = steps[event.key];
  if (!cell || !step || !cell.closest("td")) return;
  const td = cell.parentElement;
  const row = td.closest("table").rows[td.parentElement.rowIndex + step[0]];
  const next = row && one("a", row.cells[td.cellIndex + step[1]] ?? row);
  if (next && row.cells[td.cellIndex + step[1]]) { event.preventDefault(); next.focus(); }
});

// Theme: auto, light, dark.
const theme = one("#theme");
const themes = ["auto", "light", "dark"];
theme.hidden = false;
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  theme.textContent = `Theme: ${next}`;
});
