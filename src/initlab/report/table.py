"""`initlab table`: mean ± std over seeds, grouped as the user likes, as text, CSV, Markdown or LaTeX."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from initlab.config.checks import nearest_key
from initlab.errors import UserError, did_you_mean
from initlab.report.pairs import comparison_metric, run_scores
from initlab.report.study import (
    METRIC_PREFERENCE,
    Study,
    affects_result,
    distinguishing_keys,
    sorted_values,
    value_text,
)
from initlab.statistics.comparisons import compare_groups

COMMON_KEYS = ("init", "act", "model", "data", "optim", "depth", "width", "seed", "optim.lr")
EXTRA_METRICS = ("seconds", "steps", "trained", "first_bad_step")


@dataclass(frozen=True)
class TableEntry:
    """Mean and standard deviation over `n` completed runs of one group, of the `equals_value` that there are.

    `best`: is it better than all that it competes with, beyond what seeds do? `scores`: its metric by seed, larger is
    better, from which that is judged.
    """

    mean: float
    std: float
    n: int
    of: int = 0
    best: bool = False
    scores: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class TableRow:
    """One row of a table: the values of its keys, how its runs ended, and an entry per column (None: no run)."""

    keys: tuple[Any, ...]
    ended: str
    entries: tuple[TableEntry | None, ...]


@dataclass(frozen=True)
class ResultTable:
    """`keys` name the first columns; `columns` are (metric, value of the key across, or None) for the others."""

    keys: tuple[str, ...]
    across: str | None
    columns: tuple[tuple[str, Any], ...]
    lines: tuple[TableRow, ...]
    mixed: tuple[str, ...]
    marked: bool

    def heading(self, column: tuple[str, Any]) -> str:
        """Return the heading of a column, with its unit."""
        metric, value = column
        shown = f"{metric.replace('_', ' ')}{' (%)' if is_percentage(metric) else ''}"
        return shown if self.across is None else f"{self.across}={value_text(value) or 'none'} {shown}"

    @property
    def runs(self) -> str:
        """Return the heading of the column that says how many runs each mean is over."""
        return "runs" if self.across is None else "runs each"


def is_percentage(metric: str) -> bool:
    """Is it told in percent?"""
    return "accuracy" in metric or metric == "trained"


def build_table(
    study: Study,
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    across: str | None = None,
    best: bool = False,
) -> ResultTable:
    """Group runs and summarise metrics over what is left, which should be the seeds.

    Arguments: `by`: configuration keys; by default all that differ between runs, but for the seed. `metrics`: by
    default the test accuracy, or what there is. `across`: one of the keys whose values become columns. `best`: mark
    what is better than all that differ from it in one key only, which `contest_key` names, as `compare_groups` judges.

    Raises:
        UserError: a key or a metric is unknown.
    """
    runs = study.runs
    known = [str(key) for key in list(runs.columns)[: list(runs.columns).index("status")]]
    differ = [key for key in distinguishing_keys(runs, [key for key in known if affects_result(key)]) if key in known]
    keys = list(dict.fromkeys(by)) or [
        *(key for key in ("init", "act", "depth") if key in runs and runs[key].map(value_text).nunique() > 1),
        *differ,
        *(["optim.lr"] if study.rates else []),
    ]
    keys = keys or ["init"]
    if across is not None and across not in keys:
        keys.append(across)
    for key in keys:
        if key not in known:
            option = "--by" if key in by else "--across"
            some = [name for name in dict.fromkeys([*COMMON_KEYS, *differ]) if name in known]
            raise UserError(
                f"{option} names {key}, which no run has.{nearest_key(key, known)} "
                f"There are {', '.join(some)} and other keys of a run's config.yaml."
            )
    told = [metric for metric in (*METRIC_PREFERENCE, *EXTRA_METRICS) if metric in runs and runs[metric].notna().any()]
    wanted = list(dict.fromkeys(metrics)) or [comparison_metric(runs) or "loss"]
    for metric in wanted:
        if metric not in told and metrics:
            raise UserError(
                f"--metric names {metric}, which no run has; there are {', '.join(told) or 'none'}."
                f"{did_you_mean(metric, told)}"
            )
    rows = [key for key in keys if key != across]
    values = sorted_values(runs[across]) if across else [None]
    columns = tuple((metric, value) for value in values for metric in wanted)
    lines = table_rows(
        runs, rows, across, columns, {metric: metric_scores(runs, metric) for metric in wanted} if best else {}
    )
    if best:
        lines = mark_best(lines, rows, across, columns, contest_key(runs, keys, across))
    grouped = runs.groupby([runs[key].map(value_text) for key in keys], sort=False)
    rest = [key for key in [*differ, "init", "act", "depth", "optim.lr"] if key in runs and key not in keys]
    mixed = tuple(k for k in rest if grouped[k].agg(lambda part: part.map(value_text).nunique()).max() > 1)
    return ResultTable(tuple(rows), across, columns, lines, mixed, best)


def table_rows(
    runs: pd.DataFrame,
    rows: Sequence[str],
    across: str | None,
    columns: Sequence[tuple[str, Any]],
    worth: Mapping[str, pd.Series],
) -> tuple[TableRow, ...]:
    """Return a line per combination of the rows' keys, in the order of their values."""
    places = {key: {value_text(value): place for place, value in enumerate(sorted_values(runs[key]))} for key in rows}
    as_text = pd.DataFrame({key: runs[key].map(value_text) for key in rows}, index=runs.index)
    parts = {label: part.index for label, part in as_text.groupby(list(rows), sort=False)} if rows else {(): runs.index}
    found = []
    for label, index in parts.items():
        group = runs.loc[index]
        own = tuple(group[key].iloc[0] for key in rows)
        parts_of = {
            value_text(v): group if across is None else group[equals_value(group[across], v)] for _, v in columns
        }
        entries = tuple(summarize_group(parts_of[value_text(v)], m, worth.get(m)) for m, v in columns)
        place = [places[key][str(value)] for key, value in zip(rows, label, strict=True)]
        told = [status_counts(part) for part in parts_of.values()]
        alike = {each for each in told if each}
        found.append(
            (
                place,
                TableRow(own, alike.pop() if len(alike) == 1 else " / ".join(each or "0" for each in told), entries),
            )
        )
    return tuple(line for _, line in sorted(found, key=lambda pair: pair[0]))


def equals_value(values: pd.Series, wanted: Any) -> pd.Series:
    """Say which values are the wanted one, blanks among themselves alike."""
    return values.map(value_text) == value_text(wanted)


def metric_scores(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric of every run, larger is better; where a run diverged, as bad as the worst completed one."""
    if metric in METRIC_PREFERENCE:
        return run_scores(runs, metric)
    values = pd.to_numeric(runs[metric], errors="coerce").astype("float64")
    return -values if metric in ("seconds", "steps") else values


def summarize_group(group: pd.DataFrame, metric: str, worth: pd.Series | None = None) -> TableEntry | None:
    """Summarise one metric of one group; None where there is no run at all."""
    if group.empty:
        return None
    done = group[group["status"] == "completed"] if metric in METRIC_PREFERENCE else group
    values = np.array([float(v) for v in done[metric] if pd.notna(v)], dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    scores: dict[str, float] = {}
    if worth is not None:
        seeds = worth[group.index].groupby(group["seed"].map(value_text)).mean().dropna()
        scores = {str(seed): float(value) for seed, value in seeds.items()}
    if not n:
        return TableEntry(float("nan"), float("nan"), 0, len(done), scores=scores)
    same = n > 1 and bool((values == values[0]).all())
    # Summing equal numbers leaves a rounding error that is no spread.
    mean = float(values[0] if same else values.mean())
    return TableEntry(
        mean, 0.0 if same else float(values.std(ddof=1)) if n > 1 else float("nan"), n, len(done), scores=scores
    )


def status_counts(group: pd.DataFrame) -> str:
    """Say how the runs of a group ended: a number when all completed."""
    counts = group["status"].value_counts()
    if list(counts.index) == ["completed"]:
        return str(counts.iloc[0])
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def contest_key(runs: pd.DataFrame, keys: Sequence[str], across: str | None) -> str:
    """Return the key whose values compete for the mark: the first one, wherever it is; schemes put across in any case.

    Whoever puts schemes side by side asks which is best in each line, whatever the lines are.
    """
    return "init" if across == "init" and runs["init"].map(value_text).nunique() > 1 else keys[0]


def mark_best(
    lines: Sequence[TableRow], rows: Sequence[str], across: str | None, columns: Sequence[tuple[str, Any]], key: str
) -> tuple[TableRow, ...]:
    """Mark the entries that are better than all others which differ in `key` only, in a column or in a line.

    Better is what `compare_groups` decides over common seeds, all contests of the table together: of entries that are
    tied none is marked, and none below five seeds.
    """

    def rivals(line: TableRow, place: int) -> tuple[str, ...]:
        metric, value = columns[place]
        told = [value_text(own) for row, own in zip(rows, line.keys, strict=True) if row != key]
        return (metric, "" if across == key else value_text(value), *told)

    contests: dict[Hashable, dict[str, Mapping[Any, float]]] = {}
    for at, line in enumerate(lines):
        for place, found in enumerate(line.entries):
            if found is not None:
                contests.setdefault(rivals(line, place), {})[f"{at} {place}"] = found.scores
    winners = set()
    for among, pairs in compare_groups(contests).items():
        beaten = {name: {c.second for c in pairs if (c.first, c.verdict) == (name, "better")}
                  | {c.first for c in pairs if (c.second, c.verdict) == (name, "worse")}
                  for name in contests[among]}  # fmt: skip
        winners |= {name for name, others in beaten.items() if others and len(others) == len(contests[among]) - 1}

    def marked(at: int, place: int) -> TableEntry | None:
        found = lines[at].entries[place]
        return replace(found, best=f"{at} {place}" in winners) if found is not None else None

    return tuple(
        replace(line, entries=tuple(marked(at, place) for place in range(len(columns))))
        for at, line in enumerate(lines)
    )
