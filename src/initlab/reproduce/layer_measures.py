"""Measures of the rows that runs leave about their layers, step 0 unless said otherwise."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from initlab.reproduce.selection import CellFilter, Frames, matching_rows


def layer_rows(
    frames: Frames, stat: str, at: CellFilter | None, source: str = "measured", step: int = 0
) -> pd.DataFrame:
    """Return the rows of one statistic, source (`measured` or `predicted`) and step at a cell."""
    rows = matching_rows(frames.layers, at)
    return rows[(rows["stat"] == stat) & (rows["source"] == source) & (rows["step"] == step)]


def hidden_rows(
    frames: Frames, stat: str, at: CellFilter | None, source: str = "measured", step: int = 0
) -> pd.DataFrame:
    """Return `layer_rows` of the hidden layers alone.

    Raises:
        ValueError: no run wrote such rows.
    """
    rows = layer_rows(frames, stat, at, source, step)
    rows = rows[rows["layer"] != "readout"]
    if rows.empty:
        raise ValueError(f"no run wrote {source} rows of {stat} at step {step}")
    return rows


def layer_means(frames: Frames, stat: str, at: CellFilter | None, source: str = "measured", step: int = 0) -> pd.Series:
    """Return a statistic's mean over seeds by the layer's index, of the hidden layers alone."""
    return hidden_rows(frames, stat, at, source, step).groupby("index")["value"].mean().sort_index()


def recursion(frames: Frames, *, stat: str, at: CellFilter | None = None, by: Sequence[str] = ()) -> float:
    """Largest relative distance, over hidden layers and cells, of the measured mean over seeds from its prediction."""
    cells = [at or {}]
    if by:
        keys = matching_rows(frames.layers, at)[list(by)].drop_duplicates()
        cells = [{**(at or {}), **{str(k): v for k, v in row.items()}} for row in keys.to_dict("records")]
    worst = 0.0
    for cell in cells:
        measured, predicted = (layer_means(frames, stat, cell, source) for source in ("measured", "predicted"))
        shared = measured.index.intersection(predicted.index)
        worst = max(worst, float((measured[shared] / predicted[shared] - 1).abs().max()))
    return worst


def across_layers(frames: Frames, *, stat: str, at: CellFilter | None = None) -> float:
    """Ratio of the first hidden layer's mean over seeds of a statistic to the last one's."""
    means = layer_means(frames, stat, at)
    return float(means.iloc[0] / means.iloc[-1])


def across_layers_ratio(frames: Frames, *, stat: str, at: CellFilter, than: CellFilter) -> float:
    """`across_layers` of one cell over that of another."""
    return across_layers(frames, stat=stat, at=at) / across_layers(frames, stat=stat, at=than)


def last_layer(frames: Frames, *, stat: str, at: CellFilter | None = None) -> float:
    """Mean over seeds of a statistic at the last hidden layer of step 0."""
    return float(layer_means(frames, stat, at).iloc[-1])


def log_slope(frames: Frames, *, stat: str, at: CellFilter | None = None, per: str = "index", step: int = 0) -> float:
    """Slope of ln(statistic), mean over seeds, per hidden layer; or of log against log over another key (`per`)."""
    if per == "index":
        means = layer_means(frames, stat, at, step=step)
        return float(np.polyfit(means.index.to_numpy(dtype=float), np.log(means.to_numpy()), 1)[0])
    logs = np.log(layer_rows(frames, stat, at, step=step).groupby(per)["value"].mean())
    return float(np.polyfit(np.log(logs.index.to_numpy(dtype=float)), logs.to_numpy(), 1)[0])


def log_variance_per(frames: Frames, *, stat: str, at: CellFilter | None = None) -> float:
    """Variance over networks of ln(last hidden layer's statistic / first one's), per layer between them over width.

    Raises:
        ValueError: the runs have several widths.
    """
    rows = hidden_rows(frames, stat, at)
    first, last = int(rows["index"].min()), int(rows["index"].max())
    ends = [np.log(rows[rows["index"] == index].set_index("path")["value"]) for index in (first, last)]
    widths = matching_rows(frames.runs, at)["width"].unique()
    if len(widths) != 1:
        raise ValueError("the variance of a log-length is counted in units of one width")
    return float((ends[1] - ends[0]).var(ddof=1) / ((last - first) / float(widths[0])))


def extreme(
    frames: Frames, *, stat: str, at: CellFilter | None = None, largest: bool = True, root: bool = False
) -> float:
    """Largest (or smallest) value of a statistic over hidden layers and runs at step 0; `root`: of its square root."""
    values = hidden_rows(frames, stat, at)["value"]
    value = float(values.max() if largest else values.min())
    return math.sqrt(value) if root else value
