"""`initlab table`: mean ± std over seeds, grouped as the user likes, as text, CSV, Markdown or LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from initlab.errors import UserError, nearest
from initlab.report.pairs import judged_by, larger_is_better
from initlab.report.runs import METRICS, Study, ordered, telling, text, varying

EXTRA = ("seconds", "steps", "trained", "first_bad_step")


@dataclass(frozen=True)
class Entry:
    """Mean and standard deviation over the completed runs of one group; `best` among those it competes with."""

    mean: float
    std: float
    n: int
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table: the values of its keys, how its runs ended, and an entry per column (None: no run)."""

    keys: tuple[Any, ...]
    ended: str
    entries: tuple[Entry | None, ...]


@dataclass(frozen=True)
class Table:
    """`keys` name the first columns; `columns` are (metric, value of the key across, or None) for the others."""

    keys: tuple[str, ...]
    across: str | None
    columns: tuple[tuple[str, Any], ...]
    lines: tuple[Line, ...]
    mixed: tuple[str, ...]
    marked: bool

    def heading(self, column: tuple[str, Any]) -> str:
        """Return the heading of a column, with its unit."""
        metric, value = column
        shown = f"{metric.replace('_', ' ')}{' (%)' if is_share(metric) else ''}"
        if self.across is None:
            return shown
        several = len({m for m, _ in self.columns}) > 1
        return f"{self.across}={text(value) or 'none'}" + (f" {shown}" if several else "")


def is_share(metric: str) -> bool:
    """Is it told in percent?"""
    return "accuracy" in metric or metric == "trained"


def tabulated(
    study: Study,
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    across: str | None = None,
    best: bool = False,
) -> Table:
    """Group runs and summarise metrics over what is left, which should be the seeds.

    Arguments: `by`: configuration keys; by default all that differ between runs, but for the seed. `metrics`: by
    default the test accuracy, or what there is. `across`: one of the keys whose values become columns. `best`: mark the
    best entry among those that differ in the first key only.

    Raises:
        UserError: a key or a metric is unknown.
    """
    runs = study.runs
    known = [str(key) for key in list(runs.columns)[: list(runs.columns).index("status")]]
    differ = [key for key in varying(runs, [key for key in known if telling(key)]) if key in known]
    keys = list(dict.fromkeys(by)) or [
        *(key for key in ("init", "act", "depth") if key in runs and runs[key].map(text).nunique() > 1),
        *differ,
        *(["optim.lr"] if study.rates else []),
    ]
    keys = keys or ["init"]
    if across is not None and across not in keys:
        keys.append(across)
    for key in keys:
        if key not in known:
            option = "--by" if key in by else "--across"
            raise UserError(f"{option} names {key}, which no run has.{nearest(key, known)}")
    told = [metric for metric in (*METRICS, *EXTRA) if metric in runs and runs[metric].notna().any()]
    wanted = list(dict.fromkeys(metrics)) or [judged_by(runs) or "loss"]
    for metric in wanted:
        if metric not in told and metrics:
            raise UserError(
                f"--metric names {metric}, which no run has; there are {', '.join(told) or 'none'}."
                f"{nearest(metric, told)}"
            )
    rows = [key for key in keys if key != across]
    values = ordered(runs[across]) if across else [None]
    columns = tuple((metric, value) for value in values for metric in wanted)
    lines = sorted_lines(runs, rows, across, columns)
    grouped = runs.groupby([runs[key].map(text) for key in keys], sort=False)
    rest = [key for key in [*differ, "init", "act", "depth", "optim.lr"] if key in runs and key not in keys]
    mixed = tuple(k for k in rest if grouped[k].agg(lambda part: part.map(text).nunique()).max() > 1)
    return Table(tuple(rows), across, columns, mark(lines, columns) if best else lines, mixed, best)


def sorted_lines(
    runs: pd.DataFrame, rows: Sequence[str], across: str | None, columns: Sequence[tuple[str, Any]]
) -> tuple[Line, ...]:
    """Return a line per combination of the rows' keys, in the order of their values."""
    places = {key: {text(value): place for place, value in enumerate(ordered(runs[key]))} for key in rows}
    as_text = pd.DataFrame({key: runs[key].map(text) for key in rows}, index=runs.index)
    parts = {label: part.index for label, part in as_text.groupby(list(rows), sort=False)} if rows else {(): runs.index}
    found = []
    for label, index in parts.items():
        group = runs.loc[index]
        own = tuple(group[key].iloc[0] for key in rows)
        entries = tuple(entry(group if across is None else group[of(group[across], v)], m) for m, v in columns)
        place = [places[key][str(value)] for key, value in zip(rows, label, strict=True)]
        found.append((place, Line(own, ended(group), entries)))
    return tuple(line for _, line in sorted(found, key=lambda pair: pair[0]))


def of(values: pd.Series, wanted: Any) -> pd.Series:
    """Say which values are the wanted one, blanks among themselves alike."""
    return values.map(text) == text(wanted)


def entry(group: pd.DataFrame, metric: str) -> Entry | None:
    """Summarise one metric of one group; None where there is no run at all."""
    if group.empty:
        return None
    done = group[group["status"] == "completed"] if metric in METRICS else group
    values = np.array([float(v) for v in done[metric] if pd.notna(v)], dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if not n:
        return Entry(float("nan"), float("nan"), 0)
    same = n > 1 and bool((values == values[0]).all())
    # Summing equal numbers leaves a rounding error that is no spread.
    mean = float(values[0] if same else values.mean())
    return Entry(mean, 0.0 if same else float(values.std(ddof=1)) if n > 1 else float("nan"), n)


def ended(group: pd.DataFrame) -> str:
    """Say how the runs of a group ended: a number when all completed."""
    counts = group["status"].value_counts()
    if list(counts.index) == ["completed"]:
        return str(counts.iloc[0])
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def mark(lines: Sequence[Line], columns: Sequence[tuple[str, Any]]) -> tuple[Line, ...]:
    """Mark in every column the best entry among the lines that differ in the first key only; ties are all marked."""
    tops: dict[tuple[Any, ...], float] = {}

    def worth(line: Line, place: int) -> float:
        found = line.entries[place]
        sign = 1.0 if larger_is_better(columns[place][0]) and columns[place][0] not in ("seconds", "steps") else -1.0
        return float("-inf") if found is None or not found.n else sign * found.mean

    for place in range(len(columns)):
        for line in lines:
            rivals = (place, *map(text, line.keys[1:]))
            tops[rivals] = max(tops.get(rivals, float("-inf")), worth(line, place))
    marked = []
    for line in lines:
        entries = []
        for place, found in enumerate(line.entries):
            top = found is not None and found.n > 0 and worth(line, place) == tops[(place, *map(text, line.keys[1:]))]
            entries.append(Entry(found.mean, found.std, found.n, top) if found is not None else None)
        marked.append(Line(line.keys, line.ended, tuple(entries)))
    return tuple(marked)
