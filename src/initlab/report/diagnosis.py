"""What went wrong in a run, in plain sentences: the causes that its own rows show, and what would mend each.

The rules are those of `initlab.report.findings`; here rows of a run are turned into what they read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.records import load, load_layers, load_metrics
from initlab.report.findings import (
    Finding,
    LayerStats,
    LoggedLosses,
    NetworkInfo,
    find_start_causes,
    find_training_causes,
)
from initlab.report.layers import LayerArrays, layer_arrays
from initlab.report.study import TRAINABLE_DEPTH, build_study, row_dicts, value_text
from initlab.system.numbers import format_rounded

START_STATS = ("q", "mean", "std", "c", "nonfinite", "weight_norm", "duplicate_units", "grad_mean_square")
ACCURACIES = ("val_accuracy", "test_accuracy", "accuracy")
UNIT_STATS = ("saturated_fraction", "dead_fraction")


def explain_run(row: Mapping[str, Any], found: LayerArrays | None, losses: LoggedLosses | None = None) -> str:
    """Return what is wrong with a run and what would mend it; empty for one that trained.

    Arguments: `row` of the frame of runs; `found`: its layer rows, None where there are none; `losses` as logged.

    >>> explain_run({"outcome": "skipped", "status": "skipped", "reason": "dirac has nothing to fill here"}, None)
    'Skipped: dirac has nothing to fill here.'
    """
    outcome = row["outcome"]
    if outcome in ("trained", "finished"):
        return ""
    if outcome in ("diverged", "stuck"):
        return join_sentences(outcome_sentence(row), find_causes(row, found, losses), found is not None)
    if outcome == "learning":
        shown = find_causes(row, found, losses)
        told = join_sentences(outcome_sentence(row), shown, True) if shown else outcome_sentence(row)
        return told if "more steps" in told else f"{told} Its loss still fell at the end: more train.steps."
    why = value_text(row.get("reason"))
    if outcome == "failed":
        return f"An exception ended it, which is a bug and no result: {why or 'run.log has the traceback'}."
    return f"{outcome.capitalize()}: {why or 'no reason is recorded'}."


def explain_directory(path: Path) -> str:
    """Return what `explain_run` says of the run in a directory, read from its tables."""
    runs = build_study(load([path])).runs
    if runs.empty:
        return ""
    layers, metrics = load_layers([path], keys=()), load_metrics([path], keys=())
    row = row_dicts(runs)[0]
    return explain_run(row, layer_arrays(layers) if len(layers) else None, losses_of(row, metrics))


def outcome_sentence(row: Mapping[str, Any]) -> str:
    """Say how the run ended."""
    if row["outcome"] == "diverged":
        step, layer = row.get("first_bad_step"), value_text(row.get("first_bad_layer"))
        where = f" at step {step:.0f}" if isinstance(step, (int, float)) and step == step else ""
        return f"The loss stopped being finite{where}{f', first in {layer}' if layer else ''}."
    accuracy = next((row[k] for k in ACCURACIES if row.get(k) is not None and row[k] == row[k]), None)
    begin = "It has not trained yet" if row["outcome"] == "learning" else "It did not train"
    return begin + (f" (accuracy {format_rounded(100 * accuracy, 1)}%)." if accuracy is not None else ".")


def join_sentences(begin: str, found: Sequence[Finding], rows: bool) -> str:
    """Join the causes and their remedies, each remedy once."""
    if not found:
        return (
            f"{begin} Nothing is wrong at step 0, and its losses show no trend: more steps or another rate may help."
            if rows
            else f"{begin} No layer rows tell why."
        )
    remedies = list(dict.fromkeys(verdict.remedy for verdict in found if verdict.remedy))
    end = f" What would mend it: {'; '.join(remedies)}." if remedies else ""
    return " ".join([begin, *(verdict.sentence for verdict in found)]) + end


def find_causes(row: Mapping[str, Any], found: LayerArrays | None, losses: LoggedLosses | None = None) -> list[Finding]:
    """Return the causes that the rows of a run show: those of step 0 in the order of its layers, then training's."""
    network = network_of(row)
    start = find_start_causes(layer_readings(found, 0, row), network) if has_step_zero(found) else []
    logged = losses if losses is not None else LoggedLosses(rate=rate_of(row))
    blamed = [verdict for verdict in start if verdict.severity != "note"]
    if row["outcome"] == "diverged" and not any(verdict.name in DIVERGENCE_CAUSES for verdict in start):
        return [*start, rate_finding(row, logged, in_order=bool(found) and not blamed)]
    if row["outcome"] == "diverged":
        return start
    end = [] if found is None else layer_readings(found, -1, row)
    return [
        *start,
        *find_training_causes(
            logged, largest_updates(found), end, network, started=has_step_zero(found) and not blamed
        ),
    ]


DIVERGENCE_CAUSES = ("overflow", "signal_explodes", "gradient_explodes", "stream_explodes")
"""Causes at step 0 of a loss that stops being finite."""


def rate_finding(row: Mapping[str, Any], losses: LoggedLosses, in_order: bool) -> Finding:
    """Blame the rate where nothing at step 0 explodes."""
    rate = f" {losses.rate:g}" if losses.rate == losses.rate else ""
    head = "At step 0 signal and gradient are in order, so the" if in_order else "Nothing explodes at step 0: the"
    third = f" (optim.lr={losses.rate / 3:.2g})" if losses.rate == losses.rate else ""
    return Finding(
        "fault",
        "rate_too_large",
        (),
        f"{head} rate{rate} is too large for this start.",
        f"a third of the rate{third}, optim.warmup or optim.clip_norm",
    )


def network_of(row: Mapping[str, Any]) -> NetworkInfo:
    """Read what rules know of a network from a row of the frame of runs."""
    depth, limit = row.get("depth"), row.get(TRAINABLE_DEPTH)
    gain = row.get("init.gain")
    return NetworkInfo(
        act=value_text(row.get("act")),
        scheme=value_text(row.get("init")),
        model=value_text(row.get("model")),
        norm=value_text(row.get("model.norm")) or "none",
        gain=value_text(gain) or "paper",
        depth=int(depth) if isinstance(depth, (int, float, np.number)) and depth == depth else None,
        trainable_depth=float(limit) if isinstance(limit, (int, float, np.number)) and limit == limit else None,
    )


def has_step_zero(found: LayerArrays | None) -> bool:
    """Whether rows of step 0 are there."""
    return found is not None and len(found.steps) > 0 and found.steps[0] == 0


def layer_readings(found: LayerArrays | None, position: int, row: Mapping[str, Any]) -> list[LayerStats]:
    """Return what each layer measured at one of its recorded steps (-1: the last one that each statistic has)."""
    if found is None:
        return []
    names = (*START_STATS, *UNIT_STATS) if position == 0 else (*UNIT_STATS, "q", "mean", "std")
    columns = {name: found.of(name)[0] if position == 0 else last_recorded(found, name) for name in names}
    width = row.get("width")
    hidden = int(width) if isinstance(width, (int, float, np.number)) and width == width else 0
    made = []
    for place, layer in enumerate(found.layers):
        stats = {name: float(values[place]) for name, values in columns.items() if not np.isnan(values[place])}
        made.append(LayerStats(layer, stats, hidden if place < len(found.layers) - 1 else 0))
    return made


def largest_updates(found: LayerArrays | None) -> list[LayerStats]:
    """Return each layer with the largest ‖ΔW‖/‖W‖ that was recorded of it."""
    if found is None:
        return []
    ratios = np.where(np.isfinite(values := found.of("update_ratio")), values, -1.0)
    most = ratios.max(axis=0) if len(ratios) else np.full(len(found.layers), -1.0)
    return [LayerStats(n, {"update_ratio": float(v)}) for n, v in zip(found.layers, most, strict=True) if v >= 0]


def losses_of(row: Mapping[str, Any], metrics: pd.DataFrame | None) -> LoggedLosses:
    """Return the training losses that a run logged."""
    if metrics is None or "loss" not in metrics:
        return LoggedLosses(rate=rate_of(row))
    some = metrics[metrics["loss"].notna()]
    right = metrics["accuracy"].dropna() if "accuracy" in metrics else ()
    return LoggedLosses(some["loss"].astype(float).tolist(), [float(value) for value in right], rate_of(row))


def rate_of(row: Mapping[str, Any]) -> float:
    """Return the learning rate of a run, NaN where it is unknown."""
    rate = row.get("rate")
    return float(rate) if isinstance(rate, (int, float, np.number)) else float("nan")


def last_recorded(found: LayerArrays, stat: str) -> np.ndarray:
    """Return a statistic over the layers at the last step that has it."""
    values = found.of(stat)
    has = np.flatnonzero(np.isfinite(values).any(axis=1))
    return values[has[-1]] if len(has) else np.full(len(found.indices), np.nan)
