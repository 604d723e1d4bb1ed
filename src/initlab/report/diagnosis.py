"""What went wrong in a run, in plain sentences: the causes that its own rows show, and a remedy for each.

The rules are those of `initlab.report.findings`; this file turns the rows of a run into their input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.records import load, load_layers, load_metrics
from initlab.report.findings.network import LayerStats, NetworkInfo
from initlab.report.findings.record import Finding
from initlab.report.findings.start import find_start_causes
from initlab.report.findings.training import LoggedLosses, find_training_causes, rate_text, slower_remedy
from initlab.report.layers import LayerArrays, layer_arrays
from initlab.report.study import build_study, row_dicts, value_text
from initlab.system.numbers import format_rounded

START_STATS = ("q", "mean", "std", "c", "nonfinite", "weight_norm", "duplicate_units", "grad_mean_square")
UNIT_STATS = ("saturated_fraction", "dead_fraction")
ACCURACIES = ("val_accuracy", "test_accuracy", "accuracy")
DIVERGENCE_CAUSES = {"overflow", "signal_explodes", "gradient_explodes", "stream_explodes"}
"""Causes at step 0 of a loss that stops being finite."""

_NO_LAYERS = LayerArrays((), np.zeros(0), np.zeros(0), (), np.zeros((0, 2, 0, 0)))


def explain_run(row: Mapping[str, Any], arrays: LayerArrays | None, losses: LoggedLosses | None = None) -> str:
    """Return what is wrong with a run and what would mend it; "" for a run that trained.

    Args:
        row: of the frame of runs.
        arrays: its layer rows, None where there are none.
        losses: its logged losses, None where they are unknown.

    >>> explain_run({"outcome": "skipped", "status": "skipped", "reason": "dirac has nothing to fill here"}, None)
    'Skipped: dirac has nothing to fill here.'
    """
    outcome = row["outcome"]
    if outcome in ("trained", "finished"):
        return ""
    if outcome in ("diverged", "stuck", "learning"):
        causes = find_causes(row, arrays or _NO_LAYERS, losses or LoggedLosses(rate=number_of(row, "rate", np.nan)))
        text = " ".join([outcome_sentence(row), *(cause.sentence for cause in causes)])
        remedies = list(dict.fromkeys(cause.remedy for cause in causes if cause.remedy))
        text += f" What would mend it: {'; '.join(remedies)}." if remedies else ""
        if outcome == "learning":
            return text if "more steps" in text else f"{text} Its loss still fell at the end: more train.steps."
        if causes:
            return text
        if arrays is None:
            return f"{text} No layer rows tell why."
        return f"{text} Nothing is wrong at step 0, and its losses show no trend: more steps or another rate may help."
    why = value_text(row.get("reason"))
    if outcome == "failed":
        return f"An exception ended it, which is a bug and no result: {why or 'run.log has the traceback'}."
    return f"{outcome.capitalize()}: {why or 'no reason is recorded'}."


def explain_directory(path: Path) -> str:
    """Return the explanation of the run in a directory, read from its tables; "" where there is no run."""
    runs = build_study(load([path])).runs
    if runs.empty:
        return ""
    layers, metrics = load_layers([path], keys=()), load_metrics([path], keys=())
    row = row_dicts(runs)[0]
    return explain_run(row, layer_arrays(layers) if len(layers) else None, losses_of(row, metrics))


def outcome_sentence(row: Mapping[str, Any]) -> str:
    """Return a sentence about how a run ended that diverged or did not train."""
    if row["outcome"] == "diverged":
        step, layer = number_of(row, "first_bad_step"), value_text(row.get("first_bad_layer"))
        where = "" if step is None else f" at step {step:.0f}"
        return f"The loss stopped being finite{where}{f', first in {layer}' if layer else ''}."
    accuracy = next((value for name in ACCURACIES if (value := number_of(row, name)) is not None), None)
    begin = "It has not trained yet" if row["outcome"] == "learning" else "It did not train"
    return begin + (f" (accuracy {format_rounded(100 * accuracy, 1)}%)." if accuracy is not None else ".")


def find_causes(row: Mapping[str, Any], arrays: LayerArrays, losses: LoggedLosses) -> list[Finding]:
    """Return the causes that the rows of a run show: those of step 0 in the order of its layers, then training's."""
    network = network_of(row)
    started = len(arrays.steps) > 0 and arrays.steps[0] == 0
    start = find_start_causes(recorded_stats(arrays, row, at_start=True), network) if started else []
    blamed = any(cause.severity != "note" for cause in start)
    if row["outcome"] != "diverged":
        end = recorded_stats(arrays, row, at_start=False)
        updates = largest_updates(arrays)
        return [*start, *find_training_causes(losses, updates, end, network, started=started and not blamed)]
    if DIVERGENCE_CAUSES.intersection(cause.name for cause in start):
        return start
    in_order = arrays is not _NO_LAYERS and not blamed
    head = "At step 0 signal and gradient are in order, so the" if in_order else "Nothing explodes at step 0: the"
    text = f"{head} rate{rate_text(losses)} is too large for this start."
    return [*start, Finding("fault", "rate_too_large", (), text, slower_remedy(losses))]


def number_of(row: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return a number of a row; the default where it is missing or no number."""
    value = row.get(key)
    return value if isinstance(value, (int, float, np.number)) and value == value else default


def network_of(row: Mapping[str, Any]) -> NetworkInfo:
    """Return what the rules need to know of a network, from a row of the frame of runs."""
    depth, limit = number_of(row, "depth"), number_of(row, "trainable_depth")
    return NetworkInfo(
        act=value_text(row.get("act")),
        scheme=value_text(row.get("init")),
        model=value_text(row.get("model")),
        norm=value_text(row.get("model.norm")) or "none",
        gain=value_text(row.get("init.gain")) or "paper",
        depth=None if depth is None else int(depth),
        trainable_depth=None if limit is None else float(limit),
    )


def recorded_stats(arrays: LayerArrays, row: Mapping[str, Any], *, at_start: bool) -> list[LayerStats]:
    """Return what was measured in each layer at the first recorded step, or the last values of each statistic."""
    names = (*START_STATS, *UNIT_STATS) if at_start else (*UNIT_STATS, "q", "mean", "std")
    columns = {name: arrays.values_of(name)[0] if at_start else last_recorded(arrays, name) for name in names}
    width = int(number_of(row, "width", 0))
    readout = len(arrays.layers) - 1
    return [
        LayerStats(
            layer,
            {name: float(values[place]) for name, values in columns.items() if not np.isnan(values[place])},
            units=width if place < readout else 0,
        )
        for place, layer in enumerate(arrays.layers)
    ]


def largest_updates(arrays: LayerArrays) -> list[LayerStats]:
    """Return each layer with its largest recorded ‖ΔW‖/‖W‖; layers without one are left out."""
    values = arrays.values_of("update_ratio")
    largest = np.where(np.isfinite(values), values, -1.0).max(axis=0, initial=-1.0)
    return [LayerStats(n, {"update_ratio": float(v)}) for n, v in zip(arrays.layers, largest, strict=True) if v >= 0]


def losses_of(row: Mapping[str, Any], metrics: pd.DataFrame | None) -> LoggedLosses:
    """Return the training losses that a run logged."""
    rate = float(number_of(row, "rate", np.nan))
    if metrics is None:
        return LoggedLosses(rate=rate)
    losses, accuracies = (metrics[name].dropna().astype(float).tolist() for name in ("loss", "accuracy"))
    return LoggedLosses(losses, accuracies, rate)


def last_recorded(arrays: LayerArrays, stat: str) -> np.ndarray:
    """Return a statistic over the layers at the last step that has it."""
    values = arrays.values_of(stat)
    places = np.flatnonzero(np.isfinite(values).any(axis=1))
    return values[places[-1]] if len(places) else np.full(len(arrays.indices), np.nan)
