"""Which scheme is better, for every pair, and what is only seed noise; how wide the window of usable rates is."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.study import CELL_COLUMNS, METRIC_PREFERENCE, fresh_seeds, sorted_values
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
# A network is usable at a rate when it trained on at least half of the seeds.
USABLE_FRACTION = 0.5
# What part of the median loss of a place a difference in loss must reach to matter; of accuracies it is MARGIN.
LOSS_MARGIN = 0.05


def comparison_metric(runs: pd.DataFrame) -> str | None:
    """Return the metric that schemes are compared by: test accuracy, else the first of METRICS that runs have."""
    done = runs[runs["status"] == "completed"]
    return next((metric for metric in METRIC_PREFERENCE if metric in done and done[metric].notna().any()), None)


def larger_is_better(metric: str) -> bool:
    """Is more of it better?

    >>> larger_is_better("test_accuracy"), larger_is_better("val_loss")
    (True, False)
    """
    return not metric.endswith("loss")


def run_scores(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return the metric of every run, larger is better; a diverged run counts as the worst completed one of its data.

    Dropping diverged runs would compare what survived of one scheme with all of another.
    """
    sign = 1.0 if larger_is_better(metric) else -1.0
    values = sign * runs[metric].where(np.isfinite(runs[metric]))
    values = values.where(runs["status"].isin(["completed", "diverged"]))
    done = values.where(runs["status"] == "completed")
    data = runs["data"].map(str) if "data" in runs else pd.Series("", index=runs.index)
    worst = done.groupby(data).transform("min")
    return values.where(runs["status"] != "diverged", worst)


def compare_schemes(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Compare all schemes pairwise at every activation, depth and setting, at the best rate of each cell.

    Where a cell was run at several rates and, at its best one, on seeds that had no part in the choice, only those
    count; else `seeds` says that the same seeds chose and compare. Intervals and verdicts allow for every comparison
    of the frame together. What matters is a point of accuracy, or a twentieth of the place's median loss.

    Returns one row per pair: activation, depth, setting, first, second, difference (first − second, larger is better),
    low, high, p (adjusted), n, verdict, margin, seeds.
    """
    at_best = runs[runs["best_rate"]].assign(score=run_scores(runs, metric)).dropna(subset=["score"])
    cell_rates = runs.groupby(CELL_COLUMNS, dropna=False)["rate"].nunique()
    fresh = fresh_seeds(runs)
    groups: dict[Hashable, dict[str, dict[int, float]]] = {}
    notes: dict[Hashable, str] = {}
    places: dict[Hashable, dict[str, Any]] = {}
    margins: dict[Hashable, float] = {}
    for place, group in at_best.groupby(PLACE_COLUMNS, dropna=False, sort=False):
        places[place] = dict(zip(PLACE_COLUMNS, tuple(place), strict=True))
        tuned = bool((cell_rates.reindex(group.set_index(CELL_COLUMNS).index).to_numpy() > 1).any())
        new = group[fresh.loc[group.index]]
        apart = tuned and set(new["scheme"]) == set(group["scheme"])
        margins[place] = (
            ACCURACY_MARGIN if larger_is_better(metric) else LOSS_MARGIN * float(group["score"].abs().median())
        )
        notes[place] = "fresh seeds" if apart else "the seeds that chose the rate" if tuned else "all seeds"
        used = new if apart else group
        groups[place] = {
            str(scheme): dict(zip(rows["seed"], rows["score"], strict=True))
            for scheme, rows in used.groupby("scheme", sort=False)
        }
    found = [
        {**places[place], **comparison_row(c), "seeds": notes[place]}
        for place, some in compare_groups(groups, margins=margins).items()
        for c in some
    ]
    columns = [*PLACE_COLUMNS, "first", "second", "difference", "low", "high", "p", "n", "verdict", "margin", "seeds"]
    table = pd.DataFrame(found, columns=columns)
    # The interval of a pair of two seeds spans more than all accuracies there are.
    table.loc[table["n"] < MIN_SEEDS, ["low", "high", "p"]] = np.nan
    return table


def comparison_row(found: Comparison) -> dict[str, Any]:
    """Return a comparison as a row, seen from the better scheme where there is one."""
    if found.verdict != "worse":
        return vars(found)
    seen = {"first": found.second, "second": found.first, "difference": -found.difference}
    return vars(found) | seen | {"low": -found.high, "high": -found.low, "verdict": "better"}


def rate_windows(runs: pd.DataFrame) -> pd.DataFrame:
    """Return for every cell that was run at several rates which of them are usable.

    Usable: at least half of the seeds trained (where there is no accuracy: ended, at a loss at most 1.1 times the
    cell's best). Columns: those of a cell, then `low`, `high` (the widest unbroken range of usable rates), `decades`
    (log₁₀ of their ratio), `usable_rates`, `tried`, `best`, and `edge`: does the window touch the end of the grid, so that it
    may be wider?
    """
    found = []
    for cell, group in runs.groupby(CELL_COLUMNS, dropna=False, sort=False):
        tried = group[group["status"].isin(["completed", "diverged"])].dropna(subset=["rate"])
        rates = np.array(sorted_values(tried["rate"]), dtype=float)
        if len(rates) < 2:
            continue
        good = usable_rates(tried).reindex(rates).to_numpy(dtype=bool)
        start, stop = longest_true_run(good)
        row = dict(zip(CELL_COLUMNS, cell, strict=True))
        inside = rates[start:stop]
        found.append(
            {
                **row,
                "low": float(inside[0]) if len(inside) else np.nan,
                "high": float(inside[-1]) if len(inside) else np.nan,
                "decades": float(np.log10(inside[-1] / inside[0])) if len(inside) else np.nan,
                "usable": int(good.sum()),
                "tried": len(rates),
                "best": float(group.loc[group["best_rate"], "rate"].iloc[0]) if group["best_rate"].any() else np.nan,
                "edge": bool(len(inside)) and (start == 0 or stop == len(rates)),
            }
        )
    return pd.DataFrame(found, columns=[*CELL_COLUMNS, "low", "high", "decades", "usable", "tried", "best", "edge"])


def metric_bounds(metric: str) -> tuple[float, float]:
    """Return the bounds of a metric, for its interval.

    >>> metric_bounds("test_accuracy"), metric_bounds("val_loss")
    ((0.0, 1.0), (0.0, inf))
    """
    return FRACTION_BOUNDS if larger_is_better(metric) else POSITIVE_BOUNDS


def add_window_widths(pairs: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Add to every pair how wide the windows of its two schemes are, in decades: `first_window`, `second_window`."""
    wide = {tuple(row[:-1]): row[-1] for row in found[[*CELL_COLUMNS, "decades"]].itertuples(index=False, name=None)}
    places = list(pairs[PLACE_COLUMNS].itertuples(index=False, name=None))
    return pairs.assign(
        **{
            f"{side}_window": [
                wide.get((scheme, *place), np.nan) for scheme, place in zip(pairs[side], places, strict=True)
            ]
            for side in ("first", "second")
        }
    )


def usable_rates(runs: pd.DataFrame) -> pd.Series:
    """Return by rate whether the runs of one cell are usable."""
    if runs["outcome"].isin(["trained", "learning", "stuck"]).any():
        good = runs["outcome"] == "trained"
    else:
        loss = runs["val_loss"].where(runs["val_loss"].notna(), runs["loss"])
        good = (runs["status"] == "completed") & (loss <= 1.1 * loss.min())
    shares = good.groupby(runs["rate"]).mean()
    return shares >= USABLE_FRACTION


def longest_true_run(good: np.ndarray) -> tuple[int, int]:
    """Return [start, stop) of the longest run of True.

    >>> longest_true_run(np.array([True, False, True, True]))
    (2, 4)
    """
    best, start = (0, 0), 0
    for place in range(len(good) + 1):
        if place == len(good) or not good[place]:
            if place - start > best[1] - best[0]:
                best = (start, place)
            start = place + 1
    return best


def cell_summaries(runs: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """Return one row per cell and rate: how its runs ended, and mean, std and interval of the metric over seeds.

    Columns: those of a cell, `rate`, `best_rate`, `runs`, one count per outcome, `mean`, `std`, `low`, `high`, `n`.
    """
    found = []
    for place, group in runs.groupby([*CELL_COLUMNS, "rate"], dropna=False, sort=False):
        row: dict[str, Any] = dict(zip([*CELL_COLUMNS, "rate"], place, strict=True))
        # Of a rate that was tuned the fresh seeds tell; those that chose it are biased.
        group = group[group["best_rate"]] if group["best_rate"].any() else group
        row |= {"best_rate": bool(group["best_rate"].all()), "runs": len(group)}
        row |= {str(outcome): int(n) for outcome, n in group["outcome"].value_counts().items()}
        values = group[metric].to_numpy(dtype=float) if metric else np.zeros(0)
        values = values[np.isfinite(values) & (group["status"] == "completed").to_numpy()] if metric else values
        about = confidence_interval(values, bounds=metric_bounds(metric or ""))
        row |= {"mean": about.mean, "low": about.low, "high": about.high, "n": about.n}
        row["std"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        found.append(row)
    return pd.DataFrame(found)
