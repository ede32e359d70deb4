// What is shown. It stands in the address's hash, so that a link keeps it: #engine=onnx&sort=-step_s

const data = JSON.parse(document.getElementById("data").textContent);
const DEFAULTS = {
  find: "", engine: "", scheme: "", job: "0", all: "", sort: "", across: "", up: "", share: "",
  picture: "0", chosen: "", against: "", view: "", gain: "",
};
const state = { ...DEFAULTS };
const listeners = [];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const byId = (id) => document.getElementById(id);

function readHash() {
  const found = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(DEFAULTS)) state[key] = found.get(key) ?? DEFAULTS[key];
  if (!(Number(state.job) in data.jobs)) state.job = "0";
  return found;
}

function writeHash() {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) if (value !== DEFAULTS[key]) kept.set(key, value);
  const hash = kept.toString();
  if (location.hash.slice(1) !== hash) history.replaceState(null, "", hash ? `#${hash}` : location.pathname);
}

// Only those who read a changed key draw again: a typed letter must not redraw the pictures.
function change(patch) {
  const changed = Object.keys(patch).filter((key) => state[key] !== patch[key]);
  if (!changed.length) return;
  Object.assign(state, patch);
  writeHash();
  for (const [keys, listener] of listeners) if (keys.some((key) => changed.includes(key))) listener();
}

const onChange = (keys, listener) => listeners.push([keys, listener]);
const FILTERS = ["find", "engine", "scheme", "job"];
const job = () => Number(state.job);

function passes(contestant) {
  if (state.engine && contestant.engine !== state.engine) return false;
  if (state.scheme && contestant.scheme !== state.scheme) return false;
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => contestant.text.includes(word));
}

// The rows of the chosen job that pass the filters, each with its contestant.
function shown() {
  return data.rows
    .filter((row) => row.job === job())
    .map((row) => ({ ...row, who: data.contestants[row.contestant] }))
    .filter((row) => passes(row.who));
}

const median = (row, id) => (row.figures[id] ? row.figures[id][0] : null);
const measured = (id) => shown().filter((row) => median(row, id) !== null);

function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === Infinity) return "equal";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 1) return value.toFixed(2);
  return size === 0 ? "0" : value.toPrecision(2);
}

const withUnit = (value, unit) => (unit ? `${number(value)} ${unit}` : number(value));

function spreadText(row, id) {
  const [middle, least, most] = row.figures[id];
  const unit = data.measures[id].unit;
  return least === most ? withUnit(middle, unit) : `${withUnit(middle, unit)} (${number(least)}–${number(most)})`;
}

// Names often differ at their end, so what goes is the middle.
function shorten(name, most) {
  const half = Math.floor((most - 1) / 2);
  return name.length > most ? `${name.slice(0, most - 1 - half).trimEnd()}…${name.slice(-half).trimStart()}` : name;
}

function groupBy(items, key) {
  const found = new Map();
  for (const item of items) {
    const name = key(item);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(item);
  }
  return found;
}
