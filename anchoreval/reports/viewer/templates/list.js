// The list: filtered in memory, and only the rows in sight are on the page.
const state = { sample: "", task: "", length: "", arm: "", differ: "", q: "", order: "" };
let index = null; // what index.js holds
let rows = [];
let shown = [];
let active = 0;

const COLUMNS = ["id", "task", "length", "index", "file", "prompt", "scores", "logprobs", "outputs"];
const asRow = (values, at) => {
  const row = { at, text: "" };
  COLUMNS.forEach((name, i) => { row[name] = values[i]; });
  return row;
};

const present = (row) => row.outputs.flatMap((kind, i) => (kind === null ? [] : [i]));
// How an arm (or, without one, any arm) differs from another: "scores", "outputs" or "".
const difference = (row, arm) => {
  const all = present(row);
  const first = arm < 0 ? all[0] : arm;
  if (all.some((i) => row.scores[i] !== row.scores[first])) return "scores";
  return all.some((i) => row.outputs[i] !== row.outputs[first]) ? "outputs" : "";
};
const spread = (values) => (values.length < 2 ? -1 : Math.max(...values) - Math.min(...values));
const gaps = {
  score: (row) => spread(row.scores.filter((score) => score !== null && score >= 0)),
  logprob: (row) => spread(row.logprobs.filter((value) => value !== null)),
};

const armIndex = () => index.arms.indexOf(state.arm);
const filtered = () => {
  const arm = armIndex();
  const q = state.q.toLowerCase();
  const kept = rows.filter((row) => (!state.task || row.task === state.task)
    && (!state.length || String(row.length) === state.length)
    && (!state.arm || (arm >= 0 && row.outputs[arm] !== null))
    && (!state.differ || difference(row, arm) !== "")
    && (!q || row.id.toLowerCase().includes(q) || row.text.includes(q)));
  const gap = gaps[state.order];
  if (!gap) return kept;
  return kept.map((row) => [gap(row), row]).sort(([a, x], [b, y]) => b - a || x.at - y.at).map(([, row]) => row);
};

const armColumns = () => (state.arm && armIndex() >= 0 ? [armIndex()] : index.arms.map((_, i) => i));
const scoreKind = (score) => (score === null || score < 0 ? "none" : score >= 1 ? "right" : score > 0 ? "part" : "wrong");
const scoreText = (score) => (score !== null && score < 0 ? "" : percent(score));
const DIFFERS = { scores: "scores", outputs: "outputs", "": "" };

const drawHead = () => {
  const heads = ["Task", "Length", "Index", ...armColumns().map((i) => index.arms[i]), "Differ"];
  const kinds = ["task", "length", "index"];
  byId("samples").tHead.replaceChildren(el("tr", {}, ...heads.map((text, i) => (
    el("th", { scope: "col", class: kinds[i] ?? (i === heads.length - 1 ? "differ" : "score"), title: text }, bdi(text))))));
};
// The suite and the task's own name; a narrow screen leaves out a suite that all tasks share.
const taskName = (task) => {
  const cut = task.indexOf("/") + 1;
  const suite = task.slice(0, cut);
  const alone = index.tasks.every((other) => other.startsWith(suite));
  return [cut ? bdi(suite, { class: alone ? "suite" : "" }) : "", bdi(task.slice(cut))];
};
const drawRow = (row, at) => {
  const link = el("a", { href: hashOf({ sample: row.id }), tabindex: at === active ? "0" : "-1", "aria-label": visible(row.id) }, ...taskName(row.task));
  const scores = armColumns().map((i) => el("td", { class: `score ${scoreKind(row.scores[i])}` }, scoreText(row.scores[i])));
  return el("tr", { "aria-rowindex": at + 2, class: at === active ? "active" : "" },
    el("th", { scope: "row", class: "task", title: visible(row.id) }, link),
    el("td", { class: "length" }, tokens(row.length)),
    el("td", { class: "index" }, String(row.index)),
    ...scores,
    el("td", { class: "differ" }, DIFFERS[difference(row, armIndex())]));
};

// Rows in sight and some around them; the rest is the height of two empty rows.
const ROW = 34;
const SPARE = 12;
const spacer = () => el("tr", { "aria-hidden": "true", class: "spacer" });
let drawn = "";
const draw = (force = false) => {
  const box = byId("scroll");
  const low = Math.max(0, Math.floor(box.scrollTop / ROW) - SPARE);
  const high = Math.min(shown.length, Math.ceil((box.scrollTop + innerHeight) / ROW) + SPARE);
  const range = `${low} ${high} ${active}`;
  if (!force && range === drawn) return;
  drawn = range;
  const held = box.contains(document.activeElement) && document.activeElement !== box;
  const [top, bottom] = [spacer(), spacer()];
  top.style.height = `${low * ROW}px`;
  bottom.style.height = `${(shown.length - high) * ROW}px`;
  const body = byId("samples").tBodies[0];
  body.replaceChildren(top, ...shown.slice(low, high).map((row, i) => drawRow(row, low + i)), bottom);
  if (held) focusActive();
};
const focusActive = () => byId("samples").querySelector("tr.active a")?.focus({ preventScroll: true });

const list = () => {
  const started = performance.now();
  shown = filtered();
  active = Math.min(active, Math.max(0, shown.length - 1));
  byId("samples").setAttribute("aria-rowcount", shown.length + 1);
  drawHead();
  draw(true);
  const searched = state.q && !everything() ? "; outputs are searched in the files that are loaded" : "";
  byId("count").textContent = `${number(shown.length)} of ${number(rows.length)} samples${searched}`;
  document.documentElement.dataset.filterMs = (performance.now() - started).toFixed(1);
};

const move = (to) => {
  active = Math.max(0, Math.min(shown.length - 1, to));
  const box = byId("scroll");
  const head = byId("samples").tHead.offsetHeight;
  const top = active * ROW;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + ROW + head > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW + head - box.clientHeight;
  draw(true);
  focusActive();
};
const page = () => Math.max(1, Math.floor(byId("scroll").clientHeight / ROW) - 2);
const moves = {
  ArrowDown: () => active + 1, j: () => active + 1, ArrowUp: () => active - 1, k: () => active - 1,
  PageDown: () => active + page(), PageUp: () => active - page(), Home: () => 0, End: () => shown.length - 1,
};
const listKey = (event) => {
  if (event.key === "Enter" && !event.target.closest("a, button, summary")) {
    if (shown[active]) go({ sample: shown[active].id });
    return true;
  }
  const to = moves[event.key];
  if (!to || !shown.length) return false;
  const inside = byId("scroll").contains(document.activeElement) && document.activeElement !== byId("scroll");
  move(inside || event.key.length > 1 ? to() : active);
  return true;
};

const option = (value, text) => { const node = el("option", {}, visible(text)); node.value = value; return node; };
const fillFilter = () => {
  const lengths = [...new Set(rows.map((row) => row.length))].sort((a, b) => a - b);
  byId("task").append(option("", "all"), ...index.tasks.map((task) => option(task, task)));
  byId("length").append(option("", "all"), ...lengths.map((length) => option(String(length), tokens(length))));
  byId("arm").append(option("", "all"), ...index.arms.map((arm) => option(arm, arm)));
};
const showFilter = () => {
  for (const name of ["task", "length", "arm", "order"]) byId(name).value = state[name];
  if (byId("search").value !== state.q) byId("search").value = state.q;
  byId("differ").checked = state.differ === "1";
};
const notes = () => {
  const verdicts = index.verdicts.map((text) => el("p", { class: "note verdict" }, bdi(text)));
  byId("notes").replaceChildren(...index.notes.map((note) => el("p", { class: "warning" }, bdi(note))), ...verdicts);
  byId("header").querySelector("pre").textContent = visible(JSON.stringify(index.header, null, 1));
};
