// Pictures of final results: depth × scheme, time to a target, rates.

const METRICS = ["test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss"]
  .filter((metric) => runs.some((run) => run[metric] != null));

const pictures = {};

function tally(some) {
  const found = {};
  for (const run of some) found[run.outcome] = (found[run.outcome] || 0) + 1;
  return Object.entries(found).sort((a, b) => b[1] - a[1] || OUTCOMES.indexOf(a[0]) - OUTCOMES.indexOf(b[0]));
}
const tallied = (some) => tally(some).map(([outcome, n]) => `${n} ${outcome}`).join(", ");

pictures.heat = {
  controls: () => [{ name: "show", options: [...METRICS, "outcome"].map((m) => [m, said(m)]),
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
    const scale = colouring(values, logarithmic);
    placed.forEach((panel, k) => {
      traces.push(heatTrace(panel, tables[k], metric, scale, t));
      traces.push(...trainableLines(panel, t));
      for (const cell of tables[k]) {
        const good = finite(cell.runs.map((run) => run[metric]));
        rows.push([...panel.told(cell.runs), cell.depth, cell.scheme, cell.runs.length, byOutcome ? null : cell.value,
          byOutcome || good.length < 2 ? null : deviation(good), tallied(cell.runs)]);
      }
    });
    layout.coloraxis = { colorscale: t.scale, reversescale: /loss/.test(metric), cmin: scale.low, cmax: scale.high,
      colorbar: { thickness: 12, outlinewidth: 0, len: Math.min(1, 300 / layout.height), y: 1, yanchor: "top",
        title: { text: said(metric), side: "right" }, tickformat: isShare(metric) ? ".0%" : undefined, ...scale.bar } };
    const present = OUTCOMES.filter((outcome) => some.some((run) => run.outcome === outcome));
    return { traces, layout, rows, of: all.length,
      legend: byOutcome ? present.map((name) => ({ name, colour: OUTCOME_COLOURS[name], block: true })) : [],
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
    hover[y][x] = `${brief(cell.scheme, 60)}<br>${plain(panel.title)} · depth ${plain(cell.depth)}<br>` +
      (byOutcome || cell.value == null ? "" : `${said(metric)} ${shown(metric, cell.value)}` +
        `${good.length > 1 ? ` ± ${shown(metric, deviation(good))}` : ""}<br>`) + tallied(cell.runs);
  }
  const trace = { type: "heatmap", z, xaxis: panel.x, yaxis: panel.y, xgap: 1, ygap: 1, hoverinfo: "text",
    hovertext: hover, hoverongaps: false };
  Object.assign(trace, { text: text.map((row) => row.map((v) => v ?? "")), texttemplate: "%{text}",
    textfont: { size: 11 } });
  if (!byOutcome) return onBar(trace);
  const n = OUTCOMES.length;
  return { ...trace, zmin: -0.5, zmax: n - 0.5, showscale: false,
    colorscale: OUTCOMES.flatMap((o, k) => [[k / n, OUTCOME_COLOURS[o]], [(k + 1) / n, OUTCOME_COLOURS[o]]]) };
}

// The depth to which the forecast lets a scheme train, between the rows where it falls.
function trainableLines(panel, t) {
  const depths = panel.depths.map(Number);
  if (!NUMBERS.includes("trainable_depth") || depths.some(Number.isNaN)) return [];
  const found = [];
  panel.schemes.forEach((scheme, x) => {
    const told = finite(panel.runs.filter((run) => run.scheme === scheme).map((run) => run.trainable_depth));
    if (!told.length) return;
    const limit = median(told), y = between(depths, limit);
    // Through the middle of a row it would strike out that row's numbers: there it marks both sides of the cell.
    const inside = Math.abs(y - Math.round(y)) < 0.25 && panel.cell / panel.schemes.length > 24;
    const xs = inside ? [x - 0.46, x - 0.3, null, x + 0.3, x + 0.46] : [x - 0.46, x + 0.46];
    for (const [colour, width] of [["#000", 5], ["#fff", 2.5]]) {
      found.push({ type: "scatter", mode: "lines", x: xs, y: xs.map((v) => (v === null ? null : y)), xaxis: panel.x,
        yaxis: panel.y, line: { color: colour, width }, hoverinfo: "text", showlegend: false, cliponaxis: false,
        text: `forecast: ${brief(scheme, 60)} trains to ${limit >= 1e4 ? "any depth" : `depth ${short(limit, 2)}`}` });
    }
  });
  return found;
}

function between(depths, value) {
  if (value <= depths[0]) return value === depths[0] ? 0 : -0.45;
  const last = depths.length - 1;
  if (value > depths[last]) return last + 0.45;
  const k = depths.findIndex((d) => d >= value);
  return k - 1 + Math.log(value / depths[k - 1]) / Math.log(depths[k] / depths[k - 1]);
}

pictures.target = {
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
          rows.push([...panel.told(own), depth, scheme, data.curves.targets[place], good.length ? median(good) : null,
            good.length ? Math.min(...good) : null, good.length ? Math.max(...good) : null, good.length, lost]);
          if (good.length) {
            const m = median(good);
            x.push(d + shift); y.push(Math.max(m, 1)); up.push(Math.max(...good) - m); down.push(m - Math.min(...good));
            hover.push(`${brief(scheme, 60)} · depth ${plain(depth)}<br>${short(m)} steps ` +
              `(${short(Math.min(...good))} to ${short(Math.max(...good))}), ${good.length} of ${steps.length} seeds`);
          }
          if (lost) {
            nx.push(d + shift); ny.push(longest * 1.6);
            never.push(`${brief(scheme, 60)} · depth ${plain(depth)}<br>${lost} of ${steps.length} seeds never`);
          }
        });
        legend.add(scheme);
        traces.push({ type: "scatter", mode: "lines+markers", name: brief(scheme), x, y, text: hover, hoverinfo: "text",
          xaxis: panel.x, yaxis: panel.y, error_y: { type: "data", symmetric: false, array: up, arrayminus: down,
            thickness: 1.2, width: 3 }, line: { color: style.colour, dash: style.dash, width: 1.5 },
          marker: { size: 7, color: style.colour } });
        traces.push({ type: "scatter", mode: "markers", x: nx, y: ny, text: never, hoverinfo: "text", xaxis: panel.x,
          yaxis: panel.y, cliponaxis: false, marker: { symbol: "triangle-up-open", size: 10, color: style.colour } });
      });
    }
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      header: ["activation", "setting", "rate", "depth", "scheme", "target", "median steps", "fastest", "slowest",
        "seeds", "never"] };
  },
};

pictures.rates = {
  ignoreBest: true,
  controls: () => [{ name: "show", options: [...METRICS, "trained"].map((m) => [m, m === "trained" ?
    "share that trained" : said(m)]), value: METRICS.includes("val_loss") ? "val_loss" : METRICS[0] || "trained" }],
  draw(some, c, t, width, most) {
    const all = panels(some, ["activation", "depth", "setting"]), list = all.slice(0, most);
    const { layout, placed } = grid(list, width, t), rows = [], traces = [], legend = new Set(), metric = c.show;
    for (const panel of placed) {
      Object.assign(panel.xaxis, logAxis);
      if (panel.bottom) panel.xaxis.title = { text: "learning rate", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: said(metric), standoff: 6 };
      if (/loss/.test(metric)) Object.assign(panel.yaxis, logAxis);
      for (const { values: { scheme }, runs: own } of grouped(panel.runs, ["scheme"])) {
        const style = schemeStyle(scheme), points = grouped(own, ["rateText"]).map((point) => {
          const judged = point.runs.filter((run) => ["trained", "learning", "stuck", "finished", "diverged"].includes(run.outcome));
          const trained = judged.filter((run) => run.outcome === "trained").length / judged.length;
          const values = finite(judged.filter((run) => run.outcome !== "diverged").map((run) => run[metric]));
          return { rate: point.runs[0].rate, n: judged.length, usable: trained >= 0.5, trained,
            value: metric === "trained" ? trained : values.length ? mean(values) : null, runs: judged };
        }).filter((point) => point.rate != null && point.n);
        for (const p of points) rows.push([...panel.told(p.runs), scheme, p.rate, p.value, p.n, p.trained, tallied(p.runs)]);
        legend.add(scheme);
        traces.push({ type: "scatter", mode: "lines+markers", xaxis: panel.x, yaxis: panel.y, x: points.map((p) => p.rate),
          y: points.map((p) => p.value), line: { color: style.colour, dash: style.dash, width: 1.5 },
          hoverinfo: "text", text: points.map((p) => `${brief(scheme, 60)} · rate ${short(p.rate)}<br>` +
            `${said(metric)} ${shown(metric === "trained" ? "share" : metric, p.value)}<br>${tallied(p.runs)}`),
          marker: { size: 8, color: points.map((p) => (p.usable ? style.colour : t.paper)),
            line: { color: style.colour, width: 1.5 } } });
      }
    }
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend),
      header: ["activation", "depth", "setting", "scheme", "rate", said(metric), "runs", "share trained", "outcomes"] };
  },
};

function schemeLegend(some) {
  return levels.scheme.filter((scheme) => some.has(scheme)).map((scheme) => ({ name: scheme, ...schemeStyle(scheme) }));
}
