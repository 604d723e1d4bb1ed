// Tables that can be sorted and filtered; all text is inserted as text.

const anyDepth = (v) => (v != null && v >= 1e4 ? "any" : short(v));
const number = (key, title, show = short) => ({ key, title, show, numeric: true });
const textColumn = (key, title) => ({ key, title, show: (v) => (v == null ? "" : String(v)), numeric: false });
const share = (key, title) => number(key, title, percent);
const metricColumn = (metric) => (isShare(metric) ? share : number)(metric, label(metric));
const only = (columns, rows) => columns.filter((column) => rows.some((row) => row[column.key] != null && row[column.key] !== ""));

const CELL_COLUMNS = [textColumn("scheme", "init"), textColumn("activation", "act"), { ...textColumn("depth", "depth"), numeric: true },
  textColumn("setting", "setting"), number("rate", "rate")];
const inFilters = (row) => isChosen("activation", row.activation) && isChosen("depth", row.depth || "none") &&
  isChosen("setting", row.setting);
const inOrder = (a, b) => {
  for (const key of ["activation", "depth", "setting", "scheme"]) {
    const gap = (rank[key].get(asText(a[key])) ?? 0) - (rank[key].get(asText(b[key])) ?? 0);
    if (gap) return gap;
  }
  return 0;
};
const asText = (value) => (value == null || value === "" ? "none" : String(value));

const VERDICTS = ["better", "smaller than seed noise", "cannot tell"];

// Most seeds of one cell fail for the same reason: one row for each cause, with the numbers of its first run.
function causes() {
  const found = new Map();
  for (const run of view().filter((r) => r.failure)) {
    const own = [run.scheme, run.activation, run.depth, run.setting, run.rateText, run.outcome];
    const id = JSON.stringify([...own, run.failure.replace(/[\d.,%]+(e[+-]?\d+)?/g, "#").replace(/hidden\S*/g, "#")]);
    if (found.has(id)) found.get(id).seeds.push(run.seed);
    else found.set(id, { ...run, seeds: [run.seed] });
  }
  return [...found.values()].map((row) => ({ ...row, runs: row.seeds.length, seeds: row.seeds.join(" ") }));
}

const TABLES = {
  pairs: {
    caption: () => `Differences in ${label(data.metric || "")} paired by seed, each scheme at the best rate of its cell, ` +
      `each with its interval: at 95 % all ${data.pairs.length} hold the true differences at once (Student's, Bonferroni). ` +
      "“Better”: the interval lies above zero. “Smaller than seed noise”: it holds zero and nothing that matters, which " +
      `is ${isShare(data.metric || "") ? "a point of accuracy" : "a twentieth of the median loss"}. Else “cannot tell”. ` +
      "A diverged run counts as the worst completed one of its data. " +
      (data.few.length ? `${data.few.length} more pairs have fewer than five common seeds, too few to compare. ` : "") +
      "The filter by seed does not apply here." +
      (data.rates ? " Windows are the usable rates of both, in decades: wide ones are robust." : ""),
    columns: () => [textColumn("first", "init"), textColumn("verdict", "is"), textColumn("second", "than"), textColumn("activation", "act"),
      { ...textColumn("depth", "depth"), numeric: true }, textColumn("setting", "setting"), ...["difference", "low", "high"].map((k) =>
        (isShare(data.metric || "") ?
          { ...number(k, `${{ difference: "difference", low: "from", high: "to" }[k]}, points`, points), factor: 100 } :
          number(k, { difference: k, low: "from", high: "to" }[k]))),
      number("p", "p, corrected", (v) => (v == null ? "" : v < 1e-3 ? "< 0.001" : rounded(v, 3).toFixed(3))), number("n", "seeds"),
      number("first_window", "window"), number("second_window", "than: window"), textColumn("seeds", "which seeds")],
    rows: () => data.pairs.filter((row) => inFilters({ ...row, depth: asText(row.depth) }) && isChosen("scheme", row.first) &&
      isChosen("scheme", row.second)).sort((a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) || inOrder(a, b)),
    classOf: (row) => `verdict ${row.verdict.split(" ")[0]}`,
  },
  windows: {
    caption: () => "From the smallest to the largest rate of the widest unbroken range at which at least half of the " +
      "seeds trained (without accuracies: ended at most 10 % above the cell's least loss). “At the edge” means that " +
      "the range touches the end of the tried rates, so it may be wider. All seeds count.",
    columns: () => [...CELL_COLUMNS.slice(0, 4), number("low", "from rate"), number("high", "to rate"),
      number("decades", "decades"), number("usable", "usable"), number("tried", "tried"), number("best", "best rate"),
      textColumn("edge", "at the edge")],
    rows: () => data.windows.filter((row) => inFilters({ ...row, depth: asText(row.depth) }) && isChosen("scheme", row.scheme))
      .map((row) => ({ ...row, edge: row.edge ? "yes" : "" })).sort(inOrder),
  },
  cells: {
    caption: () => (data.metric ? `The mean ${label(data.metric)} of completed runs over all seeds, its standard ` +
      "deviation, and the 95 % interval of the mean (Student's, on the scale of " +
      `${isShare(data.metric) ? "log-odds" : "logarithms"}, by the delta method). The filter by seed does not apply.` :
      "No run has completed."),
    columns: () => [...CELL_COLUMNS, textColumn("ended", "ended"),
      ...["mean", "std", "low", "high"].map((k) => (isShare(data.metric || "") ? share : number)(k,
        { mean: label(data.metric || "mean"), std: "± std", low: "low (95 %)", high: "high (95 %)" }[k])),
      number("n", "seeds")],
    rows: () => data.cells.filter((row) => inFilters({ ...row, depth: asText(row.depth) }) && isChosen("scheme", row.scheme) &&
      isChosen("rateText", row.rate == null ? "none" : short(row.rate)) && (!bestOnly || row.best_rate))
      .map((row) => ({ ...row, ended: OUTCOMES.filter((o) => row[o]).map((o) => `${row[o]} ${o}`).join(", ") })),
    sort: ["mean", !data.metric || isShare(data.metric) ? -1 : 1],
  },
  runs: {
    caption: () => "One row per run, after the filters.",
    columns: () => [textColumn("name", "run"), ...CELL_COLUMNS.slice(0, 3), { ...textColumn("seed", "seed"), numeric: true },
      ...CELL_COLUMNS.slice(3), textColumn("outcome", "outcome"), ...METRICS.map(metricColumn), number("steps", "steps"),
      number("seconds", "seconds"), number("first_bad_step", "diverged at"), number("trainable_depth", "trainable depth", anyDepth),
      textColumn("sweep", "sweep"), textColumn("path", "path")],
    rows: () => view(),
    classOf: (row) => `outcome ${row.outcome}`,
  },
  failures: {
    caption: () => "Every run that did not train, with the cause that its records show. Seeds that share a cause " +
      "share a row; its numbers are those of the first.",
    columns: () => [...CELL_COLUMNS.slice(0, 4), textColumn("outcome", "outcome"), number("runs", "runs"),
      textColumn("seeds", "seeds"), { ...textColumn("failure", "diagnosis"), long: true }, textColumn("name", "first run")],
    rows: causes,
    classOf: (row) => `outcome ${row.outcome}`,
  },
  unread: {
    caption: () => "Files and directories beside the runs that are no runs, and runs that are not whole.",
    columns: () => [textColumn("name", "directory"), textColumn("status", "status"), { ...textColumn("reason", "reason"), long: true }],
    rows: () => data.unread,
  },
};

const MOST_ROWS = 100;

function mountTable(section) {
  const spec = TABLES[section.dataset.table], place = section.querySelector(".scroll");
  const state = { sort: spec.sort ? spec.sort[0] : null, direction: spec.sort ? spec.sort[1] : 1, find: "", most: MOST_ROWS };
  section.querySelector(".caption").textContent = spec.caption();
  const box = element("input", { type: "search", placeholder: "find text …", "aria-label": "find text in this table",
    oninput: () => { state.find = box.value.toLowerCase(); draw(); } });
  section.querySelector(".controls").append(box);
  const columns = only(spec.columns(), spec.rows().length ? spec.rows() : []);

  function rows() {
    let found = spec.rows();
    if (state.find) found = found.filter((row) => columns.some((c) => c.show(row[c.key]).toLowerCase().includes(state.find)));
    const column = columns.find((c) => c.key === state.sort);
    return column ? [...found].sort((a, b) => compare(a[column.key], b[column.key], column) * state.direction) : found;
  }

  // Blanks come last in both directions, so `direction` is undone for them.
  function compare(a, b, column) {
    const value = (v) => (column.numeric && v != null && v !== "" && !Number.isNaN(Number(v)) ? Number(v) : v);
    const [x, y] = [value(a), value(b)], gone = (v) => v == null || v === "" || Number.isNaN(v);
    if (gone(x) || gone(y)) return ((gone(x) ? 1 : 0) - (gone(y) ? 1 : 0)) * state.direction;
    if (typeof x === "number" && typeof y === "number") return x - y;
    return String(x).localeCompare(String(y), "en", { numeric: true });
  }

  function draw() {
    const found = rows();
    const head = element("tr", {}, ...columns.map((column) => element("th", {
      scope: "col", className: `${column.numeric ? "number" : ""} ${column.long ? "long" : ""} ${column.key}`,
      "aria-sort": state.sort === column.key ? (state.direction > 0 ? "ascending" : "descending") : "none",
    }, element("button", { type: "button", onclick: () => {
      state.direction = state.sort === column.key ? -state.direction : 1;
      state.sort = column.key;
      draw();
    } }, column.title))));
    const body = found.slice(0, state.most).map((row) => element("tr", { className: spec.classOf ? spec.classOf(row) : "" },
      ...columns.map((column) => element("td", { className: `${column.numeric ? "number" : ""} ${column.long ? "long" : ""} ${column.key}`,
        "data-title": column.title, title: column.long ? "" : column.show(row[column.key]) }, column.show(row[column.key])))));
    place.replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
    const note = section.querySelector(".note");
    note.replaceChildren(`${found.length} row${found.length === 1 ? "" : "s"}`);
    if (found.length > state.most) {
      note.append(`, the first ${state.most} shown. `, element("button", { type: "button", className: "small more",
        onclick: () => { state.most = Infinity; draw(); } }, "show all"));
    }
  }
  section.querySelector("button.csv").addEventListener("click", () => save(`${section.dataset.table}.csv`,
    "text/csv;charset=utf-8", csvText(columns.map((c) => c.title), rows().map((row) => columns.map((c) => {
      const value = row[c.key];
      if (!c.numeric || value == null || value === "" || Number.isNaN(Number(value))) return value;
      return c.factor ? Number((value * c.factor).toPrecision(12)) : Number(value);
    })))));
  return draw;
}
