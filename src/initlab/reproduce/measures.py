"""Numbers that criteria speak of: name -> function of the runs and their layer rows. Adding one is one row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

At = Mapping[str, Any]
Measure = Callable[..., float]


def chosen(frame: pd.DataFrame, at: At | None) -> pd.DataFrame:
    """Return the rows where every key has the value, or one of the values, asked for.

    Raises:
        ValueError: there is no such column, or no such row: the criterion is about runs that there are not.

    >>> chosen(pd.DataFrame({"init": ["zeros", "ones"], "loss": [2.3, 9.0]}), {"init": "ones"}).loss.tolist()
    [9.0]
    """
    for key, value in (at or {}).items():
        wanted = value if isinstance(value, (list, tuple)) else [value]
        if key not in frame:
            raise ValueError(f"no run has a key {key}")
        frame = frame[frame[key].map(plain).isin([plain(x) for x in wanted])]
    if frame.empty:
        raise ValueError(f"no run has {dict(at or {})}")
    return frame


def plain(value: Any) -> Any:
    """Make values of files and of frames comparable: numbers as floats, the rest as text.

    >>> plain(3) == plain(3.0), plain([16, 8]) == plain("[16, 8]")
    (True, True)
    """
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else str(value)


def values(runs: pd.DataFrame, metric: str, at: At | None) -> pd.Series:
    """Return a metric by run; a diverged run has infinite loss and no accuracy, for it is a result."""
    rows = chosen(runs, at)
    bad = math.inf if metric.endswith("loss") or metric == "steps" else 0.0
    found = pd.to_numeric(rows[metric], errors="coerce").astype(float)
    return found.where(rows["status"] == "completed", bad)


def median(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: At | None = None) -> float:
    """Median over seeds (and whatever else `at` leaves open)."""
    return float(values(runs, metric, at).median())


def largest(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[At]) -> float:
    """Largest of the medians of several cells."""
    return max(median(runs, layers, metric=metric, at=cell) for cell in cells)


def smallest(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[At]) -> float:
    """Smallest of the medians of several cells."""
    return min(median(runs, layers, metric=metric, at=cell) for cell in cells)


def spread(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, cells: Sequence[At]) -> float:
    """Distance between the largest and the smallest median of several cells."""
    return largest(runs, layers, metric=metric, cells=cells) - smallest(runs, layers, metric=metric, cells=cells)


def difference(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: At, than: At) -> float:
    """Median of one cell minus that of another."""
    return median(runs, layers, metric=metric, at=at) - median(runs, layers, metric=metric, at=than)


def ratio(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, at: At, than: At) -> float:
    """Median of one cell over that of another."""
    below = median(runs, layers, metric=metric, at=than)
    above = median(runs, layers, metric=metric, at=at)
    return above / below if below and math.isfinite(below) else math.nan


def distance(runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, to: float, at: At | None = None) -> float:
    """Largest distance of any run's metric from a number."""
    return float((values(runs, metric, at) - to).abs().max())


def rank_correlation(
    runs: pd.DataFrame, layers: pd.DataFrame, *, metric: str, key: str, at: At | None = None, by: str | None = None
) -> float:
    """Spearman's rank correlation of the medians of a metric with a key's values; with `by`, its mean over groups."""
    rows = chosen(runs, at).assign(value=values(runs, metric, at))
    found = []
    for _, group in rows.groupby(by) if by else [(None, rows)]:
        medians = group.groupby(key)["value"].median()
        found.append(stats.spearmanr(medians.index.to_numpy(dtype=float), medians.to_numpy()).statistic)
    return float(np.mean(found))


def layer_rows(layers: pd.DataFrame, stat: str, at: At | None, source: str, step: int = 0) -> pd.DataFrame:
    """Return the rows of one statistic, source and step at a cell."""
    wanted = (layers["stat"] == stat) & (layers["source"] == source) & (layers["step"] == step)
    rows = chosen(layers, at)
    return rows[wanted.loc[rows.index]]


def layer_means(layers: pd.DataFrame, stat: str, at: At | None, source: str = "measured", step: int = 0) -> pd.Series:
    """Return a statistic's mean over seeds by the layer's index, the hidden layers alone."""
    rows = layer_rows(layers, stat, at, source, step)
    rows = rows[rows["layer"] != "readout"]
    if rows.empty:
        raise ValueError(f"no run wrote {source} rows of {stat} at step {step}")
    return rows.groupby("index")["value"].mean().sort_index()


def recursion(
    runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: At | None = None, by: Sequence[str] = ()
) -> float:
    """Largest relative distance, over hidden layers and cells, of the measured mean over seeds from its prediction."""
    cells = [at or {}]
    if by:
        keys = chosen(layers, at)[list(by)].drop_duplicates()
        cells = [{**(at or {}), **{str(k): v for k, v in row.items()}} for row in keys.to_dict("records")]
    worst = 0.0
    for cell in cells:
        measured, predicted = (layer_means(layers, stat, cell, source) for source in ("measured", "predicted"))
        shared = measured.index.intersection(predicted.index)
        worst = max(worst, float((measured[shared] / predicted[shared] - 1).abs().max()))
    return worst


def across_layers(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: At | None = None) -> float:
    """Ratio of the first hidden layer's mean over seeds of a statistic to the last one's."""
    means = layer_means(layers, stat, at)
    return float(means.iloc[0] / means.iloc[-1])


def across_layers_ratio(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: At, than: At) -> float:
    """`across_layers` of one cell over that of another."""
    return across_layers(runs, layers, stat=stat, at=at) / across_layers(runs, layers, stat=stat, at=than)


def last_layer(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: At | None = None) -> float:
    """Mean over seeds of a statistic at the last hidden layer of step 0."""
    return float(layer_means(layers, stat, at).iloc[-1])


def log_slope(
    runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: At | None = None, per: str = "index", step: int = 0
) -> float:
    """Slope of ln(statistic), mean over seeds, per hidden layer; or of log against log over another key (`per`)."""
    if per == "index":
        means = layer_means(layers, stat, at, step=step)
        return float(np.polyfit(means.index.to_numpy(dtype=float), np.log(means.to_numpy()), 1)[0])
    rows = chosen(layers, at)
    rows = rows[(rows["stat"] == stat) & (rows["step"] == step) & (rows["source"] == "measured")]
    logs = np.log(rows.groupby(per)["value"].mean())
    return float(np.polyfit(np.log(logs.index.to_numpy(dtype=float)), logs.to_numpy(), 1)[0])


def log_variance(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, layer: int, at: At | None = None) -> float:
    """Variance over seeds of ln(statistic) at the layer of this index."""
    rows = layer_rows(layers, stat, at, "measured")
    return float(np.log(rows[rows["index"] == layer]["value"]).var(ddof=1))


def extreme(
    runs: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    stat: str,
    at: At | None = None,
    largest: bool = True,
    root: bool = False,
) -> float:
    """Largest (or smallest) value of a statistic over hidden layers and runs at step 0; `root`: of its square root."""
    rows = layer_rows(layers, stat, at, "measured")
    found = rows[rows["layer"] != "readout"]["value"]
    value = float(found.max() if largest else found.min())
    return math.sqrt(value) if root else value


MEASURES: dict[str, Measure] = {
    f.__name__: f
    for f in (
        median,
        largest,
        smallest,
        spread,
        difference,
        ratio,
        distance,
        rank_correlation,
        recursion,
        across_layers,
        across_layers_ratio,
        last_layer,
        log_slope,
        log_variance,
        extreme,
    )
}
