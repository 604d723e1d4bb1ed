// Time to a target loss.

figures.target = {
  caption: "The first step at which the mean training loss of ten steps is at or below the target: median over " +
    "seeds, bars from the fastest to the slowest. Triangles at the top count the seeds that never got there.",
  controls: () => [{ name: "target", options: data.curves.targets.map((v, k) => [String(k), `loss ${short(v)}`]),
    value: String(Math.floor(data.curves.targets.length / 2)) }],
  draw(some, c, t, width, most) {
    const place = Number(c.target), able = some.filter((run) => data.curves.reached[run.i]);
    const all = panels(able, ["activation", "setting", "rateText"]), list = all.slice(0, most);
    const rows = [], traces = [], legend = new Set();
    const { layout, placed } = grid(list, width, t);
    const longest = Math.max(1, ...Object.values(data.curves.last));
    for (const panel of placed) {
      const depths = levels.depth.filter((d) => panel.runs.some((run) => run.depth === d));
      const schemes = grouped(panel.runs, ["scheme"]), top = Math.log10(longest * 1.6);
      categories(panel.xaxis, depths, 10);
      if (panel.bottom) panel.xaxis.title = { text: "depth", standoff: 6 };
      const fastest = Math.min(longest, ...finite(panel.runs.map((run) => data.curves.reached[run.i][place])));
      Object.assign(panel.yaxis, logAxis, { range: [Math.log10(Math.max(fastest, 1)) - 0.12, top + 0.12] });
      if (panel.left) panel.yaxis.title = { text: "steps", standoff: 6 };
      schemes.forEach(({ values: { scheme }, runs: own }, k) => {
        const style = schemeStyle(scheme), shift = schemes.length > 1 ? 0.5 * (k / (schemes.length - 1) - 0.5) : 0;
        const x = [], y = [], up = [], down = [], hover = [], nx = [], ny = [], never = [];
        depths.forEach((depth, d) => {
          const steps = own.filter((run) => run.depth === depth).map((run) => data.curves.reached[run.i][place]);
          const good = finite(steps), lost = steps.length - good.length;
          if (!steps.length) return;
          rows.push([...panel.csvCells(own), depth, scheme, data.curves.targets[place], good.length ? median(good) : null,
            good.length ? Math.min(...good) : null, good.length ? Math.max(...good) : null, good.length, lost]);
          if (good.length) {
            const m = median(good);
            x.push(d + shift); y.push(Math.max(m, 1)); up.push(Math.max(...good) - m); down.push(m - Math.min(...good));
            hover.push(`${shortLabel(scheme, 60)} · depth ${escapeMarkup(depth)}<br>${short(m)} steps ` +
              `(${short(Math.min(...good))} to ${short(Math.max(...good))}), ${good.length} of ${steps.length} seeds`);
          }
          if (lost) {
            nx.push(d + shift); ny.push(longest * 1.6);
            never.push(`${shortLabel(scheme, 60)} · depth ${escapeMarkup(depth)}<br>${lost} of ${steps.length} seeds never`);
          }
        });
        legend.add(scheme);
        traces.push({ type: "scatter", mode: "lines+markers", name: shortLabel(scheme), x, y, text: hover, hoverinfo: "text",
          xaxis: panel.x, yaxis: panel.y, error_y: { type: "data", symmetric: false, array: up, arrayminus: down,
            thickness: 1.2, width: 3 }, line: { color: style.color, dash: style.dash, width: 1.5 },
          marker: { size: 7, color: style.color } });
        traces.push({ type: "scatter", mode: "markers", x: nx, y: ny, text: never, hoverinfo: "text", xaxis: panel.x,
          yaxis: panel.y, cliponaxis: false, marker: { symbol: "triangle-up-open", size: 10, color: style.color } });
      });
    }
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      header: ["activation", "setting", "rate", "depth", "scheme", "target", "median steps", "fastest", "slowest",
        "seeds", "never"] };
  },
};
