"""Figures for a page of text, drawn by matplotlib as SVG: runs cell by cell, signals layer by layer."""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from initlab.report.heatmaps import OUTCOME_COLORS, escape_mathtext, shorten_distinct
from initlab.report.study import value_text

MAX_LINES = 12  # cells beyond which lines over layers would not be told apart


def cell_labels(frame: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """Name the cell of every row by the keys that differ.

    >>> cell_labels(pd.DataFrame({"init": ["zeros", "ones"], "act": ["tanh", "tanh"]}), ["init", "act"])
    0    zeros
    1     ones
    dtype: str
    """
    shown = [axis for axis in axes if frame[axis].map(str).nunique() > 1] or list(axes[:1])
    labels = [
        " ".join(filter(None, (key_label(axis, row[axis]) for axis in shown))) for _, row in frame[shown].iterrows()
    ]
    return pd.Series(labels, index=frame.index, dtype="str")


def key_label(axis: str, value: Any) -> str:
    """Write a key's value so that it can be told from others'; nothing where a cell has no such key.

    >>> key_label("init", "zeros"), key_label("depth", 3), key_label("init.q_star", float("nan"))
    ('zeros', 'depth=3', '')
    """
    shown = value_text(value)
    return shown if axis in ("init", "act", "model") or not shown else f"{axis}={shown}"


def draw_cells(sets: Sequence[tuple[str, pd.DataFrame]], metric: str, axes: Sequence[str]) -> bytes:
    """Draw every run of every cell as a dot at its metric, with the median as a line; diverged ones at the side.

    Arguments: `sets`, pairs of a heading and the runs below it, drawn side by side with the same cells.
    """
    labels = list(dict.fromkeys(label for _, runs in sets for label in cell_labels(runs, axes)))
    figure = Figure(figsize=(1.8 + 3.6 * len(sets), 1.3 + 0.3 * len(labels)), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True, sharex=True)[0]
    for panel, (heading, runs) in zip(panels, sets, strict=True):
        values = pd.to_numeric(runs[metric], errors="coerce").where(runs["status"] == "completed")
        runs = runs.assign(cell=cell_labels(runs, axes), value=values)
        for place, label in enumerate(reversed(labels)):
            rows = runs[runs["cell"] == label]
            found = rows["value"].dropna().to_numpy(dtype=float)
            colour = OUTCOME_COLORS[2]
            panel.plot(found, np.full(len(found), place), "o", color=colour, alpha=0.5, markersize=4)
            if len(found):
                panel.plot([np.median(found)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
            if lost := int((rows["status"] == "diverged").sum()):
                place_at = {
                    "x": 1.0,
                    "y": place,
                    "ha": "right",
                    "va": "center",
                    "fontsize": 8,
                    "color": OUTCOME_COLORS[3],
                }
                panel.text(s=f"{lost} diverged", transform=panel.get_yaxis_transform(), **place_at)
        panel.set_title(escape_mathtext(heading), fontsize=10)
        panel.set_xlabel(metric.replace("_", " "))
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(
        range(len(labels)), [escape_mathtext(label) for label in reversed(shorten_distinct(labels, 48))]
    )
    panels[0].set_ylim(-0.6, len(labels) - 0.4)
    return render_svg(figure)


def draw_layers(layers: pd.DataFrame, stat: str, axes: Sequence[str]) -> bytes:
    """Draw a statistic over hidden layers at step 0: measured networks' mean as dots, the prediction as a line."""
    rows = layers[(layers["stat"] == stat) & (layers["step"] == 0) & (layers["layer"] != "readout")]
    rows = rows.assign(cell=cell_labels(rows, axes))
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    panel = figure.subplots()
    for number, (label, group) in enumerate(list(rows.groupby("cell", sort=False))[:MAX_LINES]):
        colour = f"C{number % 10}"
        for source, style in (("measured", "o"), ("predicted", "-")):
            means = group[group["source"] == source].groupby("index")["value"].mean()
            if len(means):
                name = escape_mathtext(f"{label}, {source}")
                panel.plot(means.index, means.to_numpy(), style, color=colour, markersize=4, label=name)
    values = rows["value"].to_numpy(dtype=float)
    if stat != "c" and (values > 0).all():
        panel.set_yscale("log")
    panel.set_xlabel("hidden layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel(stat.replace("_", " "))
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return render_svg(figure)


def render_svg(figure: Figure) -> bytes:
    """Return a figure as SVG without a date, so that the same runs give the same bytes."""
    out = io.BytesIO()
    extra: dict[str, Any] = {"metadata": {"Date": None, "Creator": "initlab"}}
    figure.savefig(out, format="svg", **extra)
    # Names of clip paths are random.
    names: dict[bytes, bytes] = {}
    number = lambda m: names.setdefault(m[0], b"p%d" % len(names))  # noqa: E731
    return re.sub(rb"p[0-9a-f]{10}", number, out.getvalue())
