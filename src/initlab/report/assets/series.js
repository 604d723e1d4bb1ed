// Shared parts of figures: outcomes, lines with bands over steps, statistics of layers.

// name -> { caption, controls(runs), draw(runs, choices, theme, width, most), ignoreBest }; one file sets each.
// `controls` returns selects [{ name, options: [[value, text]], value }], `draw` { traces, layout, header, rows (of the CSV
// file), legend, of (number of panels), note, empty }.
const figures = {};

const METRICS = ["test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss"]
  .filter((metric) => runs.some((run) => run[metric] != null));

function tally(some) {
  const found = {};
  for (const run of some) found[run.outcome] = (found[run.outcome] || 0) + 1;
  return Object.entries(found).sort((a, b) => b[1] - a[1] || OUTCOMES.indexOf(a[0]) - OUTCOMES.indexOf(b[0]));
}

const tallied = (some) => tally(some).map(([outcome, n]) => `${n} ${outcome}`).join(", ");

function schemeLegend(some) {
  return levels.scheme.filter((scheme) => some.has(scheme)).map((scheme) => ({ name: scheme, ...schemeStyle(scheme) }));
}

// The values of several runs at every step that any of them has: [{step, values}], in order.
function bySteps(series) {
  const found = new Map();
  for (const { steps, values } of series) {
    for (let k = 0; k < steps.length; k++) {
      if (!Number.isFinite(values[k])) continue;
      if (!found.has(steps[k])) found.set(steps[k], []);
      found.get(steps[k]).push(values[k]);
    }
  }
  return [...found].sort((a, b) => a[0] - b[0]).map(([step, values]) => ({ step, values }));
}

// A band and a line: traces for one group in one panel.
function banded(panel, name, style, xs, middle, low, high, hover) {
  const base = { type: "scatter", xaxis: panel.x, yaxis: panel.y };
  const found = [];
  if (low.some((v, k) => v !== high[k])) {
    found.push({ ...base, mode: "lines", x: [...xs, ...[...xs].reverse()], y: [...high, ...[...low].reverse()],
      fill: "toself", fillcolor: withAlpha(style.color, 0.16), line: { width: 0 }, hoverinfo: "skip" });
  }
  found.push({ ...base, mode: xs.length > 1 ? "lines" : "markers", x: xs, y: middle, name: shortLabel(name), text: hover,
    hoverinfo: "text", line: { color: style.color, dash: style.dash, width: 1.8 }, marker: { color: style.color } });
  return found;
}

const stepAxis = (axis, logarithmic) => Object.assign(axis, logarithmic ? logAxis : { rangemode: "tozero" });

// A logarithmic axis has no 0: step 0 is drawn at a half.
const stepPlace = (step, logarithmic) => (logarithmic && step === 0 ? 0.5 : step);

const STEP_AXES = { name: "axis", options: [["linear", "steps"], ["log", "steps, logarithmic"]], value: "linear" };

// The top of an axis: with networks that diverge, or nearly do, all others would be a flat line.
function axisTop(some, known) {
  const largest = (run) => Math.max(0, ...finite([...known.get(run.i).values]));
  const ends = some.filter((run) => run.outcome !== "diverged").map(largest).filter((v) => v > 0);
  if (!ends.length) return Infinity;
  const middle = median(ends), calm = Math.max(...ends.filter((v) => v <= 30 * middle));
  return some.some((run) => largest(run) > 3 * calm) ? 3 * calm : Infinity;
}

const FRACTIONS = /fraction|^c$|^mean$|nonfinite|rank|duplicate/;

const STAT_NAMES = { q: "q (preactivations, second moment)", c: "c (correlation of two inputs)",
  grad_mean_square: "gradient at the preactivations, mean square", grad_norm: "gradient norm of the weights" };
const statName = (stat) => STAT_NAMES[stat] || label(stat);

function statsOf(sources) {
  const found = new Set();
  for (const list of blocks().values()) for (const b of list) if (sources.includes(b.source)) found.add(b.stat);
  return data.layers.stats.filter((stat) => found.has(stat));
}

function stepsOf(lists) {
  const found = new Set();
  for (const list of lists) for (const step of list) found.add(step);
  return [...found].sort((a, b) => a - b);
}
