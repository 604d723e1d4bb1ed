// Pictures of layers: signal profiles, histograms overlaid, layer × step.

const FRACTIONS = /fraction|^c$|^mean$|nonfinite|rank|duplicate/;
const STAT_NAMES = { q: "q (preactivations, second moment)", c: "c (correlation of two inputs)",
  grad_mean_square: "gradient at the preactivations, mean square", grad_norm: "gradient norm of the weights" };
const statName = (stat) => STAT_NAMES[stat] || said(stat);

function statsOf(sources) {
  const found = new Set();
  for (const list of blocks().values()) for (const b of list) if (sources.includes(b.source)) found.add(b.stat);
  return data.layers.stats.filter((stat) => found.has(stat));
}

function stepsOf(lists) {
  const found = new Set();
  for (const list of lists) for (const step of list) found.add(step);
  return [...found].sort((a, b) => a - b);
}

pictures.signal = {
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
            rows.push([...panel.told(own), scheme, source, step, p.step, middle[k], low[k], high[k], p.values.length]));
          const hover = points.map((p, k) => `${brief(scheme, 60)} · layer ${p.step}, ${source}<br>` +
            `${short(middle[k])} (${short(low[k])} to ${short(high[k])}, n = ${p.values.length})`);
          const positive = (values) => values.map((v) => (logarithmic && !(v > 0) ? null : v));
          if (source === "measured") {
            // A band cannot reach down to zero on a logarithmic axis: it is left out there.
            const floor = logarithmic ? low.map((v, k) => (v > 0 ? v : middle[k] > 0 ? middle[k] : high[k])) : low;
            const can = xs.map((_, k) => k).filter((k) => !logarithmic || high[k] > 0);
            traces.push(...banded(panel, scheme, style, can.map((k) => xs[k]), positive(can.map((k) => middle[k])),
              can.map((k) => floor[k]), can.map((k) => high[k]), can.map((k) => hover[k])));
          } else {
            forecast = true;
            traces.push({ type: "scatter", mode: "lines+markers", x: xs, y: positive(middle), text: hover,
              hoverinfo: "text", xaxis: panel.x, yaxis: panel.y, marker: { size: 5, color: style.colour,
                symbol: "circle-open" }, line: { color: style.colour, dash: "dash", width: 1.2 } });
          }
        }
      }
    }
    const notes = [zeros ? `${zeros} values are exactly 0, which a logarithmic axis cannot show.` : "",
      step === 0 && !forecast ? "There is no forecast in these runs." : "",
      data.layers.thinned ? "Some layers or steps are left out here; layers.csv of a run has all." : ""];
    const key = [{ name: "measured", colour: t.muted, dash: "solid" }];
    if (forecast) key.push({ name: "predicted", colour: t.muted, dash: "dash" });
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

const MOST_LINES = 60;

pictures.histograms = {
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
      // Every scheme in turn gives a run, so that a long list of seeds hides none.
      const queues = grouped(panel.runs, ["scheme"]).map((group) => [...group.runs]), turn = [];
      while (queues.some((queue) => queue.length)) for (const queue of queues) if (queue.length) turn.push(queue.shift());
      left += Math.max(0, turn.length - MOST_LINES);
      const drawn = turn.slice(0, MOST_LINES), reach = sight(drawn.map((run) => at.get(run.i)), c.x);
      if (panel.bottom) panel.xaxis.title = { text: c.x === "rms" ? "value ÷ rms" : "value", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "density", standoff: 6 };
      if (reach) panel.xaxis.range = [-reach, reach];
      if (c.y === "log") Object.assign(panel.yaxis, logAxis); else panel.yaxis.rangemode = "tozero";
      for (const run of drawn) {
        const h = at.get(run.i), unit = c.x === "rms" ? h.rms || 1 : 1, style = schemeStyle(run.scheme);
        legend.add(run.scheme);
        lost += h.nonfinite > 0;
        const label = `${brief(run.name, 60)}<br>${plain(h.layer)} · ${h.num} values, rms ${short(h.rms)}` +
          (h.nonfinite ? `, ${h.nonfinite} not finite` : "");
        const base = { type: "scatter", mode: "lines", xaxis: panel.x, yaxis: panel.y, hoverinfo: "text", text: label,
          line: { color: faint(style.colour, 0.8), dash: style.dash, width: 1.3, shape: "hvh" } };
        const wide = (h.high - h.low) / 64 / unit;
        if (!(h.num > 0)) continue;
        if (reach && (h.high / unit > reach || h.low / unit < -reach)) beyond += 1;
        if (!(wide > 0)) {
          spikes += 1;
          rows.push([...panel.told([run]), run.scheme, run.seed, h.layer, h.step, h.low, h.high, null]);
          layout.shapes.push({ type: "line", xref: panel.x, yref: `${panel.y} domain`, x0: h.low / unit, x1: h.low / unit,
            y0: 0, y1: 1, line: { color: faint(style.colour, 0.8), width: 1.3, dash: "dot" } });
          continue;
        }
        const heights = counts(h).map((n) => n / (h.num * wide));
        const xs = heights.map((_, b) => h.low / unit + (b + 0.5) * wide);
        heights.forEach((v, b) => rows.push([...panel.told([run]), run.scheme, run.seed, h.layer, h.step,
          Number((xs[b] - wide / 2).toPrecision(6)), Number((xs[b] + wide / 2).toPrecision(6)), Number(v.toPrecision(4))]));
        traces.push({ ...base, x: xs, y: c.y === "log" ? heights.map((v) => (v > 0 ? v : null)) : heights });
      }
      if (!traces.some((trace) => trace.xaxis === panel.x)) traces.push({ type: "scatter", x: [0], y: [0], opacity: 0,
        xaxis: panel.x, yaxis: panel.y, hoverinfo: "skip" });
    }
    const notes = [left ? `${left} more runs are in the filter than fit: choose fewer seeds.` : "",
      spikes ? `${spikes} runs have all values equal there: a dotted line.` : "",
      beyond ? `${beyond} runs reach beyond the picture; double-click to see all of it.` : "",
      lost ? `${lost} runs have values that are not finite; they are not drawn.` : ""];
    return { traces, layout, rows, of: all.length, legend: schemeLegend(legend), note: notes.filter(Boolean).join(" "),
      header: ["activation", "depth", "setting", "rate", "scheme", "seed", "layer", "step", "from", "to", "density"] };
  },
};

// Half the width of a picture in which most runs can be seen: one run a thousand times wider must not hide the others.
function sight(some, x) {
  const reach = finite(some.filter((h) => h.high > h.low).map((h) =>
    Math.max(Math.abs(h.low), Math.abs(h.high)) / (x === "rms" ? h.rms || 1 : 1)));
  if (!reach.length) return 0;
  const middle = median(reach);
  return Math.max(...reach.filter((v) => v <= 8 * middle)) * 1.03;
}

pictures.maps = {
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
    const scale = colouring(values, logarithmic);
    const traces = placed.map((panel, k) => {
      const { steps, indices, z } = tables[k];
      categories(panel.xaxis, steps.map(String), 8, 0);
      thinTicks(panel.xaxis, Math.floor(panel.cell / 34));
      categories(panel.yaxis, indices.map(String), 8);
      thinTicks(panel.yaxis, 9);
      if (panel.bottom) panel.xaxis.title = { text: "step", standoff: 6 };
      if (panel.left) panel.yaxis.title = { text: "layer", standoff: 6 };
      z.forEach((row, y) => row.forEach((value, x) => value == null ||
        rows.push([...panel.told(panel.runs), steps[x], indices[y], value, panel.runs.length])));
      return onBar({ type: "heatmap", z: z.map((row) => row.map(scale.of)), xaxis: panel.x, yaxis: panel.y,
        hoverinfo: "text", hoverongaps: false, hovertext: z.map((row, y) => row.map((value, x) =>
          `${brief(panel.title, 80)}<br>layer ${indices[y]} · step ${steps[x]}<br>${shown(c.stat, value)}`)) });
    });
    layout.coloraxis = { colorscale: t.scale, cmin: scale.low, cmax: scale.high, colorbar: { thickness: 12,
      outlinewidth: 0, len: Math.min(1, 300 / layout.height), y: 1, yanchor: "top",
      title: { text: statName(c.stat).split(" (")[0], side: "right" }, ...scale.bar } };
    const zeros = logarithmic && values.some((v) => v === 0) ? "Blank cells are exactly 0, or not finite." : "";
    return { traces, layout, rows, of: all.length, legend: [], note: zeros,
      header: ["scheme", "activation", "depth", "setting", "rate", "step", "layer", said(c.stat), "runs"] };
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
