"""What TensorBoard shows of a run: which tags, groups and charts. The CSV files are the record, this is a view."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from initlab.records.columns import flatten
from initlab.records.event_file import EventFile
from initlab.records.serialization import to_plain
from initlab.statistics.histograms import Histogram
from initlab.system.escape import printable

LayerRow = tuple[int, str, int, str, float, str]

# Cards of one group (what stands before the slash) are shown together, groups by the alphabet: what every run is judged
# by comes before the many cards of its layers.
TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "test_loss": "loss/test",
    "accuracy": "accuracy/train",
    "val_accuracy": "accuracy/val",
    "test_accuracy": "accuracy/test",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
}


# What a run comes to, as `summary.json`, the terminal and the report have it: the HParams page shows these.
SUMMARY_GROUP = "summary"
# Histograms by kind, in the order of the alphabet, which is that of the page: after the scalars, weights first.
HISTOGRAM_GROUPS = {
    name: f"tensor_{place}_{name}"
    for place, name in enumerate(("weight", "preactivation", "postactivation", "gradient"), start=1)
}
# Statistics that span decades are drawn as their logarithm, for Custom Scalars has no logarithmic axis to be set.
LOG_STATS = {
    "q",
    "std",
    "grad_mean_square",
    "grad_norm",
    "update_ratio",
    "jacobian_mean",
    "jacobian_var",
    "jacobian_max",
}
STAT_TITLES = {
    "q": "q, mean square of preactivations",
    "c": "c, correlation of the preactivations of two inputs",
    "grad_mean_square": "mean square of the gradient at preactivations",
    "update_ratio": "size of an update, relative to the weight",
    "saturated_fraction": "share of saturated preactivations",
    "dead_fraction": "share of units silent on every input",
    "jacobian_mean": "mean squared singular value of the Jacobian",
}
# The charts of Custom Scalars, which asks the server once for each run and chart, and draws a line for each tag of it.
STEP_CHARTS = ("q", "grad_mean_square", "update_ratio", "saturated_fraction", "dead_fraction")
LAYER_CHARTS = ("q", "c", "grad_mean_square", "jacobian_mean")
END_LAYERS_GROUP = "per_layer_ends"


class TensorBoardView:
    """The event file of one run, in the words of `RunWriter`."""

    def __init__(self, path: Path) -> None:
        self._events = EventFile(path)
        self._curves: set[str] = set()
        self._profiles: set[str] = set()

    def begin(
        self, config: Mapping[str, Any], hparams: Mapping[str, Any], metrics: Iterable[str], first: Collection[str]
    ) -> None:
        """Open the HParams session and show the configuration as a table."""
        shown = {name: value for name, value in to_plain(hparams).items() if value is not None}
        shown = {k: value if isinstance(value, (bool, int, float)) else printable(value) for k, value in shown.items()}
        self._events.hparams(shown, {f"{SUMMARY_GROUP}/{name}": name for name in metrics}, first)
        rows = [f"| {_markdown_cell(key)} | {_markdown_cell(value)} |" for key, value in flatten(config).items()]
        self._events.text("config", "\n".join(["| key | value |", "|---|---|", *rows]))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of one step."""
        self._events.scalars(step, {TAGS[name]: value for name, value in values.items()})

    def scalars_block(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Show the metrics of many steps."""
        self._events.scalars_block(steps, {TAGS[name]: column for name, column in columns.items()})

    def layers(self, rows: Iterable[LayerRow]) -> None:
        """Draw each measured statistic over the steps; at step 0 also over the layers, beside its forecast."""
        by_step: dict[int, dict[str, float]] = {}
        ends: dict[tuple[int, str], list[tuple[int, float]]] = {}
        by_layer: dict[int, dict[str, float]] = {}
        curves, profiles = set(self._curves), set(self._profiles)
        for step, layer, index, stat, value, source in rows:
            if source == "measured":
                curves.add(stat)
                by_step.setdefault(step, {})[f"per_layer_{chart_stat(stat)}/{_layer_tag(index, layer)}"] = chart_value(
                    stat, value
                )
                ends.setdefault((step, stat), []).append((index, value))
            if step == 0:
                profiles.add(stat)
                by_layer.setdefault(index, {})[f"profile/{chart_stat(stat)} {source}"] = chart_value(stat, value)
        for (step, stat), places in ends.items():
            if stat in STEP_CHARTS:
                for end, (_, value) in (("first", min(places)), ("last", max(places))):
                    by_step[step][f"{END_LAYERS_GROUP}/{chart_stat(stat)} {end}"] = chart_value(stat, value)
        for step, values in by_step.items():
            self._events.scalars(step, values)
        for index in sorted(by_layer):
            self._events.scalars(index, by_layer[index])
        if (curves, profiles) != (self._curves, self._profiles):
            self._curves, self._profiles = curves, profiles
            self._events.layout(_layout(curves, profiles))

    def histograms(self, step: int, records: Mapping[tuple[str, int, str], Histogram]) -> None:
        """Show histograms, grouped by tensor kind."""
        tags = {
            f"{HISTOGRAM_GROUPS.get(kind, kind)}/{_layer_tag(index, layer)}": record
            for (kind, index, layer), record in records.items()
        }
        self._events.histograms(step, tags)

    def end(self, success: bool, step: int = 0, final: Mapping[str, float | None] | None = None) -> None:
        """Close the HParams session with what the run came to."""
        values = {f"{SUMMARY_GROUP}/{name}": value for name, value in (final or {}).items() if value is not None}
        if values:
            self._events.scalars(step, values)
        self._events.end_session(success)

    def flush(self) -> bytes:
        """Append what waits, close the file and return what was appended."""
        return self._events.flush()


def _layout(curves: set[str], profiles: set[str]) -> dict[str, dict[str, list[str]]]:
    training = {
        "loss on validation data": ["loss/val$"],
        "accuracy on validation data": ["accuracy/val$"],
    }
    batches = {"loss on training batches": ["loss/train$"], "accuracy on training batches": ["accuracy/train$"]}
    over_layers = {chart_title(s): [f"profile/{re.escape(chart_stat(s))} "] for s in LAYER_CHARTS if s in profiles}
    over_steps = {
        chart_title(s): [f"{END_LAYERS_GROUP}/{re.escape(chart_stat(s))} "] for s in STEP_CHARTS if s in curves
    }
    return {
        "training": training,
        "training, batch by batch": batches,
        "step 0, layer by layer (the axis counts layers): measured, and predicted": over_layers,
        "first and last layer over the steps": over_steps,
    }


def chart_stat(stat: str) -> str:
    """Return what is drawn of a statistic: log10 of it where it spans decades.

    >>> chart_stat("q"), chart_stat("dead_fraction")
    ('log10_q', 'dead_fraction')
    """
    return f"log10_{stat}" if stat in LOG_STATS else stat


def chart_title(stat: str) -> str:
    """Return the title of a chart.

    >>> chart_title("q")
    'log10 of q, mean square of preactivations'
    """
    words = STAT_TITLES.get(stat, stat.replace("_", " "))
    return f"log10 of {words}" if stat in LOG_STATS else words


def chart_value(stat: str, value: float) -> float:
    """Return the number that is drawn; of what has no logarithm, as the gradient of a dead network, there is none.

    >>> chart_value("q", 0.01), chart_value("c", 0.5), chart_value("q", 0.0)
    (-2.0, 0.5, nan)
    """
    if stat not in LOG_STATS:
        return value
    return math.log10(value) if value > 0 else math.nan


def _layer_tag(index: int, layer: str) -> str:
    return f"{index:02d}-{printable(layer)}"


def _markdown_cell(value: Any) -> str:
    return printable(value).replace("|", "\\|")
