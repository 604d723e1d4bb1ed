// The filters, and how runs are grouped into panels and lines.

const AXES = [
  ["activation", "act"], ["scheme", "init"], ["depth", "depth"], ["seed", "seed"],
  ["rateText", "rate"], ["setting", "setting"], ["sweep", "sweep"],
].filter(([key]) => levels[key].length > 1 && new Set(runs.map((r) => r[key])).size > 1)
  .map(([key, title]) => ({ key, title, values: levels[key], chosen: new Set(levels[key]) }));

let bestOnly = data.rates;
const listeners = [];
const changed = () => listeners.forEach((update) => update());

function view(ignoreBest = false) {
  return runs.filter((run) => (ignoreBest || !bestOnly || run.best_rate) &&
    AXES.every((axis) => axis.chosen.has(run[axis.key])));
}

const isChosen = (key, value) => {
  const axis = AXES.find((a) => a.key === key);
  return !axis || axis.chosen.has(value);
};

// Groups of runs that agree in some keys, in the order of the keys' levels: [{values, runs}].
function grouped(some, keys) {
  const found = new Map();
  for (const run of some) {
    const id = JSON.stringify(keys.map((key) => run[key]));
    if (!found.has(id)) found.set(id, { values: Object.fromEntries(keys.map((key) => [key, run[key]])), runs: [] });
    found.get(id).runs.push(run);
  }
  return [...found.values()].sort((a, b) => {
    for (const key of keys) {
      const gap = rank[key].get(a.values[key]) - rank[key].get(b.values[key]);
      if (gap) return gap;
    }
    return 0;
  });
}

const NAMES = {
  activation: (v) => v, scheme: (v) => v, setting: (v) => v, depth: (v) => `depth ${v}`, rateText: (v) => `rate ${v}`,
};

// Panels: one per combination of those keys that differ among the runs. The first key is always named.
function panels(some, keys) {
  // At the best rate of each cell, rates differ between schemes that are compared: they make no panels then.
  const differing = keys.filter((key, k) => k === 0 ||
    (!(key === "rateText" && bestOnly) && new Set(some.map((run) => run[key])).size > 1));
  return grouped(some, differing).map((panel) => ({
    ...panel,
    title: differing.map((key) => NAMES[key](panel.values[key])).filter(Boolean).join(" · "),
    // The cells of a CSV line about some of the panel's runs.
    csvCells: (own) => keys.map((key) => [...new Set(own.map((run) => run[key]))].join(" ")),
  }));
}

// ---- the filter bar

function filterBar(place) {
  const count = element("span", { className: "count" });
  const body = element("div", { className: "axes" });
  const wide = window.matchMedia("(min-width: 1000px)").matches;
  const box = element("details", { open: wide }, element("summary", {}, "Filters ", count), body);
  for (const axis of AXES) body.append(axisChips(axis));
  if (data.rates) {
    const tick = element("input", { type: "checkbox", checked: bestOnly, id: "best-only",
      onchange: () => { bestOnly = tick.checked; changed(); } });
    body.append(element("div", { className: "axis" }, element("label", { className: "best", htmlFor: "best-only",
      title: "the rate with the least mean validation loss of each cell" }, tick, " best rate of each cell only")));
  }
  const update = () => { count.textContent = `${view().length} of ${runs.length} runs`; };
  listeners.push(update);
  update();
  place.append(box);
}

function axisChips(axis) {
  const chips = axis.values.map((value) => {
    const tick = element("input", { type: "checkbox", checked: true, value });
    tick.addEventListener("change", () => {
      if (tick.checked) axis.chosen.add(value); else axis.chosen.delete(value);
      changed();
    });
    const label = element("label", { className: "chip", title: value }, tick);
    if (axis.key === "scheme") label.append(swatch(value));
    label.append(element("span", { className: "text" }, value === "" ? "(none)" : shorten(value, 72)));
    return { tick, label, value };
  });
  const set = (keep) => {
    axis.chosen.clear();
    for (const chip of chips) {
      chip.tick.checked = keep(chip);
      if (chip.tick.checked) axis.chosen.add(chip.value);
    }
    changed();
  };
  const all = element("button", { type: "button", className: "small", onclick: () => set(() => true) }, "all");
  const none = element("button", { type: "button", className: "small", onclick: () => set(() => false) }, "none");
  // A double click on a chip selects it alone.
  for (const chip of chips) chip.label.addEventListener("dblclick", () => set((other) => other === chip));
  return element("div", { className: "axis", role: "group", "aria-label": axis.title, "data-axis": axis.title },
    element("span", { className: "title" }, axis.title), all, none,
    element("span", { className: "chips" }, ...chips.map((chip) => chip.label)));
}

// Shorten a text in its middle: names of settings begin alike and differ at their ends.
const shorten = (text, most) => {
  const all = [...text], tail = most >> 1;
  return all.length > most ? `${all.slice(0, most - 1 - tail).join("")}…${all.slice(-tail).join("")}` : text;
};
