"""Figures for a page of text, drawn by matplotlib as SVG: runs cell by cell, signals layer by layer."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from initlab.report.heatmaps import OUTCOME_COLORS, escape_mathtext, shorten_distinct
from initlab.report.study import number_column, value_text

MAX_LINES = 12  # more cells could not be told apart by their lines


def cell_labels(frame: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """Return a label of the cell of every row: the values of the keys that differ.

    >>> cell_labels(pd.DataFrame({"init": ["zeros", "ones"], "act": ["tanh", "tanh"]}), ["init", "act"])
    0    zeros
    1     ones
    dtype: str
    """
    keys = [axis for axis in axes if frame[axis].map(str).nunique() > 1] or list(axes[:1])
    parts = [frame[key].map(lambda value, key=key: key_label(key, value)) for key in keys]
    labels = [" ".join(filter(None, row)) for row in zip(*parts, strict=True)]
    return pd.Series(labels, index=frame.index, dtype="str")


def key_label(axis: str, value: Any) -> str:
    """Return a key's value with the name of the key; "" where a cell has no such key.

    >>> key_label("init", "zeros"), key_label("depth", 3), key_label("init.q_star", float("nan"))
    ('zeros', 'depth=3', '')
    """
    text = value_text(value)
    return text if axis in ("init", "act", "model") or not text else f"{axis}={text}"


def draw_cells(sets: Sequence[tuple[str, pd.DataFrame]], metric: str, axes: Sequence[str]) -> bytes:
    """Draw every run of every cell as a dot at its metric, the median as a line, and the number of diverged runs.

    Args:
        sets: pairs of a heading and runs, drawn side by side with the same cells.
        metric: a column of the runs.
        axes: keys that tell cells apart.

    Returns:
        An SVG image.
    """
    labels = list(dict.fromkeys(label for _, runs in sets for label in cell_labels(runs, axes)))
    figure = Figure(figsize=(1.8 + 3.6 * len(sets), 1.3 + 0.3 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True, sharex=True)[0]
    for panel, (heading, runs) in zip(panels, sets, strict=True):
        cells = cell_labels(runs, axes)
        for place, label in enumerate(reversed(labels)):
            rows = runs[cells == label]
            values = number_column(rows[rows["status"] == "completed"], metric).dropna().to_numpy()
            color = OUTCOME_COLORS[2]
            panel.plot(values, np.full(len(values), place), "o", color=color, alpha=0.5, markersize=4)
            if len(values):
                panel.plot([np.median(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
            if diverged := int((rows["status"] == "diverged").sum()):
                text = {"s": f"{diverged} diverged", "color": OUTCOME_COLORS[3], "fontsize": 8}
                panel.text(1.0, place, **text, ha="right", va="center", transform=panel.get_yaxis_transform())
        panel.set_title(escape_mathtext(heading), fontsize=10)
        panel.set_xlabel(metric.replace("_", " "))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(labels)), map(escape_mathtext, reversed(shorten_distinct(labels, 48))))
    panels[0].set_ylim(-0.6, len(labels) - 0.4)
    return render_svg(figure)


def draw_layers(layers: pd.DataFrame, stat: str, axes: Sequence[str]) -> bytes:
    """Draw a statistic over hidden layers at step 0: the mean of measured networks as dots, the prediction as a line.

    Args:
        layers: rows of `load_layers`.
        stat: the statistic.
        axes: keys that tell cells apart.

    Returns:
        An SVG image.
    """
    rows = layers[(layers["stat"] == stat) & (layers["step"] == 0) & (layers["layer"] != "readout")]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    for number, (label, group) in enumerate(list(rows.groupby(cell_labels(rows, axes), sort=False))[:MAX_LINES]):
        for source, style in (("measured", "o"), ("predicted", "-")):
            means = group[group["source"] == source].groupby("index")["value"].mean()
            if len(means):
                name = escape_mathtext(f"{label}, {source}")
                panel.plot(means.index, means.to_numpy(), style, color=f"C{number % 10}", markersize=4, label=name)
    if stat != "c" and (rows["value"] > 0).all():
        panel.set_yscale("log")
    panel.set_xlabel("hidden layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel(stat.replace("_", " "))
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return render_svg(figure)


def render_svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date and random names, so that the same runs give the same bytes."""
    out = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": "initlab"}
    with rc_context({"svg.hashsalt": "initlab"}):
        figure.savefig(out, format="svg", metadata=metadata)
    return out.getvalue()
