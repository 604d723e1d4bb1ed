// Learning rates.

figures.rates = {
  caption: "The mean over seeds at every rate that was tried; filled points are usable rates (at least half of the " +
    "seeds trained). Wide windows are robust schemes. The filter “best rate only” does not apply here.",
  ignoreBest: true,
  controls: () => [{ name: "show", options: [...METRICS, "trained"].map((m) => [m, m === "trained" ?
    "share that trained" : label(m)]), value: METRICS.includes("val_loss") ? "val_loss" : METRICS[0] || "trained" }],
  draw(some, c, t, width, most) {
    const all = panels(some, ["activation", "depth", "setting"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set(), metric = c.show;
    for (const panel of placed) {
      Object.assign(panel.xaxis, logAxis);
      if (panel.bottom) panel.xaxis.title = { text: "learning rate", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: label(metric), standoff: 6 };
      if (/loss/.test(metric)) Object.assign(panel.yaxis, logAxis);
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const style = schemeStyle(scheme), points = grouped(own, ["rateText"]).map((point) => {
          const judged = point.runs.filter((run) => ["trained", "learning", "stuck", "finished", "diverged"].includes(run.outcome));
          const trained = judged.filter((run) => run.outcome === "trained").length / judged.length;
          const values = finite(judged.filter((run) => run.outcome !== "diverged").map((run) => run[metric]));
          return { rate: point.runs[0].rate, n: judged.length, usable: trained >= 0.5, trained,
            value: metric === "trained" ? trained : values.length ? mean(values) : null, runs: judged };
        }).filter((point) => point.rate != null && point.n);
        for (const p of points) rows.push([...panel.csvCells(p.runs), scheme, p.rate, p.value, p.n, p.trained, tallied(p.runs)]);
        legend.add(scheme);
        traces.push({ type: "scatter", mode: "lines+markers", xaxis: panel.x, yaxis: panel.y, x: points.map((p) => p.rate),
          y: points.map((p) => p.value), line: { color: style.color, dash: style.dash, width: 1.5 },
          hoverinfo: "text", text: points.map((p) => `${shortLabel(scheme, 60)} · rate ${short(p.rate)}<br>` +
            `${label(metric)} ${formatMetric(metric === "trained" ? "share" : metric, p.value)}<br>${tallied(p.runs)}`),
          marker: { size: 8, color: points.map((p) => (p.usable ? style.color : t.paper)),
            line: { color: style.color, width: 1.5 } } });
      }
    }
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      header: ["activation", "depth", "setting", "scheme", "rate", label(metric), "runs", "share trained", "outcomes"] };
  },
};
