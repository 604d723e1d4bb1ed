(() => {
"use strict";
// The map of phases: one heat map, the critical line, and the chosen schemes.

const data = JSON.parse(document.getElementById("data").textContent);
const place = document.getElementById("map"), choice = document.getElementById("quantity");
const note = document.getElementById("note");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let printing = false;

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

const width = data.sigma_w.length;
const rows = (values) => data.sigma_b.map((_, k) => Array.from(values.subarray(k * width, (k + 1) * width)));
const grids = {};
for (const one of data.quantities) grids[one.name] = { ...one, grid: rows(unpack(one.values)) };

// Where q grows without bound a correlation converges slower than any exponential: the gradient's depth scale is shown.
const endless = grids.q_star.grid.some((row) => row.includes(Infinity));
const scale = (j, i) => (grids.q_star.grid[j][i] === Infinity ? 1 / Math.abs(Math.log(grids.chi_1.grid[j][i]))
  : Math.abs(grids.xi_c.grid[j][i]));

// The range of the color scale, in layers.
const DEEPEST = 1000, SMALLEST = 0.1;

function shown(one) {
  if (one.name === "xi_c") return one.grid.map((row, j) => row.map((_, i) =>
    Math.log10(Math.min(Math.max(scale(j, i), SMALLEST), DEEPEST))));
  if (one.name === "chi_1") return one.grid.map((row) => row.map((v) => (Number.isFinite(v) ? Math.min(v, 4) : null)));
  if (one.log) return one.grid.map((row) => row.map((v) => (v > 1e-6 && v < 1e12 ? Math.log10(v) : null)));
  return one.grid.map((row) => row.map((v) => (Number.isFinite(v) ? v : null)));
}

const number = (v) => {
  if (v === Infinity) return "∞";
  if (Number.isNaN(v)) return "–";
  const size = Math.abs(v);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? v.toExponential(2) : String(Number(v.toPrecision(4)));
};

function words() {
  return data.sigma_b.map((b, j) => data.sigma_w.map((w, i) => {
    const at = (name) => grids[name].grid[j][i];
    const chi = at("chi_1"), phase = Math.abs(chi - 1) < 1e-9 ? "critical" : chi < 1 ? "ordered" : "chaotic";
    const depth = scale(j, i) * 6, own = at("q_star") === Infinity ? "1/|ln χ₁|" : "ξ_c";
    return `<b>${phase}</b><br>σ_w ${number(w)}, σ_b ${number(b)}<br>χ₁ ${number(chi)}, q* ${number(at("q_star"))}, ` +
      `c* ${number(at("c_star"))}<br>${own} ${number(scale(j, i))}: trains to depth ${depth > 1e4 ? "any" : Math.round(depth)}`;
  }));
}
const hover = words();

function ticks(one, z) {
  if (!one.log) return {};
  let low = Infinity, high = -Infinity;
  for (const row of z) for (const v of row) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  const values = [];
  for (let k = Math.ceil(low - 1e-9); k <= high + 1e-9; k++) values.push(k);
  if (values.length < 2) values.splice(0, values.length, low, high);
  const last = one.name === "xi_c" && high > Math.log10(DEEPEST) - 1e-9;
  return { tickmode: "array", tickvals: values,
    ticktext: values.map((k, n) => (last && n === values.length - 1 ? "≥ " : "") + number(10 ** k)) };
}

// The label of a phase is at the mean of its points.
function middle(test) {
  let x = 0, y = 0, n = 0;
  grids.chi_1.grid.forEach((row, j) => row.forEach((v, i) => {
    if (test(v)) { x += data.sigma_w[i]; y += data.sigma_b[j]; n += 1; }
  }));
  return n > 0.02 * width * data.sigma_b.length ? [x / n, y / n] : null;
}

function draw() {
  const night = dark.matches && !printing, one = grids[choice.value], z = shown(one);
  const ink = night ? "#e6e6e6" : "#1d2126", muted = night ? "#a0a4a8" : "#5c6670", paper = night ? "#16181b" : "#ffffff";
  const heat = { type: "heatmap", x: data.sigma_w, y: data.sigma_b, z, text: hover, hoverinfo: "text", zsmooth: false,
    colorscale: one.name === "chi_1" ? "RdBu" : "Viridis",
    colorbar: { title: { text: place.clientWidth < 560 ? "" : one.title, side: "right" }, outlinewidth: 0, ...ticks(one, z) } };
  if (one.name === "chi_1") Object.assign(heat, { zmin: 0, zmax: 2, zmid: 1 });
  if (one.name === "c_star") Object.assign(heat, { zmin: 0, zmax: 1 });
  const bright = one.name === "chi_1";
  const lineInk = bright ? "#111111" : "#ffffff", edge = bright ? "#ffffff" : "#111111";
  const there = data.line.map((w, k) => [w, data.sigma_b[k]]).filter(([w]) => w !== null);
  const line = (color, size) => ({ type: "scatter", mode: "lines", x: there.map((p) => p[0]), y: there.map((p) => p[1]),
    line: { color: color, width: size }, hoverinfo: "skip", name: "critical line" });
  const traces = [heat];
  if (there.length) traces.push(line(edge, 5), line(lineInk, 2.5));
  const inside = data.marks.filter((m) => m.x >= data.sigma_w[0] && m.x <= data.sigma_w.at(-1) &&
    m.y >= data.sigma_b[0] && m.y <= data.sigma_b.at(-1));
  // Schemes at one point share a label; those at the lowest σ_b are moved up.
  const spots = new Map();
  for (const m of inside) {
    const key = `${m.x.toFixed(6)} ${m.y.toFixed(6)}`;
    spots.set(key, spots.has(key) ? { ...m, name: `${spots.get(key).name}, ${m.name}` } : m);
  }
  const pins = [...spots.values()].sort((a, b) => a.x - b.x);
  if (pins.length) traces.push({ type: "scatter", mode: "markers", x: pins.map((m) => m.x), y: pins.map((m) => m.y),
    cliponaxis: false, marker: { size: 11, color: "#ff5d3b", line: { color: "#ffffff", width: 2 } },
    hovertext: pins.map((m) => `${m.name}<br>σ_w ${number(m.x)}, σ_b ${number(m.y)}`), hoverinfo: "text" });
  // Each label has its own height above the lower edge, so that none hides another.
  const [left, right] = [data.sigma_w[0], data.sigma_w.at(-1)], [low, high] = [data.sigma_b[0], data.sigma_b.at(-1)];
  const annotations = pins.map((m, k) => {
    const height = low + (high - low) * (0.08 + 0.075 * (k % 8)), up = m.y < height - 0.02 * (high - low);
    const part = (m.x - left) / (right - left);
    return { x: m.x, y: m.y, axref: "x", ayref: "y", ax: m.x, ay: up ? height : m.y + 0.08 * (high - low), text: m.name,
      xanchor: part < 0.3 ? "left" : part > 0.7 ? "right" : "center", showarrow: true, arrowhead: 0,
      arrowcolor: "#ffffff", bgcolor: "rgba(0,0,0,.78)", font: { color: "#ffffff", size: 12 }, borderpad: 3 };
  });
  for (const [name, test] of [["ordered", (v) => v < 1 - 1e-9], ["chaotic", (v) => v > 1 + 1e-9]]) {
    const at = middle(test);
    if (at) annotations.push({ x: at[0], y: at[1], text: `<b>${name}</b>`, showarrow: false,
      font: { color: "#ffffff", size: 17 }, bgcolor: "rgba(0,0,0,.45)", borderpad: 4 });
  }
  const room = place.clientWidth || 900, small = room < 560;
  const axis = { gridcolor: muted, linecolor: muted, tickcolor: muted, zeroline: false, ticks: "outside", showgrid: false };
  const layout = { width: room, height: Math.max(360, Math.min(600, room * 0.5)),
    margin: { l: 58, r: small ? 10 : 30, t: 26, b: 54 }, paper_bgcolor: paper, plot_bgcolor: paper, showlegend: false,
    font: { family: "system-ui, sans-serif", size: 13, color: ink }, annotations,
    xaxis: { ...axis, title: { text: "σ_w" }, range: [data.sigma_w[0], data.sigma_w.at(-1)] },
    yaxis: { ...axis, title: { text: "σ_b" }, range: [data.sigma_b[0], data.sigma_b.at(-1)] },
    hoverlabel: { align: "left" } };
  Plotly.react(place, traces, layout, { displaylogo: false, responsive: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  const outside = data.marks.filter((m) => !inside.includes(m)).map((m) => m.name);
  note.textContent = [there.length ? "The line is the critical one." : "There is no critical line in this map.",
    data.repelling ? "Where it repels (at small σ_b here) no network stays on it, and the phases meet elsewhere." : "",
    endless ? "Where q grows without bound, 1/|ln χ₁| stands in for ξ_c, and q* has no color." : "",
    outside.length ? `Outside of the map: ${outside.join(", ")}.` : ""].filter(Boolean).join(" ");
}

choice.addEventListener("change", draw);
dark.addEventListener("change", draw);
window.addEventListener("resize", draw);
window.addEventListener("beforeprint", () => { printing = true; draw(); });
window.addEventListener("afterprint", () => { printing = false; draw(); });
draw();
})();
