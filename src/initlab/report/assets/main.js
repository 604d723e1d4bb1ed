// Every figure is drawn when it becomes visible, and again when a filter or the color scheme changes.

const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "autosize" };
const drawers = [];

function mountFigure(section) {
  const name = section.dataset.figure, spec = figures[name], plot = section.querySelector(".plot");
  section.querySelector(".caption").textContent = spec.caption || "";
  const state = { most: MOST_PANELS, dirty: true, seen: false, found: null, values: {} };
  let controls = null;

  function mountControls(some) {
    const place = section.querySelector(".controls");
    controls = spec.controls(some).filter((control) => control.options.length);
    for (const control of controls) {
      const offered = control.options.map(([value]) => value);
      state.values[control.name] = offered.includes(control.value) ? control.value : offered[0];
      if (control.options.length < 2) continue;
      const select = element("select", { "aria-label": `${name}: ${control.name}`, name: control.name, onchange: () => {
        state.values[control.name] = select.value;
        draw();
      } }, ...control.options.map(([value, text]) => element("option", { value }, text)));
      select.value = state.values[control.name];
      place.append(select);
    }
  }

  function found(t, width, most) {
    return spec.draw(view(spec.ignoreBest), state.values, t, width, most);
  }

  function draw() {
    if (!state.seen) { state.dirty = true; return; }
    state.dirty = false;
    if (!controls) mountControls(runs);
    const width = printing ? 700 : Math.max(280, plot.clientWidth || section.clientWidth);
    state.found = found(theme(), width, state.most);
    const note = section.querySelector(".note");
    note.replaceChildren(state.found.note || "");
    section.querySelector(".legend").replaceChildren(...state.found.legend.map(legendEntry));
    if (!state.found.rows.length) {
      Plotly.purge(plot);
      state.listens = false;
      plot.replaceChildren(element("p", { className: "empty" }, state.found.empty ||
        "Nothing to draw for these filters."));
      return;
    }
    if (plot.querySelector(".empty")) plot.replaceChildren();
    setTicks(state.found);
    Plotly.react(plot, state.found.traces, state.found.layout, CONFIG);
    if (!state.listens) plot.on("plotly_relayout", (change) => retick(plot, change));
    state.listens = true;
    if (state.found.of > state.most) {
      note.append(` ${state.most} of ${state.found.of} panels are shown. `, element("button", { type: "button",
        className: "small more", onclick: () => { state.most *= 3; draw(); } }, "show more"));
    }
  }

  section.querySelector("button.csv").addEventListener("click", () => {
    show();
    // The file has all panels, also those that are not shown.
    const all = found(theme(), 900, Infinity);
    save(`${name}.csv`, "text/csv;charset=utf-8", csvText(all.header, all.rows));
  });
  section.querySelector("button.svg").addEventListener("click", async () => {
    show();
    // A file is printed: its colors are light in any case, and it has its own legend.
    printing = true;
    const made = found(theme(), 1000, state.most);
    printing = false;
    setTicks(made);
    withLegend(made);
    const source = await Plotly.toImage({ data: made.traces, layout: made.layout, config: CONFIG },
      { format: "svg", width: made.layout.width, height: made.layout.height });
    save(`${name}.svg`, "image/svg+xml", decodeURIComponent(source.slice(source.indexOf(",") + 1)));
  });
  function show() { state.seen = true; if (state.dirty) draw(); }
  drawers.push({ section, draw, show });
}

// After zooming, compute the ticks of axes that have computed ticks.
function retick(plot, change) {
  const update = {};
  for (const key of new Set(Object.keys(change).map((k) => k.split(".")[0]))) {
    const axis = /^[xy]axis/.test(key) && Object.keys(change).some((k) => /range/.test(k)) && plot._fullLayout[key];
    if (axis && countsWhole(axis)) update[`${key}.dtick`] = spacing(...axis.range);
    if (!axis || axis.type !== "log") continue;
    const made = ticked(...axis.range.map((v) => 10 ** v));
    update[`${key}.tickvals`] = made.tickvals;
    update[`${key}.ticktext`] = made.ticktext;
  }
  if (Object.keys(update).length) Plotly.relayout(plot, update);
}

function legendEntry(entry) {
  const line = entry.dash === "solid" ? "solid" : entry.dash === "dot" ? "dotted" : "dashed";
  const style = entry.block ? `background: ${entry.color}; height: .8em; border: 0` : `border-top: 3px ${line} ${entry.color}`;
  return element("span", { title: entry.name }, element("i", { className: "swatch", style }), shorten(entry.name, 40));
}

function withLegend(made) {
  if (!made.legend.length) return;
  const side = 30 + 7.2 * Math.max(...made.legend.map((entry) => Math.min(26, entry.name.length))) + 34;
  const { layout } = made;
  layout.width += side;
  layout.margin = { ...layout.margin, r: layout.margin.r + side };
  made.traces = made.traces.map((trace) => ({ ...trace, showlegend: false }));
  for (const entry of made.legend) {
    made.traces.push({ type: "scatter", mode: entry.block ? "markers" : "lines", x: [null], y: [null], showlegend: true,
      name: shortLabel(entry.name), line: { color: entry.color, dash: entry.dash }, marker: { color: entry.color, size: 10,
        symbol: "square" } });
  }
  layout.showlegend = true;
  layout.legend = { x: 1 + 12 / Math.max(1, layout.width - layout.margin.l - layout.margin.r), y: 1, xanchor: "left" };
}

// ---- start

filterBar(document.getElementById("filters"));
const redrawTables = [...document.querySelectorAll("section.table")].map((section) => {
  const draw = mountTable(section);
  const state = { seen: false, dirty: true };
  const update = () => { if (state.seen) draw(); else state.dirty = true; };
  listeners.push(update);
  drawers.push({ section, draw: update, show: () => { state.seen = true; if (state.dirty) { state.dirty = false; draw(); } } });
  return draw;
});
document.querySelectorAll("section.figure").forEach(mountFigure);
const byElement = new Map(drawers.map((drawer) => [drawer.section, drawer]));
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) byElement.get(entry.target).show();
}, { rootMargin: "300px 0px" });
drawers.forEach(({ section }) => observer.observe(section));

// One drawing per frame, however fast the filters change.
const redrawFigures = () => drawers.filter(({ section }) => section.dataset.figure).forEach(({ draw }) => draw());
let waiting = false;
listeners.push(() => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; redrawFigures(); });
});
dark.addEventListener("change", redrawFigures);
let lastWidth = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === lastWidth || printing) return;
  lastWidth = window.innerWidth;
  listeners[listeners.length - 1]();
});
window.addEventListener("beforeprint", () => { printing = true; drawers.forEach(({ show }) => show()); redrawFigures(); });
window.addEventListener("afterprint", () => { printing = false; redrawFigures(); });
document.documentElement.dataset.ready = String(Math.round(performance.now()));
