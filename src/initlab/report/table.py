"""`initlab table`: mean ± std over seeds, grouped by any keys."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.config.checks import nearest_key
from initlab.errors import UserError, did_you_mean
from initlab.records.reader import config_columns
from initlab.report.pairs import comparison_metric, run_scores
from initlab.report.study import METRIC_PREFERENCE, Study, distinguishing_keys, number_column, sorted_values, value_text
from initlab.statistics.comparisons import compare_groups

COMMON_KEYS = ("init", "act", "model", "data", "optim", "depth", "width", "seed", "optim.lr")
EXTRA_METRICS = ("seconds", "steps", "trained", "first_bad_step")


@dataclass
class TableEntry:
    """Mean and standard deviation of a metric over the runs of one group.

    Attributes:
        mean: over the `n` finite values.
        std: of them, NaN for one.
        n: how many values are finite.
        of: how many runs could have a value: the completed ones, for metrics that only those have.
        runs: labels of the group's rows in the frame of runs; none where there is no run.
        best: whether it is better than all entries that it competes with, beyond seed noise.
    """

    mean: float
    std: float
    n: int
    of: int = 0
    runs: pd.Index = field(default_factory=lambda: pd.RangeIndex(1), compare=False, repr=False)
    best: bool = False


@dataclass(frozen=True)
class TableRow:
    """One row of a table: the values of its keys, how its runs ended, and an entry per column."""

    keys: tuple[Any, ...]
    ended: str
    entries: tuple[TableEntry, ...]


@dataclass(frozen=True)
class ResultTable:
    """A table of results.

    Attributes:
        keys: names of the first columns.
        across: the key whose values are columns, or None.
        columns: (metric, value of the key across or None) of the other columns.
        lines: the rows.
        mixed: keys that differ between the runs of one entry, beside the seed.
        marked: whether the best entries are marked.
    """

    keys: tuple[str, ...]
    across: str | None
    columns: tuple[tuple[str, Any], ...]
    lines: tuple[TableRow, ...]
    mixed: tuple[str, ...]
    marked: bool

    @property
    def headings(self) -> list[str]:
        """The headings of the columns after the keys: the number of runs, then metrics with their units."""
        if self.across is None:
            return ["runs", *(metric_title(metric) for metric, _ in self.columns)]
        values = (
            f"{self.across}={value_text(value) or 'none'} {metric_title(metric)}" for metric, value in self.columns
        )
        return ["runs each", *values]


def metric_title(metric: str) -> str:
    """Return the name of a metric with its unit.

    >>> metric_title("test_accuracy")
    'test accuracy (%)'
    """
    return metric.replace("_", " ") + (" (%)" if is_percentage(metric) else "")


def is_percentage(metric: str) -> bool:
    """Return whether a metric is written in percent."""
    return "accuracy" in metric or metric == "trained"


def build_table(
    study: Study, by: Sequence[str] = (), metrics: Sequence[str] = (), across: str | None = None, best: bool = False
) -> ResultTable:
    """Group runs by keys and summarize metrics over each group, whose runs should differ in their seeds alone.

    Args:
        study: the runs.
        by: configuration keys; by default all that differ between runs, without the seed.
        metrics: by default the test accuracy, or what there is.
        across: one of the keys, whose values become columns.
        best: whether to mark the entries that `mark_best` finds.

    Raises:
        UserError: a key or a metric is unknown.
    """
    runs = study.runs
    known = config_columns(runs)
    differ = distinguishing_keys(runs, known)
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
    measured = [name for name in (*METRIC_PREFERENCE, *EXTRA_METRICS) if name in runs and runs[name].notna().any()]
    for metric in metrics:
        if metric not in measured:
            raise UserError(
                f"--metric names {metric}, which no run has; there are {', '.join(measured) or 'none'}."
                f"{did_you_mean(metric, measured)}"
            )
    metrics = list(dict.fromkeys(metrics)) or [comparison_metric(runs) or "loss"]
    texts = {key: runs[key].map(value_text) for key in keys}
    row_keys = [key for key in keys if key != across]
    values = sorted_values(runs[across]) if across else [None]
    columns = tuple((metric, value) for value in values for metric in metrics)
    places = {key: {value_text(value): place for place, value in enumerate(sorted_values(runs[key]))} for key in keys}
    groups = runs.groupby([texts[key].map(places[key]) for key in row_keys]) if row_keys else [((), runs)]
    lines = []
    for _, group in groups:
        parts = [group[texts[across][group.index] == value_text(v)] if across else group for v in values]
        entries = tuple(summarize_group(part, metric) for part in parts for metric in metrics)
        lines.append(TableRow(tuple(group[key].iloc[0] for key in row_keys), describe_endings(parts), entries))
    grouped = runs.groupby([texts[key] for key in keys], sort=False)
    rest = [key for key in [*differ, "init", "act", "depth", "optim.lr"] if key in runs and key not in keys]
    mixed = tuple(k for k in rest if grouped[k].agg(lambda part: part.map(value_text).nunique()).max() > 1)
    table = ResultTable(tuple(row_keys), across, columns, tuple(lines), mixed, best)
    if best:
        # Schemes side by side compete in each line; else the values of the first key do.
        mark_best(table, runs, "init" if across == "init" and len(values) > 1 else keys[0])
    return table


def metric_scores(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric of every run, larger is better; a diverged run is as bad as the worst completed one."""
    if metric in METRIC_PREFERENCE:
        return run_scores(runs, metric)
    return number_column(runs, metric) * (-1 if metric in ("seconds", "steps") else 1)


def summarize_group(group: pd.DataFrame, metric: str) -> TableEntry:
    """Summarize one metric of one group."""
    runs = group[group["status"] == "completed"] if metric in METRIC_PREFERENCE else group
    values = number_column(runs, metric).to_numpy()
    values = values[np.isfinite(values)]
    n, mean, std = len(values), float("nan"), float("nan")
    if n:
        # The sum of equal numbers has a rounding error, which is no spread.
        equal = n > 1 and bool((values == values[0]).all())
        mean = float(values[0] if equal else values.mean())
        std = 0.0 if equal else float(values.std(ddof=1)) if n > 1 else std
    return TableEntry(mean, std, n, len(runs), group.index)


def describe_endings(parts: Sequence[pd.DataFrame]) -> str:
    """Return how the runs of each group ended, once where all groups with runs agree; a number when all completed."""
    endings = []
    for part in parts:
        counts = part["status"].value_counts()
        completed = list(counts.index) == ["completed"]
        endings.append(str(len(part)) if completed else ", ".join(f"{n} {status}" for status, n in counts.items()))
    distinct = set(filter(None, endings))
    return distinct.pop() if len(distinct) == 1 else " / ".join(ending or "0" for ending in endings)


def mark_best(table: ResultTable, runs: pd.DataFrame, contested: str) -> None:
    """Mark the entries that are better than all others which differ in one key only, in a column or in a line.

    `compare_groups` decides over common seeds, all contests of the table together: of entries that are tied none is
    marked, and none below five seeds.

    Args:
        table: its entries are changed.
        runs: the frame that the table was made of.
        contested: the key whose values compete.
    """
    scores = {metric: metric_scores(runs, metric) for metric, _ in table.columns}
    seeds = runs["seed"].map(value_text)
    entries: list[TableEntry] = []
    contests: dict[Hashable, dict[str, Mapping[Any, float]]] = defaultdict(dict)
    for line in table.lines:
        others = [value_text(value) for key, value in zip(table.keys, line.keys, strict=True) if key != contested]
        for (metric, value), entry in zip(table.columns, line.entries, strict=True):
            if len(entry.runs):
                by_seed = scores[metric][entry.runs].groupby(seeds[entry.runs]).mean().dropna()
                contest = (metric, "" if table.across == contested else value_text(value), *others)
                contests[contest][str(len(entries))] = {str(seed): float(score) for seed, score in by_seed.items()}
                entries.append(entry)
    for place, comparisons in compare_groups(contests).items():
        decided = (c for c in comparisons if c.verdict in ("better", "worse"))
        wins = Counter(c.first if c.verdict == "better" else c.second for c in decided)
        for name, count in wins.items():
            entries[int(name)].best = count == len(contests[place]) - 1
