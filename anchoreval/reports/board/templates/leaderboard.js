// Filters: rows whose model holds the text, of the chosen arm and suite.
const rows = [...one("#board").tBodies[0].rows].map((row) => [row, row.cells[0].textContent.toLowerCase()]);
const wanted = ["#find-model", "#find-arm", "#find-suite"].map((name) => one(name));
const filter = () => {
  const [model, arm, suite] = wanted.map((field) => field.value.trim().toLowerCase());
  let shown = 0;
  for (const [row, text] of rows) {
    row.hidden = !text.includes(model) || (arm && row.dataset.arm !== arm) || (suite && row.dataset.suite !== suite);
    shown += !row.hidden;
  }
  one("#count").textContent = `${shown} of ${rows.length} rows`;
};
for (const field of wanted) field.addEventListener("input", filter);
one("#filters").hidden = false;

// Maps: drawn from the chosen model's data block.
const shared = JSON.parse(one("#shared").textContent);
const [groupBox, kindBox, baseBox] = ["#map-group", "#map-kind", "#map-base"].map((name) => one(name));
const number = (tenths, signed) => {
  if (tenths === null) return "–";
  return (signed && tenths > 0 ? "+" : "") + (tenths / 10).toFixed(1);
};
const between = (low, high, signed) => (low === null || high === null ? "" : ` [${number(low, signed)}, ${number(high, signed)}]`);
const span = (length) => length.toLocaleString("en-US");
const make = (name, text, values = {}) => {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
};
const address = (run, task, length, arm, differ) => {
  const [folder, viewer] = shared.runs[run];
  if (!viewer) return `${folder}/records.jsonl`;
  const parts = [task && `task=${task}`, `length=${length}`, arm && `arm=${arm}`, differ && "differ=1"];
  return `${folder}/view/index.html#${parts.filter(Boolean).join("&")}`;
};
const swapped = (said) => said.replace(/^(worse|better)/, (word) => (word === "worse" ? "better" : "worse"));
const minus = (value) => (value === null ? null : 0 - value);

const scoreCell = (map, group, [row, length, arm, mean, low, high, scored, asked, logprob, run, wrong, lost]) => {
  const [name, task] = map.rows[row];
  const said = mean === null ? "no score" : number(mean) + between(low, high);
  const more = logprob === null ? "" : `, log-probability ${logprob.toFixed(3)} per token`;
  return {
    text: number(mean) + (scored < asked && mean !== null ? "*" : ""),
    style: mean === null ? "none" : `s${Math.round(mean / 100)}`,
    label: `${name} at ${span(length)}, ${group.arms[arm][0]}: ${said}, ${scored} of ${asked} scored${lost ? `, ${number(wrong)} with the lost as wrong, ${lost}` : ""}${more}`,
    href: address(run, task, length, group.arms[arm][1], false),
  };
};
const gapCell = (map, group, base, [row, length, arm, other, size, low, high, pairs, out, p, detectable, said, run, told, same, few, fixed]) => {
  const turned = arm === base;
  const [name, task] = map.rows[row];
  const shown = turned ? other : arm;
  const [value, from, to, words] = turned ? [minus(size), minus(high), minus(low), swapped(fixed ?? said)] : [size, low, high, said];
  const step = value === null ? 0 : told ? Math.max(1, Math.min(5, Math.round((5 * Math.abs(value)) / 10 / map.scale))) : 1;
  const alike = same === null || !pairs ? "" : ` (${span(same)} of the same output)`;
  const rest = [`${span(pairs)} pair${pairs === 1 ? "" : "s"}${alike}`, out, p, detectable !== null && `detects ${number(detectable)}`];
  return {
    text: number(value, true) + (out && value !== null ? "*" : ""),
    style: (value === null ? "none" : value === 0 ? "z0" : `${value < 0 ? "n" : "p"}${step}`) + (told ? " strong" : ""),
    label: `${name} at ${span(length)}, ${group.arms[shown][0]} minus ${group.arms[base][0]}: ${words}${value === null ? "" : `, ${number(value, true)}${few ? "" : between(from, to, true)}`}, ${rest.filter(Boolean).join(", ")}`,
    href: address(run, task, length, group.arms[shown][1], true),
  };
};
const heat = (title, map, kind, cells) => {
  const region = make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, heat map` });
  const table = make("table", null, { class: "heat" });
  const head = make("tr", null);
  head.append(make("th", kind === "tasks" ? "task" : "depth", { scope: "col" }));
  for (const length of shared.lengths) head.append(make("th", span(length), { scope: "col" }));
  const top = make("thead", null), body = make("tbody", null);
  top.append(head);
  map.rows.forEach(([name], row) => {
    const line = make("tr", null), label = make("th", null, { scope: "row" });
    label.append(make("bdi", name));
    line.append(label);
    for (const length of shared.lengths) {
      const cell = cells.get(`${row} ${length}`);
      const field = make("td", cell ? null : "–", { class: cell ? cell.style : "none" });
      if (cell) field.append(make("a", cell.text, { href: cell.href, "aria-label": cell.label }));
      line.append(field);
    }
    body.append(line);
  });
  table.append(make("caption", title), top, body);
  region.append(table);
  return region;
};
const draw = () => {
  const group = JSON.parse(one(`#g${groupBox.value}`).textContent);
  const kind = kindBox.value, map = group[kind], base = baseBox.value === "" ? null : Number(baseBox.value);
  const found = group.arms.map(() => new Map());
  if (base === null) for (const mean of map.means) found[mean[2]].set(`${mean[0]} ${mean[1]}`, scoreCell(map, group, mean));
  else {
    for (const gap of map.gaps) {
      if (gap[2] !== base && gap[3] !== base) continue;
      found[gap[2] === base ? gap[3] : gap[2]].set(`${gap[0]} ${gap[1]}`, gapCell(map, group, base, gap));
    }
  }
  const blocks = group.arms.flatMap(([name], arm) => {
    if (!found[arm].size) return [];
    const block = make("div", null, { class: "map" });
    block.append(heat(base === null ? name : `${name} minus ${group.arms[base][0]}`, map, kind, found[arm]));
    return [block];
  });
  if (!blocks.length) blocks.push(make("p", base === null ? "No samples here." : "No pairs with this arm here.", { class: "note" }));
  one("#maps").replaceChildren(...blocks);
  one("#legend-scores").hidden = base !== null;
  one("#legend-gaps").hidden = base === null;
  one("#depth-note").hidden = kind !== "depths";
  one("#scale").textContent = map.scale;
};
const choose = () => {
  const group = JSON.parse(one(`#g${groupBox.value}`).textContent);
  const kept = baseBox.selectedOptions[0]?.textContent;
  const options = [make("option", "scores", { value: "" })];
  if (group.arms.length > 1) group.arms.forEach(([name], arm) => options.push(make("option", `difference to ${name}`, { value: arm })));
  baseBox.replaceChildren(...options);
  const same = options.find((option) => option.textContent === kept);
  if (same) same.selected = true;
  draw();
};
if (groupBox.options.length) {
  groupBox.addEventListener("change", choose);
  kindBox.addEventListener("change", draw);
  baseBox.addEventListener("change", draw);
  one("#controls").hidden = false;
  choose();
}
