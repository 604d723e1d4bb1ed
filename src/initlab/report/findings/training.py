"""Causes that training shows: a rate that is too large or too small, too few steps, units that die on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from initlab.report.findings import units
from initlab.report.findings.network import Network, Reading
from initlab.report.findings.record import Verdict, listed

FEWEST = 8
"""Logged losses that a trend takes."""

CERTAIN, LIKELY = 3.0, 2.0
"""Standard errors by which a mean must lie above another, alone and beside a second sign of the same."""

HIGHER = 1.5
"""Factor on the first losses above which a loss has risen."""

MOVES, RESTS = 0.3, 1e-6
"""‖ΔW‖/‖W‖ of one update from which on it is no small step, and below which weights hardly move."""


@dataclass(frozen=True)
class Losses:
    """Losses and accuracies of a run as they were logged; `rate`: the learning rate, NaN where unknown."""

    values: Sequence[float] = ()
    accuracies: Sequence[float] = ()
    rate: float = math.nan


def quarters(values: Sequence[float]) -> list[np.ndarray]:
    """Split what is finite into four runs of equal length; [] where there is too little.

    >>> [len(part) for part in quarters(range(10))], quarters([1.0, 2.0])
    ([3, 3, 2, 2], [])
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return [] if len(known) < FEWEST else np.array_split(known, 4)


def rises(before: np.ndarray, after: np.ndarray, errors: float = CERTAIN) -> bool:
    """Whether one mean lies above another by `errors` standard errors."""
    error = math.sqrt(before.var() / len(before) + after.var() / len(after))
    return bool(after.mean() - before.mean() > errors * error + 1e-4 * abs(before.mean()))


def of_training(
    losses: Losses, updates: Sequence[Reading], end: Sequence[Reading], network: Network, *, started: bool
) -> list[Verdict]:
    """Say what went wrong after step 0.

    Arguments: `updates`: layers with their largest `update_ratio`; `end`: the last rows, with what units do; `started`:
    step 0 was in order, so that a fault of the end comes from the updates.

    >>> falling = Losses([2.3 - 0.02 * k for k in range(40)], rate=0.01)
    >>> [v.name for v in of_training(falling, [], [], Network(), started=True)]
    ['too_few_steps']
    """
    killed = (
        [*units.dead(end, network, " at the end"), *units.saturated(end, network, " at the end")] if started else []
    )
    fast = rate_too_large(losses, updates, bool(killed))
    if killed and fast:
        killed = [Verdict(v.severity, v.name, v.layers, f"{v.sentence} They were in order at step 0.") for v in killed]
    found = [*killed, *(fast if started else [])]
    if not found:
        found = too_few_steps(losses)
    if not found and started:
        found = rate_too_small(losses, updates)
    return found


def rate_too_large(losses: Losses, updates: Sequence[Reading], killed: bool = False) -> list[Verdict]:
    """Judge by the loss, which rises, or by updates that are large beside the weights while it does not fall."""
    values = np.asarray(losses.values, dtype=float)
    finite = values[np.isfinite(values)]
    moved = [one for one in updates if MOVES <= one.stats.get("update_ratio", 0) < math.inf]
    rate = shown(losses)
    if not len(finite):
        return []
    first, high, last = finite[: max(1, len(finite) // 20)].mean(), finite.max(), finite[-max(1, len(finite) // 4) :]
    if killed or high > HIGHER * first or (moved and last.mean() >= first):
        what = f"the loss rose from {first:.3g} to {high:.3g}" if high > HIGHER * first else "the loss did not fall"
        steps = ""
        if moved:
            most = max(moved, key=lambda one: one.stats["update_ratio"])
            steps = f", and one update moved {listed([most.layer])} by {most.stats['update_ratio']:.0%} of its weights"
        return [Verdict("fault", "rate_too_large", (), f"The rate{rate} is too large: {what}{steps}.", slower(losses))]
    return []


def too_few_steps(losses: Losses) -> list[Verdict]:
    """Judge whether it still learned in the last quarter: the loss fell, and it tells more apart than at the start."""
    loss, right = quarters(losses.values), quarters(losses.accuracies)
    if not loss or not rises(loss[3], loss[2], LIKELY if right else CERTAIN):
        return []
    if right and not rises(right[0], right[3]):
        return []
    text = (
        f"It was stopped while it learned, after too few steps: in the last quarter the loss still fell from "
        f"{loss[2].mean():.3g} to {loss[3].mean():.3g} (it began with {loss[0][0]:.3g})."
    )
    return [Verdict("fault", "too_few_steps", (), text, "more steps (train.steps or train.epochs)")]


def rate_too_small(losses: Losses, updates: Sequence[Reading]) -> list[Verdict]:
    """Judge weights that hardly move in any layer."""
    ratios = [one.stats["update_ratio"] for one in updates if "update_ratio" in one.stats]
    if not ratios or max(ratios) >= RESTS:
        return []
    most = max(ratios)
    text = f"The rate{shown(losses)} is too small: no update moved any layer by more than {most:.1e} of its weights."
    return [Verdict("fault", "rate_too_small", (), text, "a rate that is ten or a hundred times larger")]


def shown(losses: Losses) -> str:
    """The rate as part of a sentence; "" where it is unknown."""
    return f" {losses.rate:g}" if losses.rate == losses.rate else ""


def slower(losses: Losses) -> str:
    """How to move slower."""
    third = f" (optim.lr={losses.rate / 3:.2g})" if losses.rate == losses.rate else ""
    return f"a third of the rate{third}, optim.warmup or optim.clip_norm"
