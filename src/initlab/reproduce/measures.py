"""Numbers that criteria bound: name -> function of the runs and their layer rows. Adding one is one row."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pandas as pd
from scipy import stats

from initlab.reproduce import layer_measures as by_layer
from initlab.reproduce.selection import CellFilter, Frames, matching_rows
from initlab.theory import fixed_point

Measure = Callable[..., float]


def metric_rows(runs: pd.DataFrame, metric: str, at: CellFilter | None = None) -> pd.DataFrame:
    """Return runs with a metric as their column `value`; a diverged run has infinite loss and no accuracy."""
    rows = matching_rows(runs, at)
    bad = math.inf if metric.endswith("loss") or metric == "steps" else 0.0
    values = pd.to_numeric(rows[metric], errors="coerce").astype(float)
    return rows.assign(value=values.where(rows["status"] == "completed", bad))


def median(frames: Frames, *, metric: str, at: CellFilter | None = None) -> float:
    """Median over seeds (and whatever else `at` leaves open)."""
    return float(metric_rows(frames.runs, metric, at)["value"].median())


def median_at_largest(frames: Frames, *, metric: str, key: str, at: CellFilter | None = None) -> float:
    """Median where a key such as the depth is largest."""
    rows = metric_rows(frames.runs, metric, at)
    return float(rows[rows[key] == rows[key].max()]["value"].median())


def largest(frames: Frames, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Largest of the medians of several cells."""
    return max(median(frames, metric=metric, at=cell) for cell in cells)


def smallest(frames: Frames, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Smallest of the medians of several cells."""
    return min(median(frames, metric=metric, at=cell) for cell in cells)


def spread(frames: Frames, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Distance between the largest and the smallest median of several cells."""
    return largest(frames, metric=metric, cells=cells) - smallest(frames, metric=metric, cells=cells)


def difference(frames: Frames, *, metric: str, at: CellFilter, than: CellFilter) -> float:
    """Median of one cell minus that of another."""
    return median(frames, metric=metric, at=at) - median(frames, metric=metric, at=than)


def ratio(frames: Frames, *, metric: str, at: CellFilter, than: CellFilter) -> float:
    """Median of one cell over that of another."""
    above, below = (median(frames, metric=metric, at=cell) for cell in (at, than))
    return above / below if below and math.isfinite(below) else math.nan


def distance(frames: Frames, *, metric: str, to: float, at: CellFilter | None = None) -> float:
    """Largest distance of any run's metric from a number."""
    return float((metric_rows(frames.runs, metric, at)["value"] - to).abs().max())


def rank_correlation(
    frames: Frames, *, metric: str, key: str, at: CellFilter | None = None, by: str | None = None
) -> float:
    """Spearman's rank correlation of the medians of a metric with a key's values; with `by`, its mean over groups."""
    rows = metric_rows(frames.runs, metric, at)
    correlations = []
    for _, group in rows.groupby(by) if by else [(None, rows)]:
        medians = group.groupby(key)["value"].median()
        correlations.append(stats.spearmanr(medians.index.to_numpy(dtype=float), medians.to_numpy()).statistic)
    return float(np.mean(correlations))


def least_over(frames: Frames, *, metric: str, key: str, at: CellFilter | None = None) -> float:
    """Least, over the values of a key, of the medians of a metric."""
    return float(metric_rows(frames.runs, metric, at).groupby(key)["value"].median().min())


def cells_over_trainable_depth(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row per cell of dense networks.

    Returns:
        The cell's keys, `value` (its median metric), and `over` (its depth over theory's trainable depth 6 ξ_c).
    """
    keys = ["act", "init.gain", "init.sigma_b", "depth"]
    medians = metric_rows(runs, metric).groupby(keys)["value"].median().reset_index()
    depths = [
        fixed_point(act, float(gain), float(sigma_b)).trainable_depth for act, gain, sigma_b, *_ in medians.values
    ]
    return medians.assign(over=medians["depth"].astype(float) / depths)


def beside_trainable_depth(frames: Frames, *, metric: str, side: str, factor: float) -> float:
    """Least median of the cells shallower than `factor` times 6 ξ_c, or largest of the cells deeper than that."""
    cells = cells_over_trainable_depth(frames.runs, metric)
    if side == "shallower":
        return float(cells[cells["over"] < factor]["value"].min())
    return float(cells[cells["over"] > factor]["value"].max())


def rank_with_trainable_depth(frames: Frames, *, metric: str) -> float:
    """Spearman's rank correlation of the cells' medians with depth over 6 ξ_c."""
    cells = cells_over_trainable_depth(frames.runs, metric)
    return float(stats.spearmanr(cells["over"], cells["value"]).statistic)


def best_key_at_largest_depth(frames: Frames, *, metric: str, key: str) -> float:
    """Value of a key with the best (largest) median at the largest depth."""
    deepest = frames.runs[frames.runs["depth"] == frames.runs["depth"].max()]
    return float(cast(float, metric_rows(deepest, metric).groupby(key)["value"].median().idxmax()))


def coordinate_exponent(frames: Frames, *, at: CellFilter, layer: str | None = None) -> float:
    """Exponent of a layer's movement over the width after three Adam steps; of all layers the largest in size."""
    from initlab.initialize.procedures import coordinate_check

    rows = matching_rows(frames.runs, at)
    scheme, act, rate = (rows[key].iloc[0] for key in ("init", "act", "optim.lr"))
    widths, seeds = (sorted({int(value) for value in rows[key]}) for key in ("width", "seed"))
    table = coordinate_check(str(scheme), widths=widths, act=str(act), lr=float(rate), seeds=seeds)
    slopes: dict[str, float] = table.attrs["slopes"]
    return slopes[layer] if layer else max(abs(slope) for slope in slopes.values())


_FUNCTIONS = (
    *(median, median_at_largest, largest, smallest, spread, difference, ratio, distance, rank_correlation, least_over),
    *(beside_trainable_depth, rank_with_trainable_depth, best_key_at_largest_depth),
    *(by_layer.recursion, by_layer.across_layers, by_layer.across_layers_ratio, by_layer.last_layer),
    *(by_layer.log_slope, by_layer.log_variance_per, by_layer.extreme),
)
MEASURES: dict[str, Measure] = {f.__name__: f for f in _FUNCTIONS} | {"coordinates": coordinate_exponent}
"""Every measure takes the `Frames` of an experiment and the arguments of its criterion; it returns a number."""
