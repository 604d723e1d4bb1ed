// Layer × step.

figures.maps = {
  caption: "The median over seeds, layer by layer from the input (below) to the output, at the recorded steps.",
  controls: () => {
    const stats = statsOf(["measured"]), first = stats.includes("grad_norm") ? "grad_norm" : stats[0];
    return [{ name: "stat", options: stats.map((s) => [s, statName(s)]), value: first }];
  },
  draw(some, c, t, width, most) {
    const able = some.filter((run) => block(run, c.stat, "measured"));
    const all = panels(able, ["scheme", "activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t, { right: 84, gapX: 44, left: 50, rowHeight: 190 });
    const rows = [], tables = placed.map((panel) => mapTable(panel, c.stat));
    const values = tables.flatMap((table) => table.z.flat());
    const good = finite(values).filter((v) => v > 0);
    const logarithmic = !FRACTIONS.test(c.stat) && good.length > 0 && Math.max(...good) > 20 * Math.min(...good);
    const scale = colorScale(values, logarithmic);
    const traces = placed.map((panel, k) => {
      const { steps, indices, z } = tables[k];
      categories(panel.xaxis, steps.map(String), 8, 0);
      thinTicks(panel.xaxis, Math.floor(panel.cell / 34));
      categories(panel.yaxis, indices.map(String), 8);
      thinTicks(panel.yaxis, 9);
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "layer", standoff: 6 };
      z.forEach((row, y) => row.forEach((value, x) => value == null ||
        rows.push([...panel.csvCells(panel.runs), steps[x], indices[y], value, panel.runs.length])));
      return onColorBar({ type: "heatmap", z: z.map((row) => row.map(scale.of)), xaxis: panel.x, yaxis: panel.y,
        hoverinfo: "text", hoverongaps: false, hovertext: z.map((row, y) => row.map((value, x) =>
          `${shortLabel(panel.title, 80)}<br>layer ${indices[y]} · step ${steps[x]}<br>${formatMetric(c.stat, value)}`)) });
    });
    layout.coloraxis = { colorscale: t.scale, cmin: scale.low, cmax: scale.high, colorbar: { thickness: 12,
      outlinewidth: 0, len: Math.min(1, 300 / layout.height), y: 1, yanchor: "top",
      title: { text: statName(c.stat).split(" (")[0], side: "right" }, ...scale.bar } };
    const zeros = logarithmic && values.some((v) => v === 0) ? "Blank cells are exactly 0, or not finite." : "";
    return { traces, layout, rows, of: all.length, legend: [], note: zeros,
      header: ["scheme", "activation", "depth", "setting", "rate", "step", "layer", label(c.stat), "runs"] };
  },
};

function thinTicks(axis, most) {
  const every = Math.max(1, Math.ceil(axis.tickvals.length / Math.max(2, most)));
  axis.ticktext = axis.ticktext.filter((_, k) => k % every === 0);
  axis.tickvals = axis.tickvals.filter((_, k) => k % every === 0);
}

function mapTable(panel, stat) {
  const own = panel.runs.map((run) => block(run, stat, "measured"));
  const steps = stepsOf(own.map((b) => b.steps)), indices = stepsOf(own.map((b) => b.indices));
  const bins = new Map();
  for (const b of own) {
    b.steps.forEach((step, s) => b.indices.forEach((index, l) => {
      const value = b.values[s * b.indices.length + l], id = `${step},${index}`;
      if (!Number.isFinite(value)) return;
      if (!bins.has(id)) bins.set(id, []);
      bins.get(id).push(value);
    }));
  }
  const z = indices.map((index) => steps.map((step) => {
    const values = bins.get(`${step},${index}`);
    return values ? median(values) : null;
  }));
  return { steps, indices, z };
}
