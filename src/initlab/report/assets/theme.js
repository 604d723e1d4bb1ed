// Colors, and the grid of panels that all figures share.

const SCHEME_COLORS = ["#2f7ed8", "#e8710a", "#1a9e5c", "#d93a4a", "#9467d6", "#a8703a", "#d65db1", "#7f8a93",
  "#9a9a00", "#13a5b5"];
const DASHES = ["solid", "dot", "dashdot", "longdash"];
const OUTCOME_COLORS = { trained: "#1a9e5c", learning: "#8bbf3f", stuck: "#c9a227", finished: "#2f7ed8", diverged: "#d9480f",
  failed: "#b5179e", skipped: "#9aa5ad", unfinished: "#6c757d", damaged: "#495057" };
const OUTCOMES = Object.keys(OUTCOME_COLORS);
const MOST_PANELS = 6;

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;

function theme() {
  const isDark = dark.matches && !printing;
  return isDark
    ? { isDark, ink: "#e6e6e6", muted: "#a0a4a8", grid: "#33373c", paper: "#16181b", scale: "Viridis" }
    : { isDark, ink: "#1d2126", muted: "#5c6670", grid: "#e3e6e9", paper: "#ffffff", scale: "Viridis" };
}

function schemeStyle(scheme) {
  const place = rank.scheme.get(scheme) || 0;
  return { color: SCHEME_COLORS[place % SCHEME_COLORS.length],
    dash: DASHES[Math.floor(place / SCHEME_COLORS.length) % DASHES.length] };
}

// Ordered values (depths) get neighboring colors.
function orderedStyle(place, count) {
  const stops = [[47, 126, 216], [26, 158, 92], [232, 113, 10], [201, 42, 82]];
  const at = count > 1 ? (place / (count - 1)) * (stops.length - 1) : 0;
  const low = Math.min(Math.floor(at), stops.length - 2), part = at - low;
  const mixed = stops[low].map((v, k) => Math.round(v + part * (stops[low + 1][k] - v)));
  return { color: `rgb(${mixed.join(",")})`, dash: "solid" };
}

function withAlpha(color, alpha) {
  const parts = color.startsWith("#") ? [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16))
    : color.match(/\d+/g).slice(0, 3);
  return `rgba(${parts.join(",")},${alpha})`;
}

function swatch(scheme) {
  const { color, dash } = schemeStyle(scheme);
  return element("i", { className: "swatch", style: `border-top: 3px ${dash === "solid" ? "solid" : dash === "dot" ?
    "dotted" : "dashed"} ${color}` });
}

// Plotly reads some markup in its labels: a name must not be read as markup.
const escapeMarkup = (text) => String(text).replace(/\s+/g, " ").replace(/&/g, "&amp;").replace(/</g, "&lt;")
  .replace(/>/g, "&gt;");
const shortLabel = (text, most = 26) => escapeMarkup(shorten(String(text), most));

const HOVER = { hoverlabel: { align: "left", namelength: -1 } };

// The layout of a grid of panels, and for each panel the names of its axes.
function grid(list, width, t, options = {}) {
  const { rowHeight = 230, left = 62, right = 16, gapX = 66, gapY = 74, bottom = 46, top = 30, wide = 3 } = options;
  const columns = Math.max(1, Math.min(list.length, width > 880 ? wide : width > 560 ? Math.min(2, wide) : 1));
  const rows = Math.max(1, Math.ceil(list.length / columns));
  const inside = Math.max(120, width - left - right), tall = rows * rowHeight + (rows - 1) * gapY;
  const cell = (inside - (columns - 1) * gapX) / columns;
  const layout = { width, height: tall + top + bottom, margin: { l: left, r: right, t: top, b: bottom, pad: 0 },
    paper_bgcolor: t.paper, plot_bgcolor: t.paper, showlegend: false, annotations: [], shapes: [],
    font: { family: "system-ui, sans-serif", size: 12, color: t.ink }, hovermode: "closest",
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom", ...HOVER };
  const placed = list.map((panel, k) => {
    const column = k % columns, row = Math.floor(k / columns), id = k ? String(k + 1) : "";
    const x0 = (column * (cell + gapX)) / inside, y1 = 1 - (row * (rowHeight + gapY)) / tall;
    const x = [x0, Math.min(1, x0 + cell / inside)], y = [Math.max(0, y1 - rowHeight / tall), y1];
    const common = { gridcolor: t.grid, zerolinecolor: t.grid, linecolor: t.muted, tickcolor: t.muted, showline: true,
      ticks: "outside", ticklen: 4, automargin: false, title: { standoff: 8 } };
    layout[`xaxis${id}`] = { ...common, domain: x, anchor: `y${id}` };
    layout[`yaxis${id}`] = { ...common, domain: y, anchor: `x${id}` };
    if (panel.title) layout.annotations.push({ text: `<b>${shortLabel(panel.title, Math.max(16, Math.floor(cell / 6.4)))}</b>`,
      xref: "paper", yref: "paper", x: x[0], y: y[1], xanchor: "left", yanchor: "bottom", showarrow: false, yshift: 3,
      hovertext: escapeMarkup(panel.title) });
    return { ...panel, x: `x${id}`, y: `y${id}`, xaxis: layout[`xaxis${id}`], yaxis: layout[`yaxis${id}`], cell,
      bottom: row === rows - 1 || k + columns >= list.length, left: column === 0 };
  });
  return { layout, placed };
}

// A logarithmic axis; `setTicks` computes its ticks when all traces are known.
const logAxis = { type: "log" };

function logTicks(low, high) {
  const decades = Math.log10(high / low), found = [];
  if (decades > 1.6) {
    const apart = Math.max(1, Math.ceil(decades / 6));
    for (let k = Math.ceil(Math.log10(low) - 0.2); k <= Math.log10(high) + 0.2; k += apart) found.push(10 ** k);
    return found;
  }
  for (const steps of [[1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]]) {
    found.length = 0;
    for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++) {
      for (const step of steps) if (step * 10 ** k >= low * 0.97 && step * 10 ** k <= high * 1.03) found.push(step * 10 ** k);
    }
    if (found.length > 2) return found;
  }
  return [low, Math.sqrt(low * high), high];
}

function tickText(value) {
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e4 || size < 1e-3) && Math.abs(Math.log10(size) % 1) < 1e-9
    ? `10<sup>${String(Math.round(Math.log10(size))).replace("-", "−")}</sup>` : short(value, 2);
}

const ticked = (low, high) => {
  const values = logTicks(low, high);
  return { tickmode: "array", tickvals: values, ticktext: values.map(tickText) };
};

// An axis of whole numbers: there is no layer 1.5, where Plotly would put a tick. No other axis has `dtick`.
const wholeAxis = { type: "linear", tickmode: "linear", tick0: 0, dtick: 1 };
const countsWhole = (axis) => axis.type === "linear" && axis.tickmode === "linear";

// The distance between at most `most` ticks of an axis of whole numbers: 1, 2, 5, 10, 20, …
function spacing(low, high, most = 8) {
  const least = Math.max(1, (high - low) / most), unit = 10 ** Math.floor(Math.log10(least));
  return unit * [1, 2, 5, 10].find((k) => k * unit >= least * (1 - 1e-9));
}

// Compute the ticks of every axis that is logarithmic or of whole numbers, from its range or its traces.
function setTicks({ layout, traces }) {
  for (const [key, axis] of Object.entries(layout)) {
    if (!/^[xy]axis/.test(key) || !(axis.type === "log" || countsWhole(axis))) continue;
    const direction = key[0], id = direction + key.slice(5), logarithmic = axis.type === "log";
    let low = Infinity, high = -Infinity;
    if (axis.range) [low, high] = axis.range.map((v) => (logarithmic ? 10 ** v : v));
    else for (const trace of traces) {
      if ((trace[`${direction}axis`] || direction) !== id) continue;
      for (const v of trace[direction]) {
        if (Number.isFinite(v) && (v > 0 || !logarithmic)) { low = Math.min(low, v); high = Math.max(high, v); }
      }
    }
    if (high >= low) Object.assign(axis, logarithmic ? ticked(low, high) : { dtick: spacing(low, high) });
  }
}

// A heat map on the common color bar. Plotly cannot draw one without any value: then the texts of its cells are drawn
// alone.
function onColorBar(trace) {
  if (trace.z.some((row) => row.some((v) => v != null))) return { ...trace, coloraxis: "coloraxis" };
  const cells = trace.z.flatMap((row, y) => row.map((_, x) => [x, y]));
  const flat = (table) => cells.map(([x, y]) => (table ? table[y][x] : "") || "");
  return { type: "scatter", mode: "text", x: cells.map(([x]) => x), y: cells.map(([, y]) => y), text: flat(trace.text),
    hovertext: flat(trace.hovertext), hoverinfo: "text", textfont: { size: 11 }, xaxis: trace.xaxis, yaxis: trace.yaxis };
}

function categories(axis, texts, most = 18, angle) {
  const every = Math.max(1, Math.ceil(texts.length / 40));
  const kept = texts.map((text, k) => [text, k]).filter(([, k]) => k % every === 0);
  Object.assign(axis, { type: "linear", tickmode: "array", tickvals: kept.map(([, k]) => k),
    ticktext: kept.map(([text]) => shortLabel(text, most)), showgrid: false, zeroline: false,
    range: [-0.5, texts.length - 0.5] });
  if (angle !== undefined) axis.tickangle = angle;
}

// A color scale, of logarithms where values span decades. Returns how to map values and how to label the bar.
function colorScale(values, logarithmic) {
  const good = finite(values).filter((v) => !logarithmic || v > 0);
  if (!good.length) return { of: () => null, low: 0, high: 1, bar: {} };
  const of = logarithmic ? (v) => (v > 0 && Number.isFinite(v) ? Math.log10(v) : null)
    : (v) => (v != null && Number.isFinite(v) ? v : null);
  const mapped = good.map(of);
  let low = Math.min(...mapped), high = Math.max(...mapped);
  if (high - low < 1e-9) { low -= 0.5 * Math.max(1e-6, Math.abs(low)); high += 0.5 * Math.max(1e-6, Math.abs(high)); }
  const bar = {};
  if (logarithmic) {
    const apart = Math.max(1, Math.ceil((high - low) / 6)), ticks = [];
    for (let k = Math.ceil(low); k <= high; k += apart) ticks.push(k);
    if (ticks.length < 2) ticks.splice(0, ticks.length, low, high);
    Object.assign(bar, { tickmode: "array", tickvals: ticks, ticktext: ticks.map((k) => short(10 ** k, 2)) });
  }
  return { of, low, high, bar };
}
