// Where the page is: the hash says it all, so that links, reload and the back button work.
const KEYS = Object.keys(state);
const hashOf = (changes) => {
  const next = { ...state, ...changes };
  const parts = KEYS.filter((key) => next[key]).map((key) => `${key}=${encodeURIComponent(next[key])}`);
  return `#${parts.join("&")}`;
};
const read = () => {
  const values = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  for (const key of KEYS) state[key] = values.get(key) ?? "";
};
const go = (changes, replace = false) => {
  const hash = hashOf(changes);
  if (replace) location.replace(hash);
  else location.hash = hash;
};
const problem = (text) => {
  byId("problem").hidden = !text;
  byId("problem").textContent = visible(text ?? "");
};

// Data files: scripts that call back with their text; no other script can be added.
const FILES = document.body.dataset.files;
const policy = window.trustedTypes?.createPolicy("anchoreval-data", {
  createScriptURL: (address) => {
    if (!/^data\/[0-9a-f]{12}\/(index|\d+)\.js$/.test(address)) throw new TypeError("not a data file");
    return address;
  },
});
const waiting = new Map();
window.anchorevalData = (name, text) => waiting.get(name)?.(text);
const fetched = (name) => new Promise((resolve, reject) => {
  const node = document.createElement("script");
  const address = `${FILES}${name}.js`;
  const done = (end, value) => { waiting.delete(name); node.remove(); end(value); };
  waiting.set(name, (text) => done(resolve, text));
  node.addEventListener("error", () => done(reject, new Error(`${address} is not there: the page was written again (reload it), or its folder is not whole`)));
  node.addEventListener("load", () => { if (waiting.has(name)) done(reject, new Error(`${address} holds no data`)); });
  node.src = policy ? policy.createScriptURL(address) : address;
  document.head.append(node);
});
const fileName = (at) => String(at).padStart(3, "0");

// Records: kept once loaded, so that their outputs can be searched.
const recordFiles = new Map();
const records = (file) => {
  if (!recordFiles.has(file)) {
    const loading = fetched(fileName(file)).then(parseRecords);
    loading.catch(() => recordFiles.delete(file));
    recordFiles.set(file, loading);
  }
  return recordFiles.get(file);
};
const parseRecords = (text) => {
  const lines = new Map();
  for (const line of text.split("\n")) {
    const tab = line.indexOf("\t");
    const raw = line.slice(tab + 1);
    const record = JSON.parse(raw);
    if (!lines.has(record.sample_id)) lines.set(record.sample_id, []);
    lines.get(record.sample_id).push({ number: Number(line.slice(0, tab)), raw, record });
  }
  for (const [id, own] of lines) {
    const row = byIdOf.get(id);
    if (row) row.text = own.map(({ record }) => record.output.toLowerCase()).join("\n");
  }
  filesLoaded += 1;
  offerAll();
  return lines;
};
let filesLoaded = 0;
let fileCount = 0;
const everything = () => filesLoaded >= fileCount;
const offerAll = () => {
  byId("load").hidden = everything();
  byId("load").textContent = `search all outputs (loads ${counted(fileCount - filesLoaded, "file")})`;
};
const loadAll = async () => {
  byId("load").disabled = true;
  try {
    for (let file = 0; file < fileCount; file += 1) await records(file);
    if (state.q) list();
  } catch (error) { problem(error.message); }
  byId("load").disabled = false;
};

// Prompts: the last few files.
const promptFiles = new Map();
const prompts = async (file) => {
  if (!promptFiles.has(file)) {
    const text = await fetched(fileName(file));
    promptFiles.set(file, new Map(text.split("\n").map((line) => { const own = JSON.parse(line); return [own.id, own]; })));
    if (promptFiles.size > 8) promptFiles.delete(promptFiles.keys().next().value);
  }
  return promptFiles.get(file);
};

const byIdOf = new Map();
let listTop = 0;
let last = "";
const route = () => {
  const was = state.sample;
  if (!was) listTop = byId("scroll").scrollTop;
  read();
  problem("");
  const filter = hashOf({ sample: "" });
  byId("list").hidden = Boolean(state.sample);
  byId("sample").hidden = !state.sample;
  showFilter();
  if (filter !== last) {
    if (last) active = 0;
    if (last) byId("scroll").scrollTop = listTop = 0;
    last = filter;
  }
  list();
  if (state.sample) {
    const at = shown.findIndex((row) => row.id === state.sample);
    if (at >= 0) active = at;
    sample();
  } else {
    byId("scroll").scrollTop = listTop;
    if (was) move(active);
  }
};

const key = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest("input[type=search], select, textarea");
  if (event.key === "Escape" && typing) { typing.blur(); return; }
  if (typing || (event.target.closest("pre") && event.key.length > 1 && event.key !== "Escape")) return;
  if (event.key === "/" && !state.sample) { event.preventDefault(); byId("search").focus(); return; }
  if (state.sample ? sampleKey(event) : listKey(event)) event.preventDefault();
};

const listen = () => {
  for (const name of ["task", "length", "arm", "order"]) byId(name).addEventListener("change", () => go({ [name]: byId(name).value }));
  byId("differ").addEventListener("change", () => go({ differ: byId("differ").checked ? "1" : "" }));
  let timer = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => go({ q: byId("search").value }, true), 120);
  });
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("load").addEventListener("click", loadAll);
  byId("scroll").addEventListener("scroll", () => draw(), { passive: true });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  addEventListener("resize", () => draw(true));
  addEventListener("hashchange", route);
  document.addEventListener("keydown", key);
  const themes = ["auto", "light", "dark"];
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    root.dataset.theme = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % 3];
    byId("theme").textContent = `Theme: ${root.dataset.theme}`;
  });
};

fetched("index").then((text) => {
  index = JSON.parse(text);
  rows = index.rows.map(asRow);
  rows.forEach((row) => byIdOf.set(row.id, row));
  fileCount = rows.reduce((most, row) => Math.max(most, row.file + 1), 0);
  fillFilter();
  notes();
  offerAll();
  listen();
  route();
  document.documentElement.dataset.ready = performance.now().toFixed(0);
}).catch((error) => {
  byId("count").textContent = "";
  problem(error.message);
});
