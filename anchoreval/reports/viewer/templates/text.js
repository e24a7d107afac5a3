// Text of records on the page: only ever as text nodes, with marks that hide or reorder spelled out.
const byId = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};

// As board/words.py: control characters, zero-width and bidirectional marks, line separators, lone surrogates.
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]/gu;
const visible = (text) => text.replace(UNSEEN, (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const bdi = (text, attributes = {}) => el("bdi", attributes, visible(String(text)));

const number = (value) => value.toLocaleString("en-US");
const tokens = (length) => (length === 0 ? "natural" : number(length)); // 0: prompts are as long as they are
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const NONE = "–";
const percent = (score) => (score === null ? NONE : (100 * score).toFixed(1).replace(/\.0$/, ""));
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1");

// A cut never falls inside a surrogate pair.
const whole = (text, at) => {
  const code = text.charCodeAt(at);
  const before = text.charCodeAt(at - 1);
  return code >= 0xdc00 && code <= 0xdfff && before >= 0xd800 && before <= 0xdbff ? at + 1 : at;
};

// Pieces of text[start, end) as nodes: marks are [from, to, class, title], sorted; one of no width stands between two
// characters. What overlaps an earlier mark is shown once.
const marked = (text, start, end, marks) => {
  const nodes = [];
  let at = start;
  for (const [from, to, kind, title] of marks) {
    if (from < at || from >= end) continue;
    if (from > at) nodes.push(visible(text.slice(at, from)));
    at = Math.min(to, end);
    nodes.push(el("mark", { class: kind, title, tabindex: "-1" }, visible(text.slice(from, at))));
  }
  if (at < end) nodes.push(visible(text.slice(at, end)));
  return nodes;
};

// Text that may be very long: the parts around its ends and its marks, the rest behind buttons.
const FOLD = 24000;
const AROUND = 3000;
const folded = (text, start, end, marks) => {
  if (end - start <= FOLD) return marked(text, start, end, marks);
  const spots = [start, end, ...marks.filter(([from]) => from >= start && from < end).map(([from]) => from)];
  const keep = [];
  for (const spot of spots.sort((a, b) => a - b)) {
    const low = whole(text, Math.max(start, spot - AROUND));
    const high = whole(text, Math.min(end, spot + AROUND));
    const last = keep.at(-1);
    if (last && low - last[1] < AROUND) last[1] = Math.max(last[1], high);
    else keep.push([low, high]);
  }
  const nodes = [];
  keep.forEach(([low, high], i) => {
    if (i) nodes.push(gap(text, keep[i - 1][1], low));
    nodes.push(...marked(text, low, high, marks));
  });
  return nodes;
};
const gap = (text, low, high) => {
  const button = el("button", { type: "button", class: "gap" }, `show ${number(high - low)} more characters`);
  button.addEventListener("click", () => {
    const step = whole(text, Math.min(high, low + 200000));
    const shown = document.createTextNode(visible(text.slice(low, step)));
    button.replaceWith(shown, ...(step < high ? [gap(text, step, high)] : []));
  });
  return button;
};

// Where a reference stands in the prompt, as whole words where it begins or ends with a letter or digit.
const MARKS = 400;
const WORD = /[\p{L}\p{N}_]/u;
const found = (text, reference) => {
  const spots = [];
  if (!reference.trim()) return spots;
  const [head, tail] = [WORD.test(reference[0]), WORD.test(reference.at(-1))];
  for (let at = text.indexOf(reference); at >= 0 && spots.length < MARKS; at = text.indexOf(reference, at + reference.length)) {
    const end = at + reference.length;
    if (!(head && at && WORD.test(text[at - 1])) && !(tail && end < text.length && WORD.test(text[end]))) spots.push([at, end]);
  }
  return spots;
};

// The number of characters that two texts share at their start.
const shared = (a, b) => {
  const most = Math.min(a.length, b.length);
  let at = 0;
  while (at < most && a.charCodeAt(at) === b.charCodeAt(at)) at += 1;
  return at < most && whole(a, at) !== at ? at - 1 : at;
};
