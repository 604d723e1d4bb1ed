"""What TensorBoard shows of a run: which tags, groups and charts. The CSV files are the record, this is a view."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from initlab.records.columns import LayerRow, flatten
from initlab.records.event_file import EventFile
from initlab.records.serialization import to_plain
from initlab.statistics.histograms import Histogram
from initlab.system.escape import printable

# TensorBoard shows the cards of one group (the part before the slash) together, and sorts groups by name: these, by
# which every run is judged, come before the many cards of its layers.
_SPLITS = {"": "train", "val_": "val", "test_": "test"}
TAGS = {f"{prefix}{name}": f"{name}/{split}" for prefix, split in _SPLITS.items() for name in ("loss", "accuracy")}
TAGS |= {"lr": "optim/lr", "grad_norm": "optim/grad_norm"}
# Final metrics, as `summary.json`, the terminal and the report have them: the HParams page shows these.
SUMMARY_GROUP = "summary"
# Histograms by kind; the numbers put weights first in the page, which sorts by name.
_KINDS = ("weight", "preactivation", "postactivation", "gradient")
HISTOGRAM_GROUPS = {name: f"tensor_{place}_{name}" for place, name in enumerate(_KINDS, start=1)}
# Statistics that span decades are drawn as their logarithm: Custom Scalars has no logarithmic axis.
_JACOBIANS = ("jacobian_mean", "jacobian_var", "jacobian_max")
LOG_STATS = {"q", "std", "grad_mean_square", "grad_norm", "update_ratio", *_JACOBIANS}
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
    """The event file of one run; the methods have the names and arguments of those of `RunWriter`."""

    def __init__(self, path: Path) -> None:
        self._events = EventFile(path)
        self._charted: tuple[set[str], set[str]] = set(), set()  # statistics over the steps, and over the layers

    def begin(
        self, config: Mapping[str, Any], hparams: Mapping[str, Any], metrics: Iterable[str], first: Collection[str]
    ) -> None:
        """Open the HParams session and show the configuration as a table."""
        values = {
            name: value if isinstance(value, (bool, int, float)) else printable(value)
            for name, value in to_plain(hparams).items()
            if value is not None
        }
        self._events.add_hparams(values, {f"{SUMMARY_GROUP}/{name}": name for name in metrics}, first)
        rows = [("key", "value"), ("---", "---"), *flatten(config).items()]
        self._events.add_text("config", "\n".join(f"| {_markdown_cell(a)} | {_markdown_cell(b)} |" for a, b in rows))

    def add_scalars_block(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Show the metrics of many steps."""
        self._events.add_scalars_block(steps, {TAGS[name]: column for name, column in columns.items()})

    def add_layers(self, rows: Iterable[LayerRow]) -> None:
        """Draw each measured statistic over the steps; at step 0 also over the layers, beside its forecast."""
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        by_layer: dict[int, dict[str, float]] = defaultdict(dict)
        layers: dict[tuple[int, str], list[LayerRow]] = defaultdict(list)
        over_steps, over_layers = (set(stats) for stats in self._charted)
        for row in rows:
            name, value = chart_stat(row.stat), chart_value(row.stat, row.value)
            if row.source == "measured":
                over_steps.add(row.stat)
                by_step[row.step][f"per_layer_{name}/{_layer_tag(row.index, row.layer)}"] = value
                layers[row.step, row.stat].append(row)
            if row.step == 0:
                over_layers.add(row.stat)
                by_layer[row.index][f"profile/{name} {row.source}"] = value
        for (step, stat), group in layers.items():
            if stat in STEP_CHARTS:
                group.sort(key=lambda row: row.index)
                for end, row in (("first", group[0]), ("last", group[-1])):
                    by_step[step][f"{END_LAYERS_GROUP}/{chart_stat(stat)} {end}"] = chart_value(stat, row.value)
        for place, values in [*by_step.items(), *sorted(by_layer.items())]:
            self._events.add_scalars(place, values)
        if (over_steps, over_layers) != self._charted:
            self._charted = over_steps, over_layers
            self._events.set_layout(_layout(over_steps, over_layers))

    def add_histograms(self, step: int, records: Mapping[tuple[str, int, str], Histogram]) -> None:
        """Show histograms, grouped by tensor kind."""
        tags = {
            f"{HISTOGRAM_GROUPS.get(kind, kind)}/{_layer_tag(index, layer)}": record
            for (kind, index, layer), record in records.items()
        }
        self._events.add_histograms(step, tags)

    def end(self, success: bool, step: int, final: Mapping[str, float | None]) -> None:
        """Close the HParams session with the final metrics."""
        values = {f"{SUMMARY_GROUP}/{name}": value for name, value in final.items() if value is not None}
        self._events.add_scalars(step, values)
        self._events.end_session(success)

    def flush(self) -> bytes:
        """Append pending events, close the file and return what was appended."""
        return self._events.flush()


def _layout(over_steps: set[str], over_layers: set[str]) -> dict[str, dict[str, list[str]]]:
    return {
        "training": {"loss on validation data": ["loss/val$"], "accuracy on validation data": ["accuracy/val$"]},
        "training, batch by batch": {
            "loss on training batches": ["loss/train$"],
            "accuracy on training batches": ["accuracy/train$"],
        },
        "step 0, layer by layer (the axis counts layers): measured, and predicted": {
            chart_title(s): [f"profile/{re.escape(chart_stat(s))} "] for s in LAYER_CHARTS if s in over_layers
        },
        "first and last layer over the steps": {
            chart_title(s): [f"{END_LAYERS_GROUP}/{re.escape(chart_stat(s))} "] for s in STEP_CHARTS if s in over_steps
        },
    }


def chart_stat(stat: str) -> str:
    """Return the name of what is drawn of a statistic: log10 of it where it spans decades.

    >>> chart_stat("q"), chart_stat("dead_fraction")
    ('log10_q', 'dead_fraction')
    """
    return f"log10_{stat}" if stat in LOG_STATS else stat


def chart_title(stat: str) -> str:
    """Return the title of a chart.

    >>> chart_title("q")
    'log10 of q, mean square of preactivations'
    """
    title = STAT_TITLES.get(stat, stat.replace("_", " "))
    return f"log10 of {title}" if stat in LOG_STATS else title


def chart_value(stat: str, value: float) -> float:
    """Return the number that is drawn; NaN for a value without logarithm, such as the gradient of a dead network.

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
