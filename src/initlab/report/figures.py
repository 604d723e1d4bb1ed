"""The figures of the page, one record each: what it shows, which data it needs, and the script that draws it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class ReportFigure:
    """One figure of the page.

    Attributes:
        name: its key in `FIGURES`, and its id in the page.
        title: the heading.
        caption: the text below the heading.
        needs: dotted path into the page's data; without a value there, the page has no such figure.
        data: function of the frame of runs (`Study.runs`) that returns plain values; the script reads them as
            `data.figures[name]`.
        script: JavaScript file that sets `figures[name] = { controls(runs), draw(runs, choices, theme, width, most) }`;
            by default the file of this name in `assets/figures/`.
    """

    name: str
    title: str
    caption: str
    needs: str
    data: Callable[[pd.DataFrame], Any] | None = None
    script: Path | None = None


FIGURES: dict[str, ReportFigure] = {
    figure.name: figure
    for figure in (
        ReportFigure(
            "heat",
            "Depth × scheme",
            "Every cell is the mean over its seeds. Outcomes: the most frequent one gives the color, the text says how "
            "many of how many. Diverged runs have no accuracy of their own and are left out of means; outcomes count "
            "them. A line over a column is the depth to which the forecast lets that scheme train, at the upper edge "
            "when that is deeper than all.",
            "runs.scheme",
        ),
        ReportFigure(
            "curves",
            "Training curves",
            "Lines are means over seeds, bands the whole range or ± one standard deviation. A cross is where a network "
            "diverged; from there on the mean is over the others. Long curves are thinned: a point is the mean of the "
            "steps since the point before.",
            "curves.metrics.loss",
        ),
        ReportFigure(
            "signal",
            "Signal by layer: predicted and measured",
            "Solid lines and bands: measured, median and range over seeds. Dashed lines: what theory predicted before "
            "a weight was drawn (step 0 only).",
            "layers.run",
        ),
        ReportFigure(
            "histograms",
            "Histograms of different runs, overlaid",
            "One line per run, colored by scheme; the area under each is 1. The page has some steps and layers of "
            "every run; histograms.csv of a run has all of them.",
            "histograms.run",
        ),
        ReportFigure(
            "maps",
            "Layer × step",
            "The median over seeds, layer by layer from the input (below) to the output, at the recorded steps.",
            "layers.run",
        ),
        ReportFigure(
            "target",
            "Time to a target loss",
            "The first step at which the mean training loss of ten steps is at or below the target: median over seeds, "
            "bars from the fastest to the slowest. Triangles at the top count the seeds that never got there.",
            "curves.metrics.loss",
        ),
        ReportFigure(
            "visible",
            "How long the initialization stays visible",
            "The share of the variance between runs that the scheme explains, the rest being the seed's (intraclass "
            "correlation of the logarithm of a loss, or of an accuracy). At 1 only the scheme matters, at 0 a run does "
            "not depend on its scheme. It takes two schemes with two seeds each.",
            "curves.metrics.loss",
        ),
        ReportFigure(
            "distance",
            "How far the weights are from their start",
            "√Σ(‖W‖ − ‖W₀‖)² / √Σ‖W₀‖² over the layers: at least how far the weights have moved, in units of their "
            "own length. The true distance may be larger: weights can turn without growing, and runs record norms.",
            "layers.run",
        ),
        ReportFigure(
            "rates",
            "Learning rates",
            "The mean over seeds at every rate that was tried; filled points are usable rates (at least half of the "
            "seeds trained). Wide windows are robust schemes. The filter “best rate only” does not apply here.",
            "rates",
        ),
    )
}


def drawable_figures(payload: Mapping[str, Any]) -> list[ReportFigure]:
    """Return the figures whose data the page has.

    >>> [figure.name for figure in drawable_figures({"runs": {"scheme": {"texts": ["zeros"]}}, "rates": False})]
    ['heat']
    """

    def value_at(path: str) -> Any:
        value: Any = payload
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return [figure for figure in FIGURES.values() if value_at(figure.needs)]
