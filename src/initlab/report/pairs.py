"""Which scheme is better, for every pair, and what is only seed noise; how wide the window of usable rates is."""

from collections.abc import Hashable
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.study import CELL_COLUMNS, METRIC_PREFERENCE, fresh_seeds
from initlab.statistics.comparisons import (
    ACCURACY_MARGIN,
    FRACTION_BOUNDS,
    MIN_SEEDS,
    POSITIVE_BOUNDS,
    Comparison,
    compare_groups,
    confidence_interval,
)

PLACE_COLUMNS = ["activation", "depth", "setting"]
USABLE_FRACTION = 0.5  # a rate is usable when at least this fraction of its seeds trained
LOSS_MARGIN = (
    0.05  # the difference in loss that matters, relative to the median of a place; of accuracies ACCURACY_MARGIN
)


def comparison_metric(runs: pd.DataFrame) -> str | None:
    """Return the metric that schemes are compared by: the first of METRIC_PREFERENCE that completed runs have."""
    completed = runs[runs["status"] == "completed"]
    return next((name for name in METRIC_PREFERENCE if name in completed and completed[name].notna().any()), None)


def larger_is_better(metric: str) -> bool:
    """Return whether more of a metric is better.

    >>> larger_is_better("test_accuracy"), larger_is_better("val_loss")
    (True, False)
    """
    return not metric.endswith("loss")


def run_scores(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return the metric of every run, larger is better; a diverged run counts as the worst completed one of its data.

    Without diverged runs, the surviving ones of one scheme would be compared with all of another.
    """
    values = runs[metric].where(np.isfinite(runs[metric])) * (1.0 if larger_is_better(metric) else -1.0)
    completed = values.where(runs["status"] == "completed")
    data = runs["data"].map(str) if "data" in runs else pd.Series("", index=runs.index)
    return completed.where(runs["status"] != "diverged", completed.groupby(data).transform("min"))


def compare_schemes(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Compare all schemes pairwise at every activation, depth and setting, at the best rate of each cell.

    Where a cell was run at several rates and, at its best one, on seeds that had no part in the choice, only those
    count; else `seeds` says that the same seeds chose and compare. Intervals and verdicts allow for every comparison
    of the frame together. A difference matters from a point of accuracy, or a twentieth of the place's median loss.

    Args:
        runs: of a study.
        metric: what is compared.

    Returns:
        One row per pair: activation, depth, setting, first, second, difference (first − second, larger is better), low,
        high, p (adjusted), n, verdict, margin, seeds.
    """
    at_best = runs[runs["best_rate"]].assign(score=run_scores(runs, metric), fresh=fresh_seeds(runs))
    at_best["tuned"] = runs.groupby(CELL_COLUMNS, dropna=False)["rate"].transform("nunique") > 1
    groups: dict[Hashable, dict[str, dict[int, float]]] = {}
    seeds: dict[Hashable, str] = {}
    places: dict[Hashable, dict[str, Any]] = {}
    margins: dict[Hashable, float] = {}
    for place, group in at_best.dropna(subset=["score"]).groupby(PLACE_COLUMNS, dropna=False, sort=False):
        places[place] = dict(zip(PLACE_COLUMNS, tuple(place), strict=True))
        median = float(group["score"].abs().median())
        margins[place] = ACCURACY_MARGIN if larger_is_better(metric) else LOSS_MARGIN * median
        seeds[place] = "the seeds that chose the rate" if group["tuned"].any() else "all seeds"
        fresh = group[group["fresh"]]
        if group["tuned"].any() and set(fresh["scheme"]) == set(group["scheme"]):
            group, seeds[place] = fresh, "fresh seeds"
        groups[place] = {
            str(scheme): dict(zip(rows["seed"], rows["score"], strict=True))
            for scheme, rows in group.groupby("scheme", sort=False)
        }
    rows = [
        {**places[place], **comparison_row(comparison), "seeds": seeds[place]}
        for place, comparisons in compare_groups(groups, margins=margins).items()
        for comparison in comparisons
    ]
    columns = [*PLACE_COLUMNS, *Comparison.__dataclass_fields__, "seeds"]
    table = pd.DataFrame(rows, columns=columns)
    # The interval of a pair of two seeds spans more than all possible accuracies.
    table.loc[table["n"] < MIN_SEEDS, ["low", "high", "p"]] = np.nan
    return table


def comparison_row(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as a row; the better scheme, where there is one, comes first."""
    row = dict(vars(comparison))
    if row["verdict"] == "worse":
        row |= {"first": comparison.second, "second": comparison.first, "difference": -comparison.difference}
        row |= {"low": -comparison.high, "high": -comparison.low, "verdict": "better"}
    return row


def rate_windows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return for every cell that was run at several rates which of them are usable.

    A rate is usable where at least half of the seeds trained (without accuracies: completed with a loss of at most 1.1
    times the cell's best).

    Returns:
        One row per cell: its columns, `low`, `high` (the widest unbroken range of usable rates), `decades` (log₁₀ of
        their ratio), `usable`, `tried`, `best`, and `edge`: whether the window touches the end of the grid, so that it
        may be wider.
    """
    rows = []
    for cell, group in runs.groupby(CELL_COLUMNS, dropna=False, sort=False):
        tried = group[group["status"].isin(["completed", "diverged"])].dropna(subset=["rate"])
        usable = usable_rates(tried)
        rates, good = usable.index.to_numpy(dtype=float), usable.to_numpy(dtype=bool)
        if len(rates) < 2:
            continue
        start, stop = longest_true_run(good)
        low, high = (rates[start], rates[stop - 1]) if stop else (np.nan, np.nan)
        best = group.loc[group["best_rate"], "rate"]
        edge = bool(stop) and (start == 0 or stop == len(rates))
        best_rate = best.iloc[0] if len(best) else np.nan
        rows.append((*cell, low, high, np.log10(high / low), int(good.sum()), len(rates), best_rate, edge))
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, "low", "high", "decades", "usable", "tried", "best", "edge"])


def add_window_widths(pairs: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Add to every pair how wide the windows of its two schemes are, in decades: `first_window`, `second_window`."""
    widths = {tuple(row[:-1]): row[-1] for row in windows[[*CELL_COLUMNS, "decades"]].itertuples(index=False)}
    for side in ("first", "second"):
        cells = pairs[[side, *PLACE_COLUMNS]].itertuples(index=False)
        pairs[f"{side}_window"] = [widths.get(tuple(cell), np.nan) for cell in cells]
    return pairs


def usable_rates(runs: pd.DataFrame) -> pd.Series:
    """Return by rate, in ascending order, whether the runs of one cell are usable."""
    if runs["outcome"].isin(["trained", "learning", "stuck"]).any():
        usable = runs["outcome"] == "trained"
    else:
        loss = runs["val_loss"].fillna(runs["loss"])
        usable = (runs["status"] == "completed") & (loss <= 1.1 * loss.min())
    return usable.groupby(runs["rate"]).mean() >= USABLE_FRACTION


def longest_true_run(values: np.ndarray) -> tuple[int, int]:
    """Return [start, stop) of the longest run of True, the first of equals; (0, 0) where all are False.

    >>> longest_true_run(np.array([True, False, True, True]))
    (2, 4)
    """
    best, start = (0, 0), 0
    for value, group in groupby(values):
        stop = start + len(list(group))
        if value and stop - start > best[1] - best[0]:
            best = (start, stop)
        start = stop
    return best


def cell_summaries(runs: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Summarize every cell at every rate.

    Returns:
        One row per cell and rate: the columns of a cell, `rate`, `best_rate`, `runs`, one count per outcome, and of the
        metric over seeds `mean`, `std`, `low`, `high` (its interval), `n`.
    """
    bounds = FRACTION_BOUNDS if larger_is_better(metric or "") else POSITIVE_BOUNDS
    rows = []
    for place, group in runs.groupby([*CELL_COLUMNS, "rate"], dropna=False, sort=False):
        # At a tuned rate only fresh seeds count; those that chose it are biased.
        group = group[group["best_rate"]] if group["best_rate"].any() else group
        row: dict[str, Any] = dict(zip([*CELL_COLUMNS, "rate"], place, strict=True))
        row |= {"best_rate": bool(group["best_rate"].all()), "runs": len(group), **group["outcome"].value_counts()}
        completed = group[group["status"] == "completed"]
        values = completed[metric].to_numpy(dtype=float) if metric else np.zeros(0)
        values = values[np.isfinite(values)]
        found = confidence_interval(values, bounds=bounds)
        std = float(values.std(ddof=1)) if found.n > 1 else np.nan
        rows.append(row | {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "std": std})
    return pd.DataFrame(rows)
