// Pictures over the steps: training curves, how long the scheme shows, how far weights moved.

// What several runs did at the steps that any of them has: [{step, values}], in order.
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
      fill: "toself", fillcolor: faint(style.colour, 0.16), line: { width: 0 }, hoverinfo: "skip" });
  }
  found.push({ ...base, mode: xs.length > 1 ? "lines" : "markers", x: xs, y: middle, name: brief(name), text: hover,
    hoverinfo: "text", line: { color: style.colour, dash: style.dash, width: 1.8 }, marker: { color: style.colour } });
  return found;
}

const stepAxis = (axis, logarithmic) => Object.assign(axis, logarithmic ? logAxis : { rangemode: "tozero" });
// Step 0 has no place on a logarithmic axis: it is drawn at a half.
const stepPlace = (step, logarithmic) => (logarithmic && step === 0 ? 0.5 : step);
const STEP_AXES = { name: "axis", options: [["linear", "steps"], ["log", "steps, logarithmic"]], value: "linear" };

pictures.curves = {
  controls: () => [
    { name: "show", options: Object.keys(data.curves.metrics).map((m) => [m, said(m)]), value: "loss" },
    { name: "band", options: [["range", "band: range over seeds"], ["std", "band: ± std"]], value: "range" },
    STEP_AXES,
  ],
  draw(some, c, t, width, most) {
    const metric = c.show, known = curves()[metric], logarithmic = !isShare(metric), logSteps = c.axis === "log";
    const able = some.filter((run) => known.has(run.i));
    const all = panels(able, ["activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set();
    for (const panel of placed) {
      stepAxis(panel.xaxis, logSteps);
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: said(metric), standoff: 6 };
      Object.assign(panel.yaxis, logarithmic ? logAxis : { tickformat: ".0%" });
      const ends = { x: [], y: [], color: [], text: [] };
      const top = logarithmic ? ceiling(panel.runs, known) : Infinity;
      if (top < Infinity) Object.assign(panel.yaxis, { range: [floorOf(panel.runs, known, top), Math.log10(top)] });
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const points = bySteps(own.map((run) => known.get(run.i))), style = schemeStyle(scheme), hover = [];
        const xs = [], middle = [], low = [], high = [];
        for (const { step, values } of points) {
          const m = mean(values), s = deviation(values), least = Math.min(...values), largest = Math.max(...values);
          xs.push(stepPlace(step, logSteps));
          middle.push(m);
          low.push(c.band === "std" && s === s ? (logarithmic ? Math.max(m - s, least) : m - s) : least);
          high.push(c.band === "std" && s === s ? m + s : largest);
          hover.push(`${brief(scheme, 60)} · step ${step}<br>${said(metric)} ${shown(metric, m)} ` +
            `(${shown(metric, least)} to ${shown(metric, largest)}, n = ${values.length})`);
          rows.push([...panel.told(own), scheme, step, m, s, least, largest, values.length]);
        }
        traces.push(...banded(panel, scheme, style, xs, middle, low, high, hover));
        legend.add(scheme);
        for (const run of own.filter((r) => r.outcome === "diverged")) {
          const { steps, values } = known.get(run.i), at = values.findLastIndex((v) => Number.isFinite(v));
          if (at < 0) continue;
          ends.x.push(stepPlace(steps[at], logSteps)); ends.y.push(Math.min(values[at], top)); ends.color.push(style.colour);
          ends.text.push(`${brief(run.name, 60)} diverged${run.first_bad_step == null ? "" :
            ` at step ${run.first_bad_step}`}`);
        }
      }
      traces.push({ type: "scatter", mode: "markers", x: ends.x, y: ends.y, text: ends.text, hoverinfo: "text",
        xaxis: panel.x, yaxis: panel.y, cliponaxis: false, marker: { symbol: "x-thin", size: 9, line: { width: 2, color: ends.color } } });
    }
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      header: ["activation", "depth", "setting", "rate", "scheme", "step", "mean", "std", "least", "largest", "n"] };
  },
};

// Where a picture ends above: networks that diverge, or nearly do, would squeeze all others into a line.
function ceiling(some, known) {
  const largest = (run) => Math.max(0, ...finite([...known.get(run.i).values]));
  const ends = some.filter((run) => run.outcome !== "diverged").map(largest).filter((v) => v > 0);
  if (!ends.length) return Infinity;
  const middle = median(ends), calm = Math.max(...ends.filter((v) => v <= 30 * middle));
  return some.some((run) => largest(run) > 3 * calm) ? 3 * calm : Infinity;
}

function floorOf(some, known, top) {
  let least = top;
  for (const run of some) for (const v of known.get(run.i).values) if (v > 0) least = Math.min(least, v);
  return Math.log10(least) - 0.05 * Math.log10(top / least);
}

// The share of the variance of values that their group explains: the intraclass correlation of a one-way layout.
function explained(groups) {
  const some = groups.filter((group) => group.length);
  const n = some.reduce((a, group) => a + group.length, 0), k = some.length;
  if (k < 2 || n - k < 1 || some.filter((group) => group.length > 1).length < 2) return NaN;
  const all = mean(some.flat());
  const between = some.reduce((a, g) => a + g.length * (mean(g) - all) ** 2, 0) / (k - 1);
  const within = some.reduce((a, g) => { const m = mean(g); return a + g.reduce((b, v) => b + (v - m) ** 2, 0); }, 0) /
    (n - k);
  const size = (n - some.reduce((a, g) => a + g.length ** 2, 0) / n) / (k - 1);
  const total = between + (size - 1) * within;
  return total > 0 ? Math.max(0, (between - within) / total) : NaN;
}

pictures.visible = {
  controls: () => [
    { name: "show", options: Object.keys(data.curves.metrics).map((m) => [m, said(m)]),
      value: "val_loss" in data.curves.metrics ? "loss" : Object.keys(data.curves.metrics)[0] },
    { ...STEP_AXES, value: "log" },
  ],
  draw(some, c, t, width, most) {
    const metric = c.show, known = curves()[metric], logSteps = c.axis === "log";
    const able = some.filter((run) => known.has(run.i));
    const all = panels(able, ["activation", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = [];
    const depths = levels.depth.filter((d) => able.some((run) => run.depth === d));
    for (const panel of placed) {
      stepAxis(panel.xaxis, logSteps);
      Object.assign(panel.yaxis, { range: [-0.03, 1.03], tickformat: ".0%" });
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "explained by the scheme", standoff: 6 };
      for (const { values: { depth }, runs: own } of grouped(panel.runs, ["depth"])) {
        const style = orderedStyle(depths.indexOf(depth), depths.length), steps = new Map();
        for (const run of own) {
          const { steps: at, values } = known.get(run.i);
          for (let k = 0; k < at.length; k++) {
            const value = isShare(metric) ? values[k] : Math.log10(values[k]);
            if (!Number.isFinite(value)) continue;
            if (!steps.has(at[k])) steps.set(at[k], new Map());
            const groups = steps.get(at[k]);
            if (!groups.has(run.scheme)) groups.set(run.scheme, []);
            groups.get(run.scheme).push(value);
          }
        }
        const points = [...steps].sort((a, b) => a[0] - b[0])
          .map(([step, groups]) => [step, explained([...groups.values()]), groups.size])
          .filter(([, value]) => !Number.isNaN(value));
        for (const [step, value, count] of points) rows.push([...panel.told(own), depth, step, value, count]);
        if (!points.length) continue;
        if (!legend.some((entry) => entry.name === `depth ${depth}`)) legend.push({ name: `depth ${depth}`, ...style });
        traces.push({ type: "scatter", mode: points.length > 1 ? "lines" : "markers", xaxis: panel.x, yaxis: panel.y,
          x: points.map(([step]) => stepPlace(step, logSteps)), y: points.map(([, value]) => value),
          text: points.map(([step, value]) => `depth ${plain(depth)} · step ${step}<br>${percent(value)} explained`),
          hoverinfo: "text", line: { color: style.colour, width: 1.8 }, marker: { color: style.colour } });
      }
    }
    return { traces, layout, rows, of: all.length, legend,
      header: ["activation", "setting", "rate", "depth", "step", "share explained by the scheme", "schemes"],
      empty: "It takes at least two schemes with two seeds each at one depth." };
  },
};

// At least how far a run's weights are from their start, from the norms of its layers.
function moved(run) {
  const found = block(run, "weight_norm", "measured");
  if (!found || found.steps[0] !== 0) return null;
  const wide = found.indices.length, start = found.values.subarray(0, wide);
  const length = Math.sqrt(start.reduce((a, v) => a + (Number.isFinite(v) ? v * v : 0), 0));
  if (!(length > 0)) return null;
  const values = found.steps.map((_, k) => {
    let sum = 0;
    for (let l = 0; l < wide; l++) {
      const gap = found.values[k * wide + l] - start[l];
      if (Number.isFinite(start[l])) sum += gap * gap;
    }
    return Math.sqrt(sum) / length;
  });
  return { steps: found.steps, values };
}

pictures.distance = {
  controls: () => [{ ...STEP_AXES, value: "log" }],
  draw(some, c, t, width, most) {
    const series = new Map(some.map((run) => [run.i, moved(run)]));
    const able = some.filter((run) => series.get(run.i)), logSteps = c.axis === "log";
    const all = panels(able, ["activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set();
    for (const panel of placed) {
      stepAxis(panel.xaxis, logSteps);
      panel.yaxis.rangemode = "tozero";
      const top = ceiling(panel.runs, series);
      if (top < Infinity) panel.yaxis.range = [0, top / 2];
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "moved, at least", standoff: 6 };
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const points = bySteps(own.map((run) => series.get(run.i)));
        const middle = points.map((p) => median(p.values));
        const low = points.map((p) => Math.min(...p.values)), high = points.map((p) => Math.max(...p.values));
        points.forEach((p, k) => rows.push([...panel.told(own), scheme, p.step, middle[k], low[k], high[k], p.values.length]));
        traces.push(...banded(panel, scheme, schemeStyle(scheme), points.map((p) => stepPlace(p.step, logSteps)), middle,
          low, high, points.map((p, k) => `${brief(scheme, 60)} · step ${p.step}<br>${short(middle[k])}`)));
        legend.add(scheme);
      }
    }
    const left = some.length - able.length;
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      note: left ? `${left} runs are left out: their weights start at zero, or no norms were recorded.` : "",
      header: ["activation", "depth", "setting", "rate", "scheme", "step", "median", "least", "largest", "n"] };
  },
};
