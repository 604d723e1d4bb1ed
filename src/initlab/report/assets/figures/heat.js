// Depth × scheme: the mean of a metric, or how runs ended.

figures.heat = {
  caption: "Every cell is the mean over its seeds. Outcomes: the most frequent one gives the color, the text says " +
    "how many of how many. Diverged runs have no accuracy of their own and are left out of means; outcomes " +
    "count them. A line over a column is the depth to which the forecast lets that scheme train, at the upper " +
    "edge when that is deeper than all.",
  controls: () => [{ name: "show", options: [...METRICS, "outcome"].map((m) => [m, label(m)]),
    value: data.metric || "outcome" }],
  draw(some, c, t, width, most) {
    const metric = c.show, byOutcome = metric === "outcome";
    const all = panels(some, ["activation", "setting", "rateText"]);
    const list = all.slice(0, most), rows = [], traces = [];
    const longest = Math.max(0, ...some.map((run) => Math.min(18, run.scheme.length)));
    const deepest = Math.max(1, ...list.map((panel) => new Set(panel.runs.map((r) => r.depth)).size));
    const { layout, placed } = grid(list, width, t, { rowHeight: Math.max(120, Math.min(340, 34 * deepest + 40)),
      gapY: 58 + 4.6 * longest, bottom: 34 + 4.6 * longest, right: byOutcome ? 16 : 76 });
    const tables = placed.map((panel) => heatTable(panel, metric));
    const values = tables.flatMap((table) => table.flatMap((cell) => cell.value));
    const logarithmic = /loss/.test(metric) && Math.max(...finite(values)) > 30 * Math.min(...finite(values));
    const scale = colorScale(values, logarithmic);
    placed.forEach((panel, k) => {
      traces.push(heatTrace(panel, tables[k], metric, scale, t));
      traces.push(...trainableLines(panel, t));
      for (const cell of tables[k]) {
        const good = finite(cell.runs.map((run) => run[metric]));
        rows.push([...panel.csvCells(cell.runs), cell.depth, cell.scheme, cell.runs.length, byOutcome ? null : cell.value,
          byOutcome || good.length < 2 ? null : deviation(good), tallied(cell.runs)]);
      }
    });
    layout.coloraxis = { colorscale: t.scale, reversescale: /loss/.test(metric), cmin: scale.low, cmax: scale.high,
      colorbar: { thickness: 12, outlinewidth: 0, len: Math.min(1, 300 / layout.height), y: 1, yanchor: "top",
        title: { text: label(metric), side: "right" }, tickformat: isShare(metric) ? ".0%" : undefined, ...scale.bar } };
    const present = OUTCOMES.filter((outcome) => some.some((run) => run.outcome === outcome));
    return { traces, layout, rows, of: all.length,
      legend: byOutcome ? present.map((name) => ({ name, color: OUTCOME_COLORS[name], block: true })) : [],
      header: ["activation", "setting", "rate", "depth", "scheme", "runs", "mean", "std", "outcomes"] };
  },
};

function heatTable(panel, metric) {
  return grouped(panel.runs, ["depth", "scheme"]).map((cell) => {
    const values = finite(cell.runs.map((run) => (run.outcome === "diverged" ? null : run[metric])));
    return { ...cell.values, runs: cell.runs, value: values.length ? mean(values) : null };
  });
}

function heatTrace(panel, table, metric, scale, t) {
  const schemes = levels.scheme.filter((s) => table.some((cell) => cell.scheme === s));
  const depths = levels.depth.filter((d) => table.some((cell) => cell.depth === d));
  panel.schemes = schemes;
  panel.depths = depths;
  categories(panel.xaxis, schemes, 18, schemes.length > 1 || schemes.some((s) => s.length > 8) ? -45 : 0);
  categories(panel.yaxis, depths, 10);
  if (panel.left) panel.yaxis.title = { text: "depth", standoff: 6 };
  const empty = () => depths.map(() => schemes.map(() => null));
  const z = empty(), text = empty(), hover = empty(), byOutcome = metric === "outcome";
  for (const cell of table) {
    const y = depths.indexOf(cell.depth), x = schemes.indexOf(cell.scheme), [first] = tally(cell.runs);
    z[y][x] = byOutcome ? OUTCOMES.indexOf(first[0]) : scale.of(cell.value);
    if (byOutcome) text[y][x] = `${first[1]}/${cell.runs.length}`;
    else if (cell.value != null) text[y][x] = isShare(metric) ? points(cell.value) : short(cell.value);
    else text[y][x] = first[0];
    if (text[y][x].length * 7 > panel.cell / schemes.length) text[y][x] = byOutcome || cell.value != null ? "" : "×";
    const good = finite(cell.runs.map((run) => run[metric]));
    hover[y][x] = `${shortLabel(cell.scheme, 60)}<br>${escapeMarkup(panel.title)} · depth ${escapeMarkup(cell.depth)}<br>` +
      (byOutcome || cell.value == null ? "" : `${label(metric)} ${formatMetric(metric, cell.value)}` +
        `${good.length > 1 ? ` ± ${formatMetric(metric, deviation(good))}` : ""}<br>`) + tallied(cell.runs);
  }
  const trace = { type: "heatmap", z, xaxis: panel.x, yaxis: panel.y, xgap: 1, ygap: 1, hoverinfo: "text",
    hovertext: hover, hoverongaps: false };
  Object.assign(trace, { text: text.map((row) => row.map((v) => v ?? "")), texttemplate: "%{text}",
    textfont: { size: 11 } });
  if (!byOutcome) return onColorBar(trace);
  const n = OUTCOMES.length;
  return { ...trace, zmin: -0.5, zmax: n - 0.5, showscale: false,
    colorscale: OUTCOMES.flatMap((o, k) => [[k / n, OUTCOME_COLORS[o]], [(k + 1) / n, OUTCOME_COLORS[o]]]) };
}

// The depth to which the forecast lets a scheme train, between the rows where it falls.
function trainableLines(panel, t) {
  const depths = panel.depths.map(Number);
  if (!NUMBERS.includes("trainable_depth") || depths.some(Number.isNaN)) return [];
  const found = [];
  panel.schemes.forEach((scheme, x) => {
    const limits = finite(panel.runs.filter((run) => run.scheme === scheme).map((run) => run.trainable_depth));
    if (!limits.length) return;
    const limit = median(limits), y = rowPosition(depths, limit);
    // In the middle of a row the line would cross out its numbers: there it marks both sides of the cell.
    const inside = Math.abs(y - Math.round(y)) < 0.25 && panel.cell / panel.schemes.length > 24;
    const xs = inside ? [x - 0.46, x - 0.3, null, x + 0.3, x + 0.46] : [x - 0.46, x + 0.46];
    for (const [color, width] of [["#000", 5], ["#fff", 2.5]]) {
      found.push({ type: "scatter", mode: "lines", x: xs, y: xs.map((v) => (v === null ? null : y)), xaxis: panel.x,
        yaxis: panel.y, line: { color: color, width }, hoverinfo: "text", showlegend: false, cliponaxis: false,
        text: `forecast: ${shortLabel(scheme, 60)} trains to ${limit >= 1e4 ? "any depth" : `depth ${short(limit, 2)}`}` });
    }
  });
  return found;
}

function rowPosition(depths, value) {
  if (value <= depths[0]) return value === depths[0] ? 0 : -0.45;
  const last = depths.length - 1;
  if (value > depths[last]) return last + 0.45;
  const k = depths.findIndex((d) => d >= value);
  return k - 1 + Math.log(value / depths[k - 1]) / Math.log(depths[k] / depths[k - 1]);
}
