"""What TensorBoard shows of a run: which tags, groups and charts. The CSV files are the record, this is a view."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from initlab.histograms import Histogram
from initlab.records.events import EventFile
from initlab.records.plain import plain
from initlab.records.tables import flatten
from initlab.visible import visible

Row = tuple[int, str, int, str, float, str]

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


class View:
    """The event file of one run, in the words of `RunWriter`."""

    def __init__(self, path: Path) -> None:
        self._events = EventFile(path)
        self._curves: set[str] = set()
        self._profiles: set[str] = set()

    def begin(self, config: Mapping[str, Any], hparams: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Open the HParams session and show the configuration as a table."""
        shown = {name: value for name, value in plain(hparams).items() if value is not None}
        shown = {k: value if isinstance(value, (bool, int, float)) else visible(value) for k, value in shown.items()}
        self._events.hparams(shown, {TAGS[name]: name for name in metrics})
        rows = [f"| {_markdown(key)} | {_markdown(value)} |" for key, value in flatten(config).items()]
        self._events.text("config", "\n".join(["| key | value |", "|---|---|", *rows]))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show the metrics of one step."""
        self._events.scalars(step, {TAGS[name]: value for name, value in values.items()})

    def scalars_block(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Show the metrics of many steps."""
        self._events.scalars_block(steps, {TAGS[name]: column for name, column in columns.items()})

    def layers(self, rows: Iterable[Row]) -> None:
        """Draw each measured statistic over the steps; at step 0 also over the layers, beside its forecast."""
        by_step: dict[int, dict[str, float]] = {}
        by_layer: dict[int, dict[str, float]] = {}
        curves, profiles = set(self._curves), set(self._profiles)
        for step, layer, index, stat, value, source in rows:
            if source == "measured":
                curves.add(stat)
                by_step.setdefault(step, {})[f"per_layer_{stat}/{_place(index, layer)}"] = value
            if step == 0:
                profiles.add(stat)
                by_layer.setdefault(index, {})[f"profile/{stat} {source}"] = value
        for step, values in by_step.items():
            self._events.scalars(step, values)
        for index in sorted(by_layer):
            self._events.scalars(index, by_layer[index])
        if (curves, profiles) != (self._curves, self._profiles):
            self._curves, self._profiles = curves, profiles
            self._events.layout(_layout(curves, profiles))

    def histograms(self, step: int, records: Mapping[tuple[str, int, str], Histogram]) -> None:
        """Show histograms, grouped by tensor kind."""
        tags = {f"{kind}/{_place(index, layer)}": record for (kind, index, layer), record in records.items()}
        self._events.histograms(step, tags)

    def end(self, success: bool) -> None:
        """Close the HParams session."""
        self._events.end_session(success)

    def flush(self) -> bytes:
        """Append what waits, close the file and return what was appended."""
        return self._events.flush()


def _layout(curves: set[str], profiles: set[str]) -> dict[str, dict[str, list[str]]]:
    return {
        "training": {name: [f"{name}/(train|val|test)$"] for name in ("loss", "accuracy")},
        "step 0, layer by layer (the axis counts layers)": {s: [f"profile/{s} "] for s in sorted(profiles)},
        "all layers over the steps": {s: [f"per_layer_{s}/"] for s in sorted(curves)},
    }


def _place(index: int, layer: str) -> str:
    return f"{index:02d}-{visible(layer)}"


def _markdown(value: Any) -> str:
    return visible(value).replace("|", "\\|")
