"""Causes that training shows: a rate that is too large or too small, too few steps, units that die on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
"""‖ΔW‖/‖W‖ of one update from which on it is no small step, and below which weights hardly move."""


@dataclass(frozen=True)
class LoggedLosses:
    """Losses and accuracies of a run as they were logged; `rate`: the learning rate, NaN where unknown."""

    values: Sequence[float] = ()
    accuracies: Sequence[float] = ()
    rate: float = math.nan


def split_quarters(values: Sequence[float]) -> list[np.ndarray]:
    """Split what is finite into four runs of equal length; [] where there is too little.

    >>> [len(part) for part in split_quarters(range(10))], split_quarters([1.0, 2.0])
    ([3, 3, 2, 2], [])
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return [] if len(known) < MIN_LOSSES else np.array_split(known, 4)


def mean_rises(before: np.ndarray, after: np.ndarray, errors: float = CERTAIN) -> bool:
    """Whether one mean lies above another by `errors` standard errors."""
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
    """Say what went wrong after step 0.

    Arguments: `updates`: layers with their largest `update_ratio`; `end`: the last rows, with what units do; `started`:
    step 0 was in order, so that a fault of the end comes from the updates.

    >>> falling = LoggedLosses([2.3 - 0.02 * k for k in range(40)], rate=0.01)
    >>> [v.name for v in find_training_causes(falling, [], [], NetworkInfo(), started=True)]
    ['too_few_steps']
    """
    killed = (
        [
            *units.dead_unit_findings(end, network, " at the end"),
            *units.saturation_findings(end, network, " at the end"),
        ]
        if started
        else []
    )
    fast = large_rate_findings(losses, updates, bool(killed))
    if killed and fast:
        killed = [Finding(v.severity, v.name, v.layers, f"{v.sentence} They were in order at step 0.") for v in killed]
    found = [*killed, *(fast if started else [])]
    if not found:
        found = few_steps_findings(losses)
    if not found and started:
        found = small_rate_findings(losses, updates)
    return found


def large_rate_findings(losses: LoggedLosses, updates: Sequence[LayerStats], killed: bool = False) -> list[Finding]:
    """Judge by the loss, which rises, or by updates that are large beside the weights while it does not fall."""
    values = np.asarray(losses.values, dtype=float)
    finite = values[np.isfinite(values)]
    moved = [one for one in updates if LARGE_UPDATE <= one.stats.get("update_ratio", 0) < math.inf]
    rate = rate_text(losses)
    if not len(finite):
        return []
    first, high, last = finite[: max(1, len(finite) // 20)].mean(), finite.max(), finite[-max(1, len(finite) // 4) :]
    if killed or high > RISE_FACTOR * first or (moved and last.mean() >= first):
        what = (
            f"the loss rose from {first:.3g} to {high:.3g}" if high > RISE_FACTOR * first else "the loss did not fall"
        )
        steps = ""
        if moved:
            most = max(moved, key=lambda one: one.stats["update_ratio"])
            steps = (
                f", and one update moved {name_layers([most.layer])} by {most.stats['update_ratio']:.0%} of its weights"
            )
        return [
            Finding(
                "fault", "rate_too_large", (), f"The rate{rate} is too large: {what}{steps}.", slower_remedy(losses)
            )
        ]
    return []


def few_steps_findings(losses: LoggedLosses) -> list[Finding]:
    """Judge whether it still learned in the last quarter: the loss fell, and it tells more apart than at the start."""
    loss, right = split_quarters(losses.values), split_quarters(losses.accuracies)
    if not loss or not mean_rises(loss[3], loss[2], LIKELY if right else CERTAIN):
        return []
    if right and not mean_rises(right[0], right[3]):
        return []
    text = (
        f"It was stopped while it learned, after too few steps: in the last quarter the loss still fell from "
        f"{loss[2].mean():.3g} to {loss[3].mean():.3g} (it began with {loss[0][0]:.3g})."
    )
    return [Finding("fault", "too_few_steps", (), text, "more steps (train.steps or train.epochs)")]


def small_rate_findings(losses: LoggedLosses, updates: Sequence[LayerStats]) -> list[Finding]:
    """Judge weights that hardly move in any layer."""
    ratios = [one.stats["update_ratio"] for one in updates if "update_ratio" in one.stats]
    if not ratios or max(ratios) >= TINY_UPDATE:
        return []
    most = max(ratios)
    text = (
        f"The rate{rate_text(losses)} is too small: no update moved any layer by more than {most:.1e} of its weights."
    )
    return [Finding("fault", "rate_too_small", (), text, "a rate that is ten or a hundred times larger")]


def rate_text(losses: LoggedLosses) -> str:
    """The rate as part of a sentence; "" where it is unknown."""
    return f" {losses.rate:g}" if losses.rate == losses.rate else ""


def slower_remedy(losses: LoggedLosses) -> str:
    """How to move slower."""
    third = f" (optim.lr={losses.rate / 3:.2g})" if losses.rate == losses.rate else ""
    return f"a third of the rate{third}, optim.warmup or optim.clip_norm"
