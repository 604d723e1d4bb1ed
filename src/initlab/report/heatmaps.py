"""Pictures for TensorBoard, drawn by matplotlib without a display: the only ones that are not drawn by the page."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from initlab.report.study import OUTCOMES, sorted_values, value_text
from initlab.system.numbers import format_rounded

OUTCOME_COLORS = ("#1a9e5c", "#8bbf3f", "#c9a227", "#2f7ed8", "#d9480f", "#b5179e", "#9aa5ad", "#6c757d", "#495057")
DPI = 100
MAX_LABELED_CELLS = 400  # cells beyond which numbers inside them would not be read


def mean_grid(runs: pd.DataFrame, metric: str) -> tuple[list[Any], list[str], np.ndarray]:
    """Return depths, schemes and the mean of a metric over completed runs [depth, scheme], NaN where there is none."""
    depths, schemes = sorted_values(runs["depth"]), sorted(set(runs["scheme"]))
    found = np.full((len(depths), len(schemes)), np.nan)
    places = {value_text(value): k for k, value in enumerate(depths)}
    done = runs[runs["status"] == "completed"]
    for (depth, scheme), group in done.groupby([done["depth"].map(value_text), "scheme"]):
        values = group[metric].to_numpy(dtype=float)
        if np.isfinite(values).any():
            found[places[str(depth)], schemes.index(scheme)] = values[np.isfinite(values)].mean()
    return depths, schemes, found


def draw_heat_map(runs: pd.DataFrame, metric: str, title: str) -> bytes:
    """Draw the mean of a metric for each depth and scheme as a PNG; cells without a completed run stay blank."""
    depths, schemes, found = mean_grid(runs, metric)
    share = "accuracy" in metric
    figure, axes = make_axes(depths, schemes, title)
    image = axes.imshow(found, origin="lower", aspect="auto", cmap="viridis" if share else "viridis_r")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(metric.replace("_", " "))
    if found.size <= MAX_LABELED_CELLS:
        middle = np.nanmean([np.nanmin(found), np.nanmax(found)]) if np.isfinite(found).any() else 0
        for (y, x), value in np.ndenumerate(found):
            if np.isfinite(value):
                light = (value < middle) == share
                shown = format_rounded(100 * value, 1) if share else format_rounded(value, 3, "g")
                axes.text(x, y, shown, ha="center", va="center", fontsize=8, color="white" if light else "black")
    return render_png(figure)


def draw_outcome_map(runs: pd.DataFrame, title: str) -> bytes:
    """Draw how most runs of each depth and scheme ended, and how many of how many, as a PNG."""
    depths, schemes = sorted_values(runs["depth"]), sorted(set(runs["scheme"]))
    found = np.full((len(depths), len(schemes)), np.nan)
    figure, axes = make_axes(depths, schemes, title)
    places = {value_text(value): k for k, value in enumerate(depths)}
    present: set[str] = set()
    for (depth, scheme), group in runs.groupby([runs["depth"].map(value_text), "scheme"]):
        y, x = places[str(depth)], schemes.index(scheme)
        counts = group["outcome"].value_counts()
        found[y, x] = OUTCOMES.index(counts.index[0])
        present.add(counts.index[0])
        if found.size <= MAX_LABELED_CELLS:
            axes.text(x, y, f"{counts.iloc[0]}/{len(group)}", ha="center", va="center", fontsize=8, color="white")
    colours = ListedColormap(OUTCOME_COLORS)
    axes.imshow(found, origin="lower", aspect="auto", cmap=colours, vmin=-0.5, vmax=len(OUTCOMES) - 0.5)
    handles = [
        axes.plot([], [], "s", color=OUTCOME_COLORS[OUTCOMES.index(o)], label=o)[0] for o in OUTCOMES if o in present
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return render_png(figure)


def make_axes(depths: Sequence[Any], schemes: Sequence[str], title: str) -> tuple[Figure, Any]:
    """Return a figure whose axes count depths upwards and schemes to the right."""
    width, height = min(24.0, 3.5 + 0.75 * len(schemes)), min(16.0, 2.2 + 0.42 * len(depths))
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xticks(
        range(len(schemes)), [escape_mathtext(name) for name in shorten_distinct(schemes)], rotation=45, ha="right"
    )
    axes.set_yticks(range(len(depths)), [escape_mathtext(value_text(depth) or "none") for depth in depths])
    axes.set_ylabel("depth")
    axes.set_title(escape_mathtext(shorten(title, 80)))
    return figure, axes


def escape_mathtext(words: str) -> str:
    r"""Return text in which matplotlib sees no formula.

    >>> print(escape_mathtext("$x$"))
    \$x\$
    """
    return "".join(c if c.isprintable() else " " for c in words).replace("\\", "/").replace("$", r"\$")


def shorten(words: str, most: int = 28) -> str:
    """Shorten text that would leave no room for the picture."""
    return words if len(words) <= most else f"{words[: most - 1]}…"


def shorten_distinct(names: Sequence[str], most: int = 28) -> list[str]:
    """Shorten several texts so that those which differ still do: by their ends, or where both are alike by numbers.

    >>> shorten_distinct(["momentum=0.9, rate=1", "momentum=0.9, rate=2", "plain"], most=12)
    ['mome… rate=1', 'mome… rate=2', 'plain']
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        tail = most // 2 + 1
        ways = [shorten(name, most), f"{name[: most - tail - 1]}…{name[-tail:]}"]
        ways += [f"{k}: {shorten(name, most - 2 - len(str(k)))}" for k in range(2, len(names) + 2)]
        alike = [other for other in names if other != name and shorten(other, most) == ways[0]]
        found[name] = next(way for way in ways[bool(alike) :] if way not in found.values())
    return [found[name] for name in names]


def render_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font has not is shown as boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(out, format="png")
    return out.getvalue()
