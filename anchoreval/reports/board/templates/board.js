// Filters: rows whose model holds one of the texts, of the chosen arm and suite; with `fold`, the first row of a model.
const board = one("#board");
const heads = all("thead th", board);
const lines = [...board.tBodies[0].rows].map((row) => [row, row.cells[0].textContent.toLowerCase()]);
const wanted = ["#find-model", "#find-arm", "#find-suite"].map((name) => one(name));
const fold = one("#fold"), unfolded = new Set();
fold.parentElement.hidden = !board.classList.contains("ranked");
const sorted = () => heads.findIndex((head) => head.getAttribute("aria-sort") !== "none");
// The rank of a shown row is by the sorted column, the best first whichever way it is sorted; equal values share one.
const rank = () => {
  const column = sorted(), shown = [...board.tBodies[0].rows].filter((row) => !row.hidden);
  for (const [row] of lines) delete row.cells[0].dataset.rank;
  const ranked = column < 0 ? [] : shown.filter((row) => row.cells[column].dataset.key);
  const values = ranked.map((row) => Number(row.cells[column].dataset.key)).sort((a, b) => a - b);
  if (values.length && bestIsHighest(board, heads[column], column)) values.reverse();
  const places = new Map();
  values.forEach((value, at) => places.set(value, [places.get(value)?.[0] ?? at + 1, (places.get(value)?.[1] ?? 0) + 1]));
  for (const row of ranked) {
    const [first, count] = places.get(Number(row.cells[column].dataset.key));
    row.cells[0].dataset.rank = `${first}${count > 1 ? "=" : ""}`;
  }
};
const filter = () => {
  const [model, arm, suite] = wanted.map((field) => field.value.trim().toLowerCase());
  const names = model.split(/[;,]/).map((name) => name.trim()).filter(Boolean);
  const texts = new Map(lines), first = new Map();
  let shown = 0;
  for (const row of board.tBodies[0].rows) {
    const fits = (!names.length || names.some((name) => texts.get(row).includes(name)))
      && (!arm || row.dataset.arm === arm) && (!suite || row.dataset.suite === suite);
    const leader = fits && first.get(row.dataset.group);
    row.hidden = !fits || (fold.checked && Boolean(leader) && !unfolded.has(row.dataset.group));
    if (fits && !leader) first.set(row.dataset.group, { row, more: 0 });
    if (leader) leader.more += 1;
    shown += !row.hidden;
    one("button.fold", row)?.remove();
  }
  for (const { row, more } of fold.checked ? first.values() : []) {
    if (!more) continue;
    const open = unfolded.has(row.dataset.group), button = document.createElement("button");
    button.type = "button";
    button.className = "fold";
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "fold" : `+${more}`;
    button.setAttribute("aria-label", open ? "fold the arms of this model" : `${more} more arms of this model`);
    button.addEventListener("click", () => {
      if (open) unfolded.delete(row.dataset.group); else unfolded.add(row.dataset.group);
      filter();
      one("button.fold", row)?.focus();
    });
    row.cells[1].append(button);
  }
  one("#count").textContent = `${shown} of ${lines.length} rows`;
  rank();
};

// Columns can be hidden; the address keeps filters, columns and order, so that a view can be sent to somebody.
const hidden = new Set();
const show = (column, shown) => {
  if (shown) hidden.delete(column); else hidden.add(column);
  for (const row of board.rows) row.cells[column].hidden = !shown;
};
const keep = () => {
  const column = sorted();
  const view = new URLSearchParams();
  for (const field of wanted) if (field.value) view.set(field.id.slice(5), field.value);
  if (fold.checked) view.set("fold", "1");
  if (hidden.size) view.set("without", [...hidden].join("."));
  if (column >= 0) view.set("sort", `${column}${heads[column].getAttribute("aria-sort") === "ascending" ? "up" : "down"}`);
  history.replaceState(null, "", view.size ? `#rows?${view}` : location.pathname + location.search);
};
const changed = () => { filter(); keep(); };
for (const field of [...wanted, fold]) field.addEventListener("input", changed);
board.tHead.addEventListener("click", changed); // after the sort, which a head's own button does
heads.slice(2).forEach((head, at) => {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked: true, autocomplete: "off" });
  box.dataset.column = at + 2;
  box.addEventListener("input", () => { show(at + 2, box.checked); keep(); });
  label.append(box, ` ${head.textContent.trim()}`);
  one(".columns > div").append(label);
});
const seen = location.hash.startsWith("#rows?") ? new URLSearchParams(location.hash.slice(6)) : null;
if (seen) {
  for (const field of wanted) field.value = seen.get(field.id.slice(5)) ?? "";
  fold.checked = seen.get("fold") === "1";
  for (const box of all(".columns input")) {
    box.checked = !(seen.get("without") ?? "").split(".").includes(box.dataset.column);
    show(Number(box.dataset.column), box.checked);
  }
  const [, column, way] = /^(\d+)(up|down)$/.exec(seen.get("sort") ?? "") ?? [];
  const head = heads[column];
  if (head) {
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", `${way === "up" ? "a" : "de"}scending`);
    sort(board, Number(column), way === "down");
  }
  filter();
} else {
  rank();
}
one("#filters").hidden = Boolean(one(".run")) && lines.length < 8; // a run has a few arms

// Maps: drawn from the chosen group's data block.
const shared = JSON.parse(one("#shared").textContent);
const [groupBox, kindBox, measureBox, baseBox] = ["group", "kind", "measure", "base"].map((name) => one(`#map-${name}`));
const NONE = "–";
const number = (tenths, signed) => (tenths === null ? NONE : (signed && tenths > 0 ? "+" : "") + (tenths / 10).toFixed(1));
const nats = (value, signed) => {
  if (value === null) return NONE;
  if (value === 0) return "0";
  return (signed && value > 0 ? "+" : "") + (Math.abs(value) >= 0.005 ? value.toFixed(2) : value.toExponential(0));
};
const between = (low, high, signed) => (low === null || high === null ? "" : ` [${number(low, signed)}, ${number(high, signed)}]`);
const count = (value) => value.toLocaleString("en-US");
const span = (length) => (length === 0 ? "natural" : count(length)); // 0: prompts are as long as they are
const make = (name, text, values = {}) => {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
};
let group = null;
const byLogprob = () => measureBox.value === "logprob";
// The samples behind a cell: in the viewer, else on this page, else the records.
const address = (map, run, row, length, arm, differ) => {
  const [folder, viewer] = shared.runs[run];
  const [name, task] = map.task ?? map.rows[row];
  const number = map.task ? map.row : row;
  if (!viewer) return group.samples && (map.task || task) ? `#e${groupBox.value}-${number}-${length}` : `${folder}/records.jsonl`;
  const parts = [task && name && `task=${task}`, `length=${length}`, arm && `arm=${arm}`, differ && "differ=1"];
  return `${folder}/view/index.html#${parts.filter(Boolean).join("&")}`;
};
const where = (map, row, length) => {
  const name = map.rows[row][0];
  return map.task ? `${map.task[0]}, length ${span(length)}, depth ${name}%` : `${name} at ${span(length)}`;
};
const OPPOSITE = { worse: "better", better: "worse", lower: "higher", higher: "lower" };
const turn = (words) => words.replace(/^(worse|better)|lower|higher/, (word) => OPPOSITE[word]);
const minus = (value) => (value === null ? null : 0 - value);
const step = (value, scale) => Math.max(1, Math.min(5, Math.round((5 * Math.abs(value)) / scale)));

const scoreCell = (map, [row, length, arm, mean, low, high, scored, asked, logprob, run, wrong, lost, sources]) => {
  const value = byLogprob() ? logprob : mean;
  const said = mean === null ? "no score" : number(mean) + between(low, high);
  const rest = [`${scored} of ${asked} scored`, sources && `from ${count(sources)} source${sources === 1 ? "" : "s"}`,
    lost && `${number(wrong)} with the lost as wrong, ${lost}`,
    logprob === null ? "no log-probability" : `log-probability ${logprob.toFixed(3)} per token`];
  return {
    text: byLogprob() ? nats(logprob) : number(mean) + (scored < asked && mean !== null ? "*" : ""),
    reason: value === null ? lost : "",
    style: value === null ? "none" : `s${Math.round(byLogprob() ? 10 * Math.exp(Math.min(0, value)) : value / 100)}`,
    label: `${where(map, row, length)}, ${group.arms[arm][0]}: ${said}, ${rest.filter(Boolean).join(", ")}`,
    href: address(map, run, row, length, group.arms[arm][1], false),
  };
};
// Colour follows the verdict: hatched where nothing can be told, plain where nothing was lost.
const gapStyle = (value, told, words, scale) => {
  if (value === null) return "none";
  if (told) return `${value < 0 ? "n" : "p"}${step(value, scale)} strong`;
  return /^(identical|equivalent|the same)/.test(words) ? "z0" : "h0";
};
const gapCell = (map, base, [row, length, arm, other, size, low, high, pairs, out, p, detectable, said, run, told, same, few, fixed, logprob, says]) => {
  const turned = arm === base;
  const shown = turned ? other : arm;
  const words = turned ? turn(fixed ?? said) : said;
  const [value, from, to] = turned ? [minus(size), minus(high), minus(low)] : [size, low, high];
  const [inNats, natsSay] = turned ? [minus(logprob), turn(says)] : [logprob, says];
  const alike = same === null || !pairs ? "" : ` (${count(same)} of the same output)`;
  const rest = [`${count(pairs)} pair${pairs === 1 ? "" : "s"}${alike}`, out, p, detectable !== null && `detects ${number(detectable)}`];
  const size_ = value === null ? "" : `, ${number(value, true)}${few ? "" : between(from, to, true)}`;
  const more = inNats === null ? "" : `; log-probability per token: ${natsSay}, ${nats(inNats, true)}`;
  const drawn = byLogprob() ? inNats : value;
  return {
    text: byLogprob() ? nats(inNats, true) : number(value, true) + (out && value !== null ? "*" : ""),
    reason: drawn === null ? out.replace(/^.*?: /, "") : "",
    style: byLogprob() ? gapStyle(inNats, /^(lower|higher)/.test(natsSay), natsSay, map.nats) : gapStyle(value, told, words, 10 * map.scale),
    label: `${where(map, row, length)}, ${group.arms[shown][0]} minus ${group.arms[base][0]}: ${words}${size_}, ${rest.filter(Boolean).join(", ")}${more}`,
    href: address(map, run, row, length, group.arms[shown][1], true),
  };
};
const heat = (title, map, cells, missing) => {
  const region = make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, heat map` });
  const table = make("table", null, { class: `heat${kindBox.value === "tasks" ? "" : " grid"}` });
  const lengths = kindBox.value === "grids" ? group.lengths.filter((length) => map.means.some((mean) => mean[1] === length)) : group.lengths;
  const head = make("tr", null);
  head.append(make("th", kindBox.value === "tasks" ? "task" : "depth", { scope: "col" }));
  for (const length of lengths) head.append(make("th", span(length), { scope: "col" }));
  const top = make("thead", null), body = make("tbody", null);
  top.append(head);
  map.rows.forEach(([name], row) => {
    const total = map.total && row === map.rows.length - 1;
    if (total && !lengths.some((length) => cells.has(`${row} ${length}`))) return;
    const line = make("tr", null, total ? { class: "total" } : {}), label = make("th", null, { scope: "row" });
    label.append(make("bdi", name));
    line.append(label);
    for (const length of lengths) {
      const cell = cells.get(`${row} ${length}`);
      const why = group.why[`${row} ${length}`];
      const field = make("td", cell ? null : NONE, { class: cell ? cell.style : "none" });
      if (cell) field.append(make("a", cell.text, { href: cell.href, "aria-label": cell.label }));
      else field.title = why && kindBox.value === "tasks" ? `${where(map, row, length)}: cannot be made: ${why}` : missing;
      const reason = cell ? cell.reason : why && kindBox.value === "tasks" ? "cannot be made" : "";
      if (reason) (cell ? field.firstChild : field).append(make("small", reason));
      line.append(field);
    }
    body.append(line);
  });
  table.append(make("caption", title), top, body);
  region.append(table);
  return region;
};
// One block per arm that has cells.
const blocks = (map, found, title, missing) => group.arms.flatMap(([name], arm) => {
  if (!found[arm]?.size) return [];
  const block = make("div", null, { class: "map" });
  block.append(heat(title(name), map, found[arm], missing));
  return [block];
});
const scoresOf = (map) => {
  const found = group.arms.map(() => new Map());
  for (const mean of map.means) found[mean[2]].set(`${mean[0]} ${mean[1]}`, scoreCell(map, mean));
  return blocks(map, found, (name) => name, "no records");
};
const gapsOf = (map, base) => {
  const found = group.arms.map(() => new Map());
  for (const gap of map.gaps) {
    if (gap[2] !== base && gap[3] !== base) continue;
    found[gap[2] === base ? gap[3] : gap[2]].set(`${gap[0]} ${gap[1]}`, gapCell(map, base, gap));
  }
  return blocks(map, found, (name) => `${name} minus ${group.arms[base][0]}`, "no pairs");
};
const draw = () => {
  const base = Number(baseBox.value), maps = kindBox.value === "grids" ? group.grids : [group[kindBox.value]];
  const filled = (target, of, empty) => {
    const parts = maps.flatMap((map) => {
      const drawn = of(map);
      return map.task && drawn.length ? [make("h4", map.task[0], { class: "whole" }), ...drawn] : drawn;
    });
    one(target).replaceChildren(...(parts.length ? parts : [make("p", empty, { class: "note" })]));
  };
  filled("#gaps", (map) => gapsOf(map, base), "No pairs with this arm here.");
  filled("#scores", scoresOf, "No samples here.");
  one("#differences").hidden = group.arms.length < 2;
  const ends = (name) => [...new Set(maps.map((map) => map[name]))].map((end) => `±${end}`).join(", ");
  one("#scale").textContent = byLogprob() ? `${ends("nats")} nats per token` : `${ends("scale")} points`;
  one("#score-unit").textContent = byLogprob() ? "probability per token, %" : "score x 100";
  for (const note of all("[data-kind]")) note.hidden = note.dataset.kind !== kindBox.value;
  for (const block of all(".against")) block.hidden = block.dataset.base !== baseBox.value;
};
const choose = () => {
  group = JSON.parse(one(`#g${groupBox.value}`).textContent);
  const kept = baseBox.selectedOptions[0]?.textContent;
  const names = group.arms.map(([name]) => name);
  const first = names.includes(kept) ? names.indexOf(kept) : group.base;
  baseBox.replaceChildren(...names.map((name, arm) => make("option", name, arm === first ? { value: arm, selected: "" } : { value: arm })));
  const grids = one("option[value=grids]", kindBox);
  grids.hidden = grids.disabled = !group.grids.length;
  if (grids.hidden && kindBox.value === "grids") kindBox.value = "tasks";
  for (const part of all(".run")) part.hidden = part.dataset.group !== groupBox.value;
  draw();
};
if (groupBox.options.length) {
  groupBox.addEventListener("change", choose);
  for (const box of [kindBox, measureBox, baseBox]) box.addEventListener("change", draw);
  one("#controls").hidden = false;
  choose();
}

// Evidence: a copy of the samples behind a number, in a dialog.
const detail = one("#detail");
const open = (hash) => {
  const source = /^#e\d/.test(hash) ? document.getElementById(hash.slice(1)) : null;
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
document.documentElement.dataset.ready = "yes";
