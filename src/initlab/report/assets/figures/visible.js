// How long the initialization stays visible.

figures.visible = {
  caption: "The share of the variance between runs that the scheme explains, the rest being the seed's (intraclass " +
    "correlation of the logarithm of a loss, or of an accuracy). At 1 only the scheme matters, at 0 a run " +
    "does not depend on its scheme. It takes two schemes with two seeds each.",
  controls: () => [
    { name: "show", options: Object.keys(data.curves.metrics).map((m) => [m, label(m)]),
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
          .map(([step, groups]) => [step, intraclassCorrelation([...groups.values()]), groups.size])
          .filter(([, value]) => !Number.isNaN(value));
        for (const [step, value, count] of points) rows.push([...panel.csvCells(own), depth, step, value, count]);
        if (!points.length) continue;
        if (!legend.some((entry) => entry.name === `depth ${depth}`)) legend.push({ name: `depth ${depth}`, ...style });
        traces.push({ type: "scatter", mode: points.length > 1 ? "lines" : "markers", xaxis: panel.x, yaxis: panel.y,
          x: points.map(([step]) => stepPlace(step, logSteps)), y: points.map(([, value]) => value),
          text: points.map(([step, value]) => `depth ${escapeMarkup(depth)} · step ${step}<br>${percent(value)} explained`),
          hoverinfo: "text", line: { color: style.color, width: 1.8 }, marker: { color: style.color } });
      }
    }
    return { traces, layout, rows, of: all.length, legend,
      header: ["activation", "setting", "rate", "depth", "step", "share explained by the scheme", "schemes"],
      empty: "It takes at least two schemes with two seeds each at one depth." };
  },
};

// The share of the variance of values that their group explains: the intraclass correlation of a one-way layout.
function intraclassCorrelation(groups) {
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
