// Histograms of different runs, overlaid.

const MOST_LINES = 60;

figures.histograms = {
  caption: "One line per run, colored by scheme; the area under each is 1. The page has some steps and layers of " +
    "every run; histograms.csv of a run has all of them.",
  controls: (some) => {
    const known = some.flatMap((run) => histograms().get(run.i) || []);
    const steps = stepsOf([known.map((h) => h.step)]);
    const packed = data.histograms;
    const places = packed.positions.map((text, k) => [String(k), text])
      .filter(([k]) => known.some((h) => (h.places >> Number(k)) & 1));
    return [
      { name: "kind", options: packed.kinds.map((k) => [k, `${k}s`]), value: packed.kinds[0] },
      { name: "place", options: places, value: places.length ? places[Math.min(1, places.length - 1)][0] : "" },
      { name: "step", options: steps.map((s) => [String(s), `step ${s}`]), value: "0" },
      { name: "x", options: [["value", "values"], ["rms", "values ÷ their root mean square"]], value: "value" },
      { name: "y", options: [["linear", "density"], ["log", "density, logarithmic"]], value: "linear" },
    ];
  },
  draw(some, c, t, width, most) {
    const at = new Map(some.map((run) => [run.i, (histograms().get(run.i) || []).find((h) =>
      h.kind === c.kind && h.step === Number(c.step) && (h.places >> Number(c.place)) & 1)]));
    const able = some.filter((run) => at.get(run.i));
    const all = panels(able, ["activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set();
    let left = 0, lost = 0, spikes = 0, beyond = 0;
    for (const panel of placed) {
      // Runs are taken from every scheme in turn, so that no scheme is cut off.
      const queues = grouped(panel.runs, ["scheme"]).map((group) => [...group.runs]), turn = [];
      while (queues.some((queue) => queue.length)) for (const queue of queues) if (queue.length) turn.push(queue.shift());
      left += Math.max(0, turn.length - MOST_LINES);
      const drawn = turn.slice(0, MOST_LINES), reach = visibleReach(drawn.map((run) => at.get(run.i)), c.x);
      if (panel.bottom) panel.xaxis.title = { text: c.x === "rms" ? "value ÷ rms" : "value", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "density", standoff: 6 };
      if (reach) panel.xaxis.range = [-reach, reach];
      if (c.y === "log") Object.assign(panel.yaxis, logAxis); else panel.yaxis.rangemode = "tozero";
      for (const run of drawn) {
        const h = at.get(run.i), unit = c.x === "rms" ? h.rms || 1 : 1, style = schemeStyle(run.scheme);
        legend.add(run.scheme);
        lost += h.nonfinite > 0;
        const label = `${shortLabel(run.name, 60)}<br>${escapeMarkup(h.layer)} · ${h.num} values, rms ${short(h.rms)}` +
          (h.nonfinite ? `, ${h.nonfinite} not finite` : "");
        const base = { type: "scatter", mode: "lines", xaxis: panel.x, yaxis: panel.y, hoverinfo: "text", text: label,
          line: { color: withAlpha(style.color, 0.8), dash: style.dash, width: 1.3, shape: "hvh" } };
        const wide = (h.high - h.low) / 64 / unit;
        if (!(h.num > 0)) continue;
        if (reach && (h.high / unit > reach || h.low / unit < -reach)) beyond += 1;
        if (!(wide > 0)) {
          spikes += 1;
          rows.push([...panel.csvCells([run]), run.scheme, run.seed, h.layer, h.step, h.low, h.high, null]);
          layout.shapes.push({ type: "line", xref: panel.x, yref: `${panel.y} domain`, x0: h.low / unit, x1: h.low / unit,
            y0: 0, y1: 1, line: { color: withAlpha(style.color, 0.8), width: 1.3, dash: "dot" } });
          continue;
        }
        const heights = counts(h).map((n) => n / (h.num * wide));
        const xs = heights.map((_, b) => h.low / unit + (b + 0.5) * wide);
        heights.forEach((v, b) => rows.push([...panel.csvCells([run]), run.scheme, run.seed, h.layer, h.step,
          Number((xs[b] - wide / 2).toPrecision(6)), Number((xs[b] + wide / 2).toPrecision(6)), Number(v.toPrecision(4))]));
        traces.push({ ...base, x: xs, y: c.y === "log" ? heights.map((v) => (v > 0 ? v : null)) : heights });
      }
      if (!traces.some((trace) => trace.xaxis === panel.x)) traces.push({ type: "scatter", x: [0], y: [0], opacity: 0,
        xaxis: panel.x, yaxis: panel.y, hoverinfo: "skip" });
    }
    const notes = [left ? `${left} more runs are in the filter than fit: choose fewer seeds.` : "",
      spikes ? `${spikes} runs have all values equal there: a dotted line.` : "",
      beyond ? `${beyond} runs reach beyond the figure; double-click to see all of it.` : "",
      lost ? `${lost} runs have values that are not finite; they are not drawn.` : ""];
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend), note: notes.filter(Boolean).join(" "),
      header: ["activation", "depth", "setting", "rate", "scheme", "seed", "layer", "step", "from", "to", "density"] };
  },
};

// Half the width of an axis on which most runs can be seen: one run a thousand times wider must not hide the others.
function visibleReach(some, x) {
  const reach = finite(some.filter((h) => h.high > h.low).map((h) =>
    Math.max(Math.abs(h.low), Math.abs(h.high)) / (x === "rms" ? h.rms || 1 : 1)));
  if (!reach.length) return 0;
  const middle = median(reach);
  return Math.max(...reach.filter((v) => v <= 8 * middle)) * 1.03;
}
