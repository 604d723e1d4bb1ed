"""The figures of the page, one record each: its title, the data it needs, and the script that draws it."""

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
        needs: dotted path into the page's data; without a value there, the page has no such figure.
        data: function of the frame of runs (`Study.runs`) that returns plain values; the script reads them as
            `data.figures[name]`.
        script: JavaScript file that sets `figures[name]`, as `assets/series.js` describes it; by default the file of
            this name in `assets/figures/`.
    """

    name: str
    title: str
    needs: str
    data: Callable[[pd.DataFrame], Any] | None = None
    script: Path | None = None


_FIGURES = (
    ReportFigure("heat", "Depth × scheme", "runs.scheme"),
    ReportFigure("curves", "Training curves", "curves.metrics.loss"),
    ReportFigure("signal", "Signal by layer: predicted and measured", "layers.run"),
    ReportFigure("histograms", "Histograms of different runs, overlaid", "histograms.run"),
    ReportFigure("maps", "Layer × step", "layers.run"),
    ReportFigure("target", "Time to a target loss", "curves.metrics.loss"),
    ReportFigure("visible", "How long the initialization stays visible", "curves.metrics.loss"),
    ReportFigure("distance", "How far the weights are from their start", "layers.run"),
    ReportFigure("rates", "Learning rates", "rates"),
)
FIGURES = {figure.name: figure for figure in _FIGURES}


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
