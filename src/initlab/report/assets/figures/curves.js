// Training curves.

figures.curves = {
  caption: "Lines are means over seeds, bands the whole range or ± one standard deviation. A cross is where a " +
    "network diverged; from there on the mean is over the others. Long curves are thinned: a point is the " +
    "mean of the steps since the point before.",
  controls: () => [
    { name: "show", options: Object.keys(data.curves.metrics).map((m) => [m, label(m)]), value: "loss" },
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
      if (panel.left) panel.yaxis.title = { text: label(metric), standoff: 6 };
      Object.assign(panel.yaxis, logarithmic ? logAxis : { tickformat: ".0%" });
      const ends = { x: [], y: [], color: [], text: [] };
      const top = logarithmic ? axisTop(panel.runs, known) : Infinity;
      if (top < Infinity) Object.assign(panel.yaxis, { range: [axisBottom(panel.runs, known, top), Math.log10(top)] });
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const points = bySteps(own.map((run) => known.get(run.i))), style = schemeStyle(scheme), hover = [];
        const xs = [], middle = [], low = [], high = [];
        for (const { step, values } of points) {
          const m = mean(values), s = deviation(values), least = Math.min(...values), largest = Math.max(...values);
          xs.push(stepPlace(step, logSteps));
          middle.push(m);
          low.push(c.band === "std" && s === s ? (logarithmic ? Math.max(m - s, least) : m - s) : least);
          high.push(c.band === "std" && s === s ? m + s : largest);
          hover.push(`${shortLabel(scheme, 60)} · step ${step}<br>${label(metric)} ${formatMetric(metric, m)} ` +
            `(${formatMetric(metric, least)} to ${formatMetric(metric, largest)}, n = ${values.length})`);
          rows.push([...panel.csvCells(own), scheme, step, m, s, least, largest, values.length]);
        }
        traces.push(...banded(panel, scheme, style, xs, middle, low, high, hover));
        legend.add(scheme);
        for (const run of own.filter((r) => r.outcome === "diverged")) {
          const { steps, values } = known.get(run.i), at = values.findLastIndex((v) => Number.isFinite(v));
          if (at < 0) continue;
          ends.x.push(stepPlace(steps[at], logSteps)); ends.y.push(Math.min(values[at], top)); ends.color.push(style.color);
          ends.text.push(`${shortLabel(run.name, 60)} diverged${run.first_bad_step == null ? "" :
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

function axisBottom(some, known, top) {
  let least = top;
  for (const run of some) for (const v of known.get(run.i).values) if (v > 0) least = Math.min(least, v);
  return Math.log10(least) - 0.05 * Math.log10(top / least);
}
