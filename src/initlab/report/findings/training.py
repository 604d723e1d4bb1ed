"""Causes that training shows: a rate that is too large or too small, too few steps, units that die during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from initlab.report.findings import units
from initlab.report.findings.network import LayerStats, NetworkInfo
from initlab.report.findings.record import Finding, name_layers

MIN_LOSSES = 8
"""Logged losses that a trend takes."""

CERTAIN, LIKELY = 3.0, 2.0
"""Standard errors by which a mean must lie above another, alone and beside a second sign of the same."""

RISE_FACTOR = 1.5
"""Factor on the first losses above which a loss has risen."""

LARGE_UPDATE, TINY_UPDATE = 0.3, 1e-6
"""‖ΔW‖/‖W‖ of one update: from the first on it is large, below the second weights hardly move."""


@dataclass(frozen=True)
class LoggedLosses:
    """What a run logged.

    Attributes:
        values: training losses.
        accuracies: training accuracies.
        rate: learning rate, NaN where unknown.
    """

    values: Sequence[float] = ()
    accuracies: Sequence[float] = ()
    rate: float = math.nan


def split_quarters(values: Sequence[float]) -> list[np.ndarray]:
    """Split the finite values into four parts of equal length; [] for less than 8.

    >>> [len(part) for part in split_quarters(range(10))], split_quarters([1.0, 2.0])
    ([3, 3, 2, 2], [])
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return [] if len(finite) < MIN_LOSSES else np.array_split(finite, 4)


def mean_rises(before: np.ndarray, after: np.ndarray, errors: float = CERTAIN) -> bool:
    """Return whether the second mean lies above the first one by `errors` standard errors."""
    error = math.sqrt(before.var() / len(before) + after.var() / len(after))
    return bool(after.mean() - before.mean() > errors * error + 1e-4 * abs(before.mean()))


def find_training_causes(
    losses: LoggedLosses,
    updates: Sequence[LayerStats],
    end: Sequence[LayerStats],
    network: NetworkInfo,
    *,
    started: bool,
) -> list[Finding]:
    """Return what went wrong after step 0.

    Args:
        losses: as logged.
        updates: layers with their largest `update_ratio`.
        end: statistics of the units at the last step.
        network: what else is known of it.
        started: whether step 0 was in order, so that a fault of the end comes from the updates.

    >>> falling = LoggedLosses([2.3 - 0.02 * k for k in range(40)], rate=0.01)
    >>> [cause.name for cause in find_training_causes(falling, [], [], NetworkInfo(), started=True)]
    ['too_few_steps']
    """
    if not started:
        return few_steps_findings(losses)
    when = " at the end"
    killed = [*units.dead_unit_findings(end, network, when), *units.saturation_findings(end, network, when)]
    too_fast = large_rate_findings(losses, updates, bool(killed))
    if too_fast:
        in_order = "They were in order at step 0."
        killed = [replace(cause, sentence=f"{cause.sentence} {in_order}", remedy="") for cause in killed]
    return [*killed, *too_fast] or few_steps_findings(losses) or small_rate_findings(losses, updates)


def large_rate_findings(losses: LoggedLosses, updates: Sequence[LayerStats], killed: bool = False) -> list[Finding]:
    """Judge whether the loss rose, or did not fall although updates were large; `killed`: units died."""
    values = np.asarray(losses.values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    first, highest = values[: max(1, len(values) // 20)].mean(), values.max()
    last = values[-max(1, len(values) // 4) :].mean()
    large = [layer for layer in updates if LARGE_UPDATE <= layer.stats.get("update_ratio", 0) < math.inf]
    rose = highest > RISE_FACTOR * first
    if not (killed or rose or (large and last >= first)):
        return []
    what = f"the loss rose from {first:.3g} to {highest:.3g}" if rose else "the loss did not fall"
    if large:
        largest = max(large, key=lambda layer: layer.stats["update_ratio"])
        ratio = largest.stats["update_ratio"]
        what += f", and one update moved {name_layers([largest.layer])} by {ratio:.0%} of its weights"
    text = f"The rate{rate_text(losses)} is too large: {what}."
    return [Finding("fault", "rate_too_large", (), text, slower_remedy(losses))]


def few_steps_findings(losses: LoggedLosses) -> list[Finding]:
    """Judge whether it still learned in the last quarter: the loss fell, and accuracy is higher than at the start."""
    loss, accuracy = split_quarters(losses.values), split_quarters(losses.accuracies)
    if not loss or not mean_rises(loss[3], loss[2], LIKELY if accuracy else CERTAIN):
        return []
    if accuracy and not mean_rises(accuracy[0], accuracy[3]):
        return []
    text = (
        f"It was stopped while it learned, after too few steps: in the last quarter the loss still fell from "
        f"{loss[2].mean():.3g} to {loss[3].mean():.3g} (it began with {loss[0][0]:.3g})."
    )
    return [Finding("fault", "too_few_steps", (), text, "more steps (train.steps or train.epochs)")]


def small_rate_findings(losses: LoggedLosses, updates: Sequence[LayerStats]) -> list[Finding]:
    """Judge whether weights hardly moved in any layer."""
    most = max((layer.stats["update_ratio"] for layer in updates if "update_ratio" in layer.stats), default=math.inf)
    if most >= TINY_UPDATE:
        return []
    rate = rate_text(losses)
    text = f"The rate{rate} is too small: no update moved any layer by more than {most:.1e} of its weights."
    return [Finding("fault", "rate_too_small", (), text, "a rate that is ten or a hundred times larger")]


def rate_text(losses: LoggedLosses) -> str:
    """Return the rate as part of a sentence; "" where it is unknown."""
    return f" {losses.rate:g}" if losses.rate == losses.rate else ""


def slower_remedy(losses: LoggedLosses) -> str:
    """Return the remedy for updates that are too large."""
    third = f" (optim.lr={losses.rate / 3:.2g})" if losses.rate == losses.rate else ""
    return f"a third of the rate{third}, optim.warmup or optim.clip_norm"
