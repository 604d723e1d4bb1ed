// How far the weights are from their start.

figures.distance = {
  caption: "√Σ(‖W‖ − ‖W₀‖)² / √Σ‖W₀‖² over the layers: at least how far the weights have moved, in units of their " +
    "own length. The true distance may be larger: weights can turn without growing, and runs record norms.",
  controls: () => [{ ...STEP_AXES, value: "log" }],
  draw(some, c, t, width, most) {
    const series = new Map(some.map((run) => [run.i, distancesFromStart(run)]));
    const able = some.filter((run) => series.get(run.i)), logSteps = c.axis === "log";
    const all = panels(able, ["activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set();
    for (const panel of placed) {
      stepAxis(panel.xaxis, logSteps);
      panel.yaxis.rangemode = "tozero";
      const top = axisTop(panel.runs, series);
      if (top < Infinity) panel.yaxis.range = [0, top / 2];
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "moved, at least", standoff: 6 };
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const points = bySteps(own.map((run) => series.get(run.i)));
        const middle = points.map((p) => median(p.values));
        const low = points.map((p) => Math.min(...p.values)), high = points.map((p) => Math.max(...p.values));
        points.forEach((p, k) => rows.push([...panel.csvCells(own), scheme, p.step, middle[k], low[k], high[k], p.values.length]));
        traces.push(...banded(panel, scheme, schemeStyle(scheme), points.map((p) => stepPlace(p.step, logSteps)), middle,
          low, high, points.map((p, k) => `${shortLabel(scheme, 60)} · step ${p.step}<br>${short(middle[k])}`)));
        legend.add(scheme);
      }
    }
    const left = some.length - able.length;
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      note: left ? `${left} runs are left out: their weights start at zero, or no norms were recorded.` : "",
      header: ["activation", "depth", "setting", "rate", "scheme", "step", "median", "least", "largest", "n"] };
  },
};

// A lower bound of how far a run's weights are from their start, from the norms of its layers.
function distancesFromStart(run) {
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
