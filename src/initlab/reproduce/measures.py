"""Numbers that criteria speak of: name -> function of the runs and their layer rows. Adding one is one row."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from initlab.reproduce import layer_measures as by_layer
from initlab.reproduce.selection import CellFilter, matching_rows
from initlab.theory import fixed_point

Measure = Callable[..., float]


def metric_values(runs: pd.DataFrame, metric: str, at: CellFilter | None) -> pd.Series:
    """Return a metric by run; a diverged run has infinite loss and no accuracy, for it is a result."""
    rows = matching_rows(runs, at)
    bad = math.inf if metric.endswith("loss") or metric == "steps" else 0.0
    found = pd.to_numeric(rows[metric], errors="coerce").astype(float)
    return found.where(rows["status"] == "completed", bad)


def median(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: CellFilter | None = None) -> float:
    """Median over seeds (and whatever else `at` leaves open)."""
    return float(metric_values(runs, metric, at).median())


def median_at_largest(
    runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, key: str, at: CellFilter | None = None
) -> float:
    """Median where a key such as the depth is largest."""
    rows = matching_rows(runs, at)
    return median(rows[rows[key] == rows[key].max()], layers, metric=metric)


def largest(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Largest of the medians of several cells."""
    return max(median(runs, layers, metric=metric, at=cell) for cell in cells)


def smallest(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Smallest of the medians of several cells."""
    return min(median(runs, layers, metric=metric, at=cell) for cell in cells)


def spread(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[CellFilter]) -> float:
    """Distance between the largest and the smallest median of several cells."""
    return largest(runs, layers, metric=metric, cells=cells) - smallest(runs, layers, metric=metric, cells=cells)


def difference(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: CellFilter, than: CellFilter) -> float:
    """Median of one cell minus that of another."""
    return median(runs, layers, metric=metric, at=at) - median(runs, layers, metric=metric, at=than)


def ratio(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: CellFilter, than: CellFilter) -> float:
    """Median of one cell over that of another."""
    below = median(runs, layers, metric=metric, at=than)
    above = median(runs, layers, metric=metric, at=at)
    return above / below if below and math.isfinite(below) else math.nan


def distance(
    runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, to: float, at: CellFilter | None = None
) -> float:
    """Largest distance of any run's metric from a number."""
    return float((metric_values(runs, metric, at) - to).abs().max())


def rank_correlation(
    runs: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    metric: str,
    key: str,
    at: CellFilter | None = None,
    by: str | None = None,
) -> float:
    """Spearman's rank correlation of the medians of a metric with a key's values; with `by`, its mean over groups."""
    rows = matching_rows(runs, at).assign(value=metric_values(runs, metric, at))
    found = []
    for _, group in rows.groupby(by) if by else [(None, rows)]:
        medians = group.groupby(key)["value"].median()
        found.append(stats.spearmanr(medians.index.to_numpy(dtype=float), medians.to_numpy()).statistic)
    return float(np.mean(found))


def least_over(
    runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, key: str, at: CellFilter | None = None
) -> float:
    """Least, over the values of a key, of the medians of a metric."""
    rows = matching_rows(runs, at)
    return float(rows.assign(value=metric_values(runs, metric, at)).groupby(key)["value"].median().min())


def cells_over_trainable_depth(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one row per cell of dense networks: depth over theory's trainable depth 6 ξ_c, and the median metric."""
    keys = ["act", "init.gain", "init.sigma_b", "depth"]
    medians = runs.assign(value=metric_values(runs, metric, None)).groupby(keys)["value"].median().reset_index()
    points = [
        fixed_point(row["act"], float(row["init.gain"]), float(row["init.sigma_b"])) for _, row in medians.iterrows()
    ]
    return medians.assign(over=medians["depth"].astype(float) / [point.trainable_depth for point in points])


def beside_trainable_depth(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, side: str, factor: float) -> float:
    """Least median of the cells shallower than `factor` times 6 ξ_c, or largest of the cells deeper than that."""
    cells = cells_over_trainable_depth(runs, metric)
    if side == "shallower":
        return float(cells[cells["over"] < factor]["value"].min())
    return float(cells[cells["over"] > factor]["value"].max())


def rank_with_trainable_depth(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str) -> float:
    """Spearman's rank correlation of the cells' medians with depth over 6 ξ_c."""
    cells = cells_over_trainable_depth(runs, metric)
    return float(stats.spearmanr(cells["over"], cells["value"]).statistic)


def best_key_at_largest_depth(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, key: str) -> float:
    """Value of a key with the best median at the largest depth."""
    deepest = runs[runs["depth"] == runs["depth"].max()]
    return float(deepest.assign(value=metric_values(deepest, metric, None)).groupby(key)["value"].median().idxmax())


def coordinate_exponent(runs: pd.DataFrame, layers: pd.DataFrame, *, at: CellFilter, layer: str | None = None) -> float:
    """Exponent of a layer's movement over the width after three Adam steps; of all layers the largest in size."""
    from initlab.initialize.procedures import coordinate_check

    rows = matching_rows(runs, at)
    scheme, act, rate = (rows[key].iloc[0] for key in ("init", "act", "optim.lr"))
    widths, seeds = (sorted({int(value) for value in rows[key]}) for key in ("width", "seed"))
    found = coordinate_check(str(scheme), widths=widths, act=str(act), lr=float(rate), seeds=seeds)
    slopes: dict[str, float] = found.attrs["slopes"]
    return slopes[layer] if layer else max(abs(slope) for slope in slopes.values())


MEASURES: dict[str, Measure] = {
    f.__name__: f
    for f in (
        median,
        median_at_largest,
        largest,
        smallest,
        spread,
        difference,
        ratio,
        distance,
        rank_correlation,
        least_over,
        beside_trainable_depth,
        rank_with_trainable_depth,
        best_key_at_largest_depth,
        by_layer.recursion,
        by_layer.across_layers,
        by_layer.across_layers_ratio,
        by_layer.last_layer,
        by_layer.log_slope,
        by_layer.log_variance_per,
        by_layer.extreme,
    )
} | {"coordinates": coordinate_exponent}
"""Every measure takes the frame of `load`, that of `load_layers` and what its criterion gives; it returns a number."""
