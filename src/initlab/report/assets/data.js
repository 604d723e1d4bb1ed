// The page's data: decoding of columns, formats of numbers, saving of files.

const data = JSON.parse(document.getElementById("data").textContent);

function bytes(text) {
  const raw = atob(text);
  const found = new Uint8Array(raw.length);
  for (let k = 0; k < raw.length; k++) found[k] = raw.charCodeAt(k);
  return found.buffer;
}
const decodeFloats = (text) => new Float32Array(bytes(text));
const decodeIntegers = (text) => new Uint32Array(bytes(text));

const TEXTS = ["name", "sweep", "scheme", "activation", "setting", "outcome", "path", "depth", "seed"];
const NUMBERS = Object.keys(data.runs).filter((key) => Array.isArray(data.runs[key]));

// One object per run. `depth` and `seed` are texts; their order is that of `levels`.
const runs = Array.from({ length: data.runs.count }, (_, i) => {
  const run = { i };
  for (const key of TEXTS) run[key] = data.runs[key].texts[data.runs[key].codes[i]];
  for (const key of NUMBERS) run[key] = data.runs[key][i];
  run.rateText = run.rate == null ? "none" : short(run.rate);
  run.failure = data.diagnoses[i] || "";
  return run;
});

const levels = {};
for (const key of TEXTS) levels[key] = data.runs[key].texts;
levels.rateText = [...new Set(runs.map((r) => r.rate).sort((a, b) => (a == null) - (b == null) || a - b))].map((v) =>
  v == null ? "none" : short(v));
levels.rateText = [...new Set(levels.rateText)];
const rank = {};
for (const key in levels) rank[key] = new Map(levels[key].map((text, k) => [text, k]));

// ---- records of runs, decoded at first use

function lazy(make) {
  let found;
  return () => (found === undefined ? (found = make()) : found);
}

// metric -> run -> {steps, values}
const curves = lazy(() => {
  const found = {};
  for (const [metric, packed] of Object.entries(data.curves.metrics)) {
    const steps = decodeIntegers(packed.steps), values = decodeFloats(packed.values);
    found[metric] = new Map();
    let start = 0;
    packed.run.forEach((run, k) => {
      const end = start + packed.length[k];
      found[metric].set(run, { steps: steps.subarray(start, end), values: values.subarray(start, end) });
      start = end;
    });
  }
  return found;
});

// run -> [{stat, source, steps, indices, layers, values: row by row}]
const blocks = lazy(() => {
  const packed = data.layers, found = new Map();
  const [run, stat, source, steps, layers] = ["run", "stat", "source", "steps", "layers"].map((k) => decodeIntegers(packed[k]));
  const values = decodeFloats(packed.values);
  let start = 0;
  for (let k = 0; k < run.length; k++) {
    const at = packed.grids[steps[k]][0], [indices, names] = packed.grids[layers[k]];
    const end = start + at.length * indices.length;
    const block = { stat: packed.stats[stat[k]], source: source[k] ? "predicted" : "measured", steps: at, indices,
      layers: names, values: values.subarray(start, end) };
    if (!found.has(run[k])) found.set(run[k], []);
    found.get(run[k]).push(block);
    start = end;
  }
  return found;
});

function block(run, stat, source) {
  return (blocks().get(run.i) || []).find((b) => b.stat === stat && b.source === source);
}

// run -> [histogram]; `heights` are shares of the largest bucket.
const histograms = lazy(() => {
  const packed = data.histograms, found = new Map();
  if (!packed.run) return found;
  const read = {};
  for (const key of ["run", "kind", "step", "index", "nonfinite", "layer", "places"]) read[key] = decodeIntegers(packed[key]);
  for (const key of ["low", "high", "num", "rms", "largest"]) read[key] = decodeFloats(packed[key]);
  for (let k = 0; k < read.run.length; k++) {
    const one = { k };
    for (const key in read) one[key] = read[key][k];
    one.kind = packed.kinds[one.kind] || "postactivation";
    one.layer = packed.layers[one.layer];
    if (!found.has(one.run)) found.set(one.run, []);
    found.get(one.run).push(one);
  }
  return found;
});

const CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const VALUE_OF = new Uint8Array(128);
for (let k = 0; k < 64; k++) VALUE_OF[CHARACTERS.charCodeAt(k)] = k;

function counts(histogram) {
  const text = data.histograms.counts, start = 128 * histogram.k;
  return Array.from({ length: 64 }, (_, b) => {
    const level = 64 * VALUE_OF[text.charCodeAt(start + 2 * b)] + VALUE_OF[text.charCodeAt(start + 2 * b + 1)];
    return histogram.largest * (level / 4095) ** 2;
  });
}

// ---- numbers

// Round as the tables that `initlab` prints do (system/numbers.py): halves away from zero. Three further digits decide
// what is a half, so that the rounding error of a mean has no effect.
function rounded(value, decimals) {
  const units = Math.round(Number(`${Math.abs(value).toFixed(decimals + 3)}e${decimals}`));
  return Math.sign(value) * Number(`${units}e-${decimals}`);
}

function short(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [first, power] = value.toExponential().split("e").map(Number);
  if (size >= 1e5 || size < 1e-3) {
    const mantissa = Number(`${rounded(first, digits - 1)}e${power}`);
    return mantissa.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(rounded(value, Math.max(digits - 1 - power, 0)));
}

const isShare = (metric) => /accuracy|fraction|share/.test(metric);
// Adding 0 turns -0 into 0.
const points = (value, digits = 1) => (value == null || Number.isNaN(value) ? "" :
  (rounded(100 * value, digits) + 0).toFixed(digits));
const percent = (value, digits = 1) => (value == null || Number.isNaN(value) ? "" : `${points(value, digits)} %`);
const formatMetric = (metric, value) => (isShare(metric) ? percent(value) : short(value));
const label = (name) => name.replace(/_/g, " ").replace(/^val /, "validation ");
const finite = (values) => values.filter((v) => v != null && Number.isFinite(v));
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function deviation(values) {
  const m = mean(values);
  return values.length < 2 ? NaN : Math.sqrt(values.reduce((a, b) => a + (b - m) ** 2, 0) / (values.length - 1));
}

function median(values) {
  if (!values.length) return NaN;
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// ---- files

// A spreadsheet runs a text cell that starts with one of these; numbers stay numbers.
function csvCell(value) {
  if (value == null || (typeof value === "number" && Number.isNaN(value))) return "";
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  let text = String(value);
  if (/^[=+\-@\t\r']/.test(text) && (text.trim() === "" || Number.isNaN(Number(text)))) text = `'${text}`;
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}
const csvText = (header, rows) => [header, ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---- elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
