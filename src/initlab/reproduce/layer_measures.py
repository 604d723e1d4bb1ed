"""Measures of the rows that runs leave about their layers, step 0 unless said otherwise."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from initlab.reproduce.selection import CellFilter, matching_rows


def layer_rows(layers: pd.DataFrame, stat: str, at: CellFilter | None, source: str, step: int = 0) -> pd.DataFrame:
    """Return the rows of one statistic, source and step at a cell."""
    rows = matching_rows(layers, at)
    return rows[(rows["stat"] == stat) & (rows["source"] == source) & (rows["step"] == step)]


def layer_means(
    layers: pd.DataFrame, stat: str, at: CellFilter | None, source: str = "measured", step: int = 0
) -> pd.Series:
    """Return a statistic's mean over seeds by the layer's index, the hidden layers alone."""
    rows = layer_rows(layers, stat, at, source, step)
    rows = rows[rows["layer"] != "readout"]
    if rows.empty:
        raise ValueError(f"no run wrote {source} rows of {stat} at step {step}")
    return rows.groupby("index")["value"].mean().sort_index()


def recursion(
    runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: CellFilter | None = None, by: Sequence[str] = ()
) -> float:
    """Largest relative distance, over hidden layers and cells, of the measured mean over seeds from its prediction."""
    cells = [at or {}]
    if by:
        keys = matching_rows(layers, at)[list(by)].drop_duplicates()
        cells = [{**(at or {}), **{str(k): v for k, v in row.items()}} for row in keys.to_dict("records")]
    worst = 0.0
    for cell in cells:
        measured, predicted = (layer_means(layers, stat, cell, source) for source in ("measured", "predicted"))
        shared = measured.index.intersection(predicted.index)
        worst = max(worst, float((measured[shared] / predicted[shared] - 1).abs().max()))
    return worst


def across_layers(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: CellFilter | None = None) -> float:
    """Ratio of the first hidden layer's mean over seeds of a statistic to the last one's."""
    means = layer_means(layers, stat, at)
    return float(means.iloc[0] / means.iloc[-1])


def across_layers_ratio(
    runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: CellFilter, than: CellFilter
) -> float:
    """`across_layers` of one cell over that of another."""
    return across_layers(runs, layers, stat=stat, at=at) / across_layers(runs, layers, stat=stat, at=than)


def last_layer(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: CellFilter | None = None) -> float:
    """Mean over seeds of a statistic at the last hidden layer of step 0."""
    return float(layer_means(layers, stat, at).iloc[-1])


def log_slope(
    runs: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    stat: str,
    at: CellFilter | None = None,
    per: str = "index",
    step: int = 0,
) -> float:
    """Slope of ln(statistic), mean over seeds, per hidden layer; or of log against log over another key (`per`)."""
    if per == "index":
        means = layer_means(layers, stat, at, step=step)
        return float(np.polyfit(means.index.to_numpy(dtype=float), np.log(means.to_numpy()), 1)[0])
    rows = matching_rows(layers, at)
    rows = rows[(rows["stat"] == stat) & (rows["step"] == step) & (rows["source"] == "measured")]
    logs = np.log(rows.groupby(per)["value"].mean())
    return float(np.polyfit(np.log(logs.index.to_numpy(dtype=float)), logs.to_numpy(), 1)[0])


def log_variance_per(runs: pd.DataFrame, layers: pd.DataFrame, *, stat: str, at: CellFilter | None = None) -> float:
    """Variance over networks of ln(last hidden layer's statistic / first one's), per layer between them over width."""
    rows = layer_rows(layers, stat, at, "measured")
    rows = rows[rows["layer"] != "readout"]
    first, last = int(rows["index"].min()), int(rows["index"].max())
    ends = [np.log(rows[rows["index"] == index].set_index("path")["value"]) for index in (first, last)]
    widths = matching_rows(runs, at)["width"].unique()
    if len(widths) != 1:
        raise ValueError("the variance of a log-length is counted in units of one width")
    return float((ends[1] - ends[0]).var(ddof=1) / ((last - first) / float(widths[0])))


def extreme(
    runs: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    stat: str,
    at: CellFilter | None = None,
    largest: bool = True,
    root: bool = False,
) -> float:
    """Largest (or smallest) value of a statistic over hidden layers and runs at step 0; `root`: of its square root."""
    rows = layer_rows(layers, stat, at, "measured")
    found = rows[rows["layer"] != "readout"]["value"]
    value = float(found.max() if largest else found.min())
    return math.sqrt(value) if root else value
