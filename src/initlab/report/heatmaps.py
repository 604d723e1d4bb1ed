"""Heat maps as PNG for TensorBoard, drawn by matplotlib without a display; the page draws its own figures."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from initlab.report.study import OUTCOMES, number_column, sorted_values, value_text
from initlab.system.numbers import format_rounded

OUTCOME_COLORS = ("#1a9e5c", "#8bbf3f", "#c9a227", "#2f7ed8", "#d9480f", "#b5179e", "#9aa5ad", "#6c757d", "#495057")
DPI = 100
MAX_LABELED_CELLS = 400  # with more cells their numbers would be too small to read


def depth_scheme_table(runs: pd.DataFrame, values: pd.Series, statistic: Callable[[pd.Series], Any]) -> pd.DataFrame:
    """Return a statistic of the values of each group of runs: a row per depth (as text), a column per scheme."""
    table = values.groupby([runs["depth"].map(value_text), runs["scheme"]]).agg(statistic).unstack()
    depths = [value_text(depth) for depth in sorted_values(runs["depth"])]
    return table.reindex(index=depths, columns=sorted(set(runs["scheme"])))


def mean_table(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the mean of a metric over completed runs, depth × scheme; NaN where there is none."""
    values = number_column(runs, metric)
    values = values.where(np.isfinite(values) & (runs["status"] == "completed"))
    return depth_scheme_table(runs, values, lambda part: part.mean())


def draw_heat_map(runs: pd.DataFrame, metric: str, title: str) -> bytes:
    """Draw the mean of a metric for each depth and scheme as a PNG; cells without a completed run stay blank."""
    means = mean_table(runs, metric)
    is_share = "accuracy" in metric
    figure, axes = make_axes(means, title)
    image = axes.imshow(means, origin="lower", aspect="auto", cmap="viridis" if is_share else "viridis_r")
    figure.colorbar(image, ax=axes).set_label(metric.replace("_", " "))
    middle = (means.min().min() + means.max().max()) / 2
    for (y, x), mean in np.ndenumerate(means):
        if np.isfinite(mean) and means.size <= MAX_LABELED_CELLS:
            text = format_rounded(100 * mean, 1) if is_share else format_rounded(mean, 3, "g")
            color = "white" if (mean < middle) == is_share else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    return render_png(figure)


def draw_outcome_map(runs: pd.DataFrame, title: str) -> bytes:
    """Draw the most frequent outcome of each depth and scheme, and how many of how many runs have it, as a PNG."""
    outcomes = depth_scheme_table(runs, runs["outcome"], lambda part: part.value_counts().index[0])
    codes = outcomes.map(lambda outcome: OUTCOMES.index(outcome) if outcome in OUTCOMES else np.nan)
    texts = depth_scheme_table(runs, runs["outcome"], lambda part: f"{part.value_counts().iloc[0]}/{len(part)}")
    figure, axes = make_axes(codes, title)
    colors = ListedColormap(OUTCOME_COLORS)
    axes.imshow(codes, origin="lower", aspect="auto", cmap=colors, vmin=-0.5, vmax=len(OUTCOMES) - 0.5)
    for (y, x), code in np.ndenumerate(codes):
        if np.isfinite(code) and codes.size <= MAX_LABELED_CELLS:
            axes.text(x, y, texts.iat[y, x], ha="center", va="center", fontsize=8, color="white")
    present = set(outcomes.stack())
    for outcome, color in zip(OUTCOMES, OUTCOME_COLORS, strict=True):
        if outcome in present:
            axes.plot([], [], "s", color=color, label=outcome)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return render_png(figure)


def make_axes(table: pd.DataFrame, title: str) -> tuple[Figure, Any]:
    """Return a figure whose axes have the depths of a table upwards and its schemes to the right."""
    height, width = table.shape
    size = (min(24.0, 3.5 + 0.75 * width), min(16.0, 2.2 + 0.42 * height))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xticks(range(width), map(escape_mathtext, shorten_distinct(list(table.columns))), rotation=45, ha="right")
    axes.set_yticks(range(height), [escape_mathtext(depth or "none") for depth in table.index])
    axes.set_ylabel("depth")
    axes.set_title(escape_mathtext(shorten(title, 80)))
    return figure, axes


def escape_mathtext(text: str) -> str:
    r"""Return text in which matplotlib sees no formula.

    >>> print(escape_mathtext("$x$"))
    \$x\$
    """
    return "".join(c if c.isprintable() else " " for c in text).replace("\\", "/").replace("$", r"\$")


def shorten(text: str, most: int = 28) -> str:
    """Cut a text that would leave no space for the figure.

    >>> shorten("he_normal", 5)
    'he_n…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def shorten_distinct(names: Sequence[str], most: int = 28) -> list[str]:
    """Shorten several texts so that different ones stay different: by their ends, or by numbers.

    >>> shorten_distinct(["momentum=0.9, rate=1", "momentum=0.9, rate=2", "plain"], most=12)
    ['mome… rate=1', 'mome… rate=2', 'plain']
    """
    short: dict[str, str] = {}
    for name in dict.fromkeys(names):
        tail = most // 2 + 1
        candidates = [shorten(name, most), f"{name[: most - tail - 1]}…{name[-tail:]}"]
        candidates += [f"{k}: {shorten(name, most - 2 - len(str(k)))}" for k in range(2, len(names) + 2)]
        clash = any(other != name and shorten(other, most) == candidates[0] for other in names)
        short[name] = next(text for text in candidates[clash:] if text not in short.values())
    return [short[name] for name in names]


def render_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        # Characters that the font lacks are shown as boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(out, format="png")
    return out.getvalue()
