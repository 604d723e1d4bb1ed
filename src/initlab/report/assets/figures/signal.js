// Signal by layer, predicted and measured.

figures.signal = {
  caption: "Solid lines and bands: measured, median and range over seeds. Dashed lines: what theory predicted before " +
    "a weight was drawn (step 0 only).",
  controls: (some) => {
    const stats = statsOf(["measured", "predicted"]);
    const steps = stepsOf(some.flatMap((run) => (blocks().get(run.i) || []).map((b) => b.steps)));
    return [
      { name: "stat", options: stats.map((s) => [s, statName(s)]), value: stats[0] },
      { name: "step", options: steps.map((s) => [String(s), `step ${s}`]), value: "0" },
    ];
  },
  draw(some, c, t, width, most) {
    const step = Number(c.step), logarithmic = !FRACTIONS.test(c.stat);
    const able = some.filter((run) => profile(run, c.stat, step, "measured") || profile(run, c.stat, step, "predicted"));
    const all = panels(able, ["activation", "depth", "setting", "rateText"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set();
    let zeros = 0, forecast = false;
    for (const panel of placed) {
      Object.assign(panel.xaxis, wholeAxis);
      if (panel.bottom) panel.xaxis.title = { text: "layer", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: statName(c.stat).split(" (")[0], standoff: 6 };
      if (logarithmic) Object.assign(panel.yaxis, logAxis);
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const style = schemeStyle(scheme);
        legend.add(scheme);
        for (const source of ["measured", "predicted"]) {
          const points = bySteps(own.map((run) => profile(run, c.stat, step, source)).filter(Boolean));
          if (!points.length) continue;
          const middle = points.map((p) => median(p.values)), xs = points.map((p) => p.step);
          const low = points.map((p) => Math.min(...p.values)), high = points.map((p) => Math.max(...p.values));
          if (logarithmic) zeros += middle.filter((v) => v === 0).length;
          points.forEach((p, k) =>
            rows.push([...panel.csvCells(own), scheme, source, step, p.step, middle[k], low[k], high[k], p.values.length]));
          const hover = points.map((p, k) => `${shortLabel(scheme, 60)} · layer ${p.step}, ${source}<br>` +
            `${short(middle[k])} (${short(low[k])} to ${short(high[k])}, n = ${p.values.length})`);
          const positive = (values) => values.map((v) => (logarithmic && !(v > 0) ? null : v));
          if (source === "measured") {
            // On a logarithmic axis a band cannot reach 0 and is left out there.
            const floor = logarithmic ? low.map((v, k) => (v > 0 ? v : middle[k] > 0 ? middle[k] : high[k])) : low;
            const can = xs.map((_, k) => k).filter((k) => !logarithmic || high[k] > 0);
            traces.push(...banded(panel, scheme, style, can.map((k) => xs[k]), positive(can.map((k) => middle[k])),
              can.map((k) => floor[k]), can.map((k) => high[k]), can.map((k) => hover[k])));
          } else {
            forecast = true;
            traces.push({ type: "scatter", mode: "lines+markers", x: xs, y: positive(middle), text: hover,
              hoverinfo: "text", xaxis: panel.x, yaxis: panel.y, marker: { size: 5, color: style.color,
                symbol: "circle-open" }, line: { color: style.color, dash: "dash", width: 1.2 } });
          }
        }
      }
    }
    const notes = [zeros ? `${zeros} values are exactly 0, which a logarithmic axis cannot show.` : "",
      step === 0 && !forecast ? "There is no forecast in these runs." : "",
      data.layers.thinned ? "Some layers or steps are left out here; layers.csv of a run has all." : ""];
    const key = [{ name: "measured", color: t.muted, dash: "solid" }];
    if (forecast) key.push({ name: "predicted", color: t.muted, dash: "dash" });
    return { traces, layout, rows, of: all.length, legend: [...schemeLegend(legend), ...key], note: notes.join(" "),
      header: ["activation", "depth", "setting", "rate", "scheme", "source", "step", "layer", "median", "least",
        "largest", "n"] };
  },
};

function profile(run, stat, step, source) {
  const found = block(run, stat, source), row = found ? found.steps.indexOf(step) : -1;
  if (row < 0) return null;
  const wide = found.indices.length;
  return { steps: found.indices, values: found.values.subarray(row * wide, (row + 1) * wide) };
}
