// One sample: what every arm answered, the prompt with its marks, facts, the lines as they are on disk.
const sample = async () => {
  const wanted = state.sample;
  const row = byIdOf.get(wanted);
  byId("name").replaceChildren(bdi(wanted));
  byId("up").href = hashOf({ sample: "" });
  const at = shown.indexOf(row);
  byId("place").textContent = at < 0 ? "not in the filtered list" : `${number(at + 1)} of ${number(shown.length)}`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at + 1 >= shown.length;
  const body = byId("body");
  delete body.dataset.sample;
  if (!row) { body.replaceChildren(); problem(`no sample ${wanted} in this run`); return; }
  try {
    const lines = (await records(row.file)).get(row.id);
    const prompt = row.prompt < 0 ? null : (await prompts(row.prompt)).get(row.id);
    if (state.sample !== wanted) return;
    body.replaceChildren(...sampleParts(row, lines, prompt));
    body.dataset.sample = wanted;
    byId("name").focus({ preventScroll: true });
    scrollTo(0, 0);
  } catch (error) {
    if (state.sample === wanted) { body.replaceChildren(); problem(error.message); }
  }
};
const step = (by) => {
  const next = shown[shown.indexOf(byIdOf.get(state.sample)) + by];
  if (next) go({ sample: next.id });
};
const sampleKey = (event) => {
  if (event.key === "Escape") { go({ sample: "" }); return true; }
  if (event.key === "j" || event.key === "ArrowRight") { step(1); return true; }
  if (event.key === "k" || event.key === "ArrowLeft") { step(-1); return true; }
  if (event.key === "n") { nextMark(); return true; }
  return false;
};
const nextMark = () => {
  const all = [...document.querySelectorAll("#prompt mark")];
  const mark = all[(all.indexOf(document.activeElement) + 1) % all.length];
  mark?.focus();
  mark?.scrollIntoView({ block: "center" });
};

const section = (id, title, ...children) => el("section", { id, "aria-labelledby": `${id}-title` }, el("h3", { id: `${id}-title` }, title), ...children);
const sampleParts = (row, lines, prompt) => {
  const answers = index.arms.flatMap((arm) => lines.filter((line) => line.record.arm === arm).slice(-1));
  const first = answers[0].record;
  const hashes = new Set(answers.map(({ record }) => record.prompt_sha256));
  return [
    hashes.size > 1 ? el("p", { class: "warning" }, `The arms answered ${hashes.size} different prompts: this sample is not paired.`) : null,
    section("references", "References", references(first.references)),
    section("answers", "Outputs", el("div", { class: "cards" }, ...answers.map(({ record }) => answer(record, first, prompt)))),
    section("prompt", "Prompt", ...(prompt ? promptParts(prompt, first) : [el("p", { class: "warning" }, bdi(reason(index.reasons[-1 - row.prompt])))])),
    section("facts", "Facts", facts(first)),
    section("raw", "Records", ...lines.flatMap(rawLine)),
  ].filter((part) => part !== null);
};
// The command in a reason names the folder that this page is in.
const reason = (text) => text.replace("view RUN", `view ${decodeURIComponent(location.pathname).replace(/\/view\/index\.html$/, "")}`);
const references = (all) => {
  if (!all.length) return el("p", { class: "note" }, "none");
  const most = all.slice(0, 200);
  const items = most.map((one) => el("li", { class: "chip" }, el("bdi", {}, ...folded(one, 0, one.length, []))));
  if (all.length > most.length) items.push(el("li", {}, `and ${number(all.length - most.length)} more`));
  return el("ul", { class: "chips" }, ...items);
};

const perToken = (record) => (record.reference_logprob === null || !record.reference_tokens ? null : record.reference_logprob / record.reference_tokens);
const answer = (record, first, prompt) => {
  const value = perToken(record);
  const base = perToken(first);
  const at = record === first || record.output === first.output ? null : shared(record.output, first.output);
  const became = !record.outcome || record.outcome === "answered" ? [] : [record.outcome.replaceAll("_", " ")];
  const said = [...became, counted(record.output_tokens, "token"), `ended by ${record.finish}`, `${record.seconds} s`];
  const versus = value === null || base === null || record === first ? "" : `, ${signed(value - base, 4)} against ${first.arm}`;
  return el("article", { class: "card" },
    el("h4", {}, bdi(record.arm), " ", el("b", { class: scoreKind(record.score) }, record.score === null ? "no score" : percent(record.score))),
    el("p", { class: "note" }, bdi(said.join(", "))),
    value === null ? null : el("p", { class: "note" }, bdi(`reference log-probability ${signed(value, 4)} per token (${signed(record.reference_logprob, 3)} over ${number(record.reference_tokens)})${versus}`)),
    record.why ? el("p", { class: "note why" }, bdi(record.why)) : null,
    ...reasoning(record),
    record === first ? null : el("p", { class: "parts" }, bdi(divergence(record, first, at, prompt))),
    el("pre", { tabindex: "0", "aria-label": visible(`Output of ${record.arm}`), class: record.output ? "" : "empty" }, ...outputParts(record.output, at)));
};
// Of a sample that is asked in two steps: what was said first, from which the second prompt was made.
const reasoning = (record) => {
  const { reasoning: text, reasoning_tokens: tokens, reasoning_finish: end } = record.facts;
  if (typeof text !== "string" || typeof tokens !== "number") return [];
  const said = `first step: ${counted(tokens, "token")}, ended by ${end}; the answer below is to the second prompt`;
  return [
    el("p", { class: "note" }, bdi(said)),
    el("pre", { tabindex: "0", "aria-label": visible(`First step of ${record.arm}`), class: text ? "first-step" : "empty first-step" }, ...(text ? folded(text, 0, text.length, []) : ["(empty)"])),
  ];
};
const divergence = (record, first, at, prompt) => {
  if (at === null) return `same output as ${first.arm}`;
  const token = prompt?.tokens?.[record.arm];
  const quoted = (text) => (text === null ? "the end" : `“${text}”`);
  const where = token ? `, token ${number(token[0] + 1)} of the text: ${quoted(token[1])} where ${first.arm} has ${quoted(token[2])}` : "";
  return `parts from ${first.arm} at character ${number(at + 1)}${where}`;
};
const outputParts = (text, at) => {
  if (!text) return ["(empty)"];
  if (at === null) return folded(text, 0, text.length, []);
  if (at >= text.length) return [...folded(text, 0, text.length, []), el("mark", { class: "parting", title: "ends here" }, "⟨end⟩")];
  const end = whole(text, Math.min(text.length, at + Math.max(1, text.slice(at, at + 24).search(/(?!^)\s|$/))));
  return folded(text, 0, text.length, [[at, end, "parting", "parts here"]]);
};

const promptParts = (prompt, record) => {
  const text = prompt.segments.map(([, own]) => own).join("");
  const needles = (prompt.needles ?? []).map((at, i) => [at, at, "needle", `needle ${i + 1}`]);
  const spots = record.references.slice(0, 200).flatMap((one) => found(text, one).map(([from, to]) => [from, to, "reference", "reference"]));
  const marks = [...needles, ...spots.slice(0, MARKS)].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let start = 0;
  let documents = 0;
  const blocks = prompt.segments.map(([role, own]) => {
    const end = start + own.length;
    const isDocument = role === "document" || role === "line"; // each line of a haystack is a document
    documents += isDocument;
    const label = isDocument ? `${role} ${documents}` : role.replace("_", " ");
    const kind = isDocument ? `document d${documents % 4}` : role;
    const block = el("div", { class: `segment ${kind}`, role: "group", "aria-label": label }, el("span", { class: "role" }, label),
      el("div", { class: "text" }, ...folded(text, start, end, marks)));
    const part = el("i", { class: kind });
    part.style.flexGrow = own.length;
    start = end;
    return [block, part];
  });
  const ticks = marks.map(([at, , kind]) => {
    const tick = el("b", { class: kind });
    tick.style.left = `${(100 * at / Math.max(1, text.length)).toFixed(3)}%`;
    return tick;
  });
  const times = `${spots.length > MARKS ? "over " : ""}${counted(Math.min(spots.length, MARKS), "time")}`;
  const said = `${number(text.length)} characters, ${number(record.prompt_tokens)} tokens; ${counted(documents, "document")}; references found ${times}; ${counted(needles.length, "needle")}`;
  return [
    el("p", { class: "note" }, `Made again from the run's header; SHA-256 as recorded. ${said}.`),
    el("div", { class: "strip", role: "img", "aria-label": said }, ...blocks.map(([, part]) => part), ...ticks),
    el("div", { id: "text", tabindex: "0", role: "region", "aria-label": "Text of the prompt" }, ...blocks.map(([block]) => block)),
  ];
};

const facts = (record) => {
  const pairs = [["prompt_sha256", record.prompt_sha256], ["prompt_tokens", number(record.prompt_tokens)],
    ...Object.entries(record.facts).filter(([name]) => name !== "reasoning").map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])];
  return el("dl", {}, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, bdi(name)), el("dd", {}, el("bdi", {}, ...folded(value, 0, value.length, []))))));
};
const rawLine = ({ number: line, raw, record }) => [
  el("h4", {}, bdi(record.arm), ` · line ${number(line)} of records.jsonl`),
  el("pre", { tabindex: "0", class: "line", "aria-label": visible(`Record of ${record.arm}`) }, ...folded(raw, 0, raw.length, [])),
];
