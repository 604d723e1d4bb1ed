"""What went wrong in a run, in plain sentences: from its status and from what its layers measured.

The rules look at step 0 first: a network whose signal or gradient is lost before the first update has an
initialization to blame; one that starts in order and breaks later has its rate to blame.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from initlab.report.layers import Blocks
from initlab.report.runs import text
from initlab.rounding import rounded

LOST = 1e-6  # q at the last hidden layer, as a part of q at the first, below which inputs cannot be told apart
GROWN = 1e4
FADED = 1e-8  # mean square gradient at the first layer, as a part of that at the last
MOSTLY = 0.9


def diagnose(row: Mapping[str, Any], found: Blocks | None) -> str:
    """Return what is wrong with a run and what would mend it; empty for one that trained.

    Arguments: `row` of the frame of runs; `found`: its layer rows, None where there are none.

    >>> diagnose({"outcome": "skipped", "status": "skipped", "reason": "dirac has nothing to fill here"}, None)
    'Skipped: dirac has nothing to fill here.'
    """
    outcome = row["outcome"]
    if outcome in ("trained", "finished"):
        return ""
    if outcome == "diverged":
        return diverged(row, found)
    if outcome == "stuck":
        return stuck(row, found)
    why = text(row.get("reason"))
    if outcome == "failed":
        return f"An exception ended it, which is a bug and no result: {why or 'run.log has the traceback'}."
    return f"{outcome.capitalize()}: {why or 'no reason is recorded'}."


def diverged(row: Mapping[str, Any], found: Blocks | None) -> str:
    """Say where it stopped being finite, and whether the start or the rate is to blame."""
    step, layer = row.get("first_bad_step"), text(row.get("first_bad_layer"))
    where = f" at step {step:.0f}" if isinstance(step, (int, float)) and step == step else ""
    head = f"The loss stopped being finite{where}{f', first in {layer}' if layer else ''}."
    signal = profile(found, "q")
    if signal is None:
        return f"{head} No layer rows tell why; try a third of the rate."
    start, end, per_layer = signal
    if not np.isfinite(end) or end > GROWN * max(start, 1.0):
        return (
            f"{head} The signal explodes before any update: q grows by a factor {per_layer:.3g} per layer, from "
            f"{start:.3g} to {end:.3g}. The weights are too large for this activation: a smaller init.gain, or a "
            "scheme that keeps q."
        )
    gradient = profile(found, "grad_mean_square")
    # Where branches start at zero the last one's gradient is exactly zero: nothing has grown from there.
    if gradient is not None and gradient[2] > 0 and gradient[0] > GROWN * gradient[1]:
        return (
            f"{head} The signal is in order at step 0, but the gradient grows by a factor {1 / gradient[2]:.3g} per "
            "layer on its way back: a smaller init.gain, or optim.clip_norm."
        )
    rate = row.get("rate")
    shown = f" {rate:g}" if rate is not None and rate == rate else ""
    return (
        f"{head} At step 0 signal and gradient are in order (q {start:.3g} to {end:.3g}), so the rate{shown} is too "
        "large for this start: try a third of it, or optim.warmup."
    )


def stuck(row: Mapping[str, Any], found: Blocks | None) -> str:
    """Say what keeps it from learning, the first cause that its layers show."""
    accuracy = next((row[k] for k in ("val_accuracy", "test_accuracy") if row.get(k) == row.get(k) and k in row), None)
    head = "It never trained" + (f" (accuracy {rounded(100 * accuracy, 1)}%)." if accuracy is not None else ".")
    if found is None:
        return f"{head} No layer rows tell why."
    for cause in (no_gradient, lost_signal, units, faded_gradient, alike):
        if said := cause(found):
            return f"{head} {said}"
    return f"{head} Signal and gradient are in order at step 0: perhaps it needs more steps, or another rate."


def no_gradient(found: Blocks) -> str:
    """All weight gradients zero, or all but the readout's."""
    gradients = last(found, "grad_norm")
    good = np.isfinite(gradients)
    if not good.any() or (gradients[good][:-1] > 0).any() or good.sum() < 2:
        return ""
    if gradients[good][-1] > 0:
        return (
            "No gradient reaches any hidden layer: their weights cannot change. With φ(0) = 0, all-zero weights stay "
            "zero for ever; any scheme with random weights breaks the deadlock."
        )
    return "The gradient of every weight is exactly zero: nothing can change. Any scheme with random weights mends it."


def lost_signal(found: Blocks) -> str:
    """The signal vanishes or explodes on its way through the layers at step 0."""
    signal = profile(found, "q")
    if signal is None:
        return ""
    start, end, per_layer = signal
    if start == 0 or end == 0:
        return "The preactivations are zero: the network answers the same for every input."
    if end < LOST * start:
        return (
            f"The signal dies on its way: q shrinks by a factor {per_layer:.3g} per layer, from {start:.3g} to "
            f"{end:.3g}, so the readout cannot tell inputs apart. A larger init.gain (He for ReLU) keeps it."
        )
    if end > GROWN * start:
        return (
            f"The signal explodes: q grows by a factor {per_layer:.3g} per layer, from {start:.3g} to {end:.3g}. "
            "A smaller init.gain keeps it."
        )
    same = profile(found, "c")
    if same is not None and same[1] > 1 - 1e-4:
        return (
            f"All inputs look alike to the last layer (their correlation c reaches {same[1]:.6f}): the ordered phase. "
            "A larger init.gain, or fewer layers."
        )
    return ""


def units(found: Blocks) -> str:
    """Nearly all units of some layer are dead or saturated."""
    for stat, word, cure in (
        ("dead_fraction", "silent on every sample", "a smaller rate, leaky_relu, or a start with no bias"),
        ("saturated_fraction", "saturated", "a smaller init.gain, or inputs that are normalised"),
    ):
        for step, when in ((0, "at step 0"), (-1, "at the end")):
            values = found.of(stat)[step]
            worst = int(np.nanargmax(values)) if np.isfinite(values).any() else -1
            if worst >= 0 and values[worst] >= MOSTLY:
                return f"In {found.layers[worst]}, {values[worst]:.0%} of the units are {word} {when}: {cure}."
    return ""


def faded_gradient(found: Blocks) -> str:
    """The gradient vanishes on its way back."""
    gradient = profile(found, "grad_mean_square")
    if gradient is None or gradient[1] == 0 or gradient[0] >= FADED * gradient[1]:
        return ""
    return (
        f"The gradient fades on its way back: its mean square at the first layer is {gradient[0] / gradient[1]:.1g} of "
        "that at the last. The first layers hardly move; a scheme at criticality, or fewer layers."
    )


def alike(found: Blocks) -> str:
    """Units are copies of each other, so a layer has one direction."""
    copies, rank = last(found, "duplicate_units"), last(found, "effective_rank")
    if np.isfinite(rank).any() and np.nanmin(rank) < 1.5:
        return "The units of a layer stay copies of each other (effective rank 1): equal weights get equal gradients."
    if np.isfinite(copies).any() and np.nanmax(copies) > 1:
        return f"{np.nanmax(copies):.0f} units of a layer are copies of others: equal weights get equal gradients."
    return ""


def profile(found: Blocks | None, stat: str) -> tuple[float, float, float] | None:
    """Return (first, last, factor per layer) of a measured statistic over the hidden layers at step 0."""
    if found is None or not len(found.steps) or found.steps[0] != 0:
        return None
    values = found.of(stat)[0]
    values = values[:-1] if len(values) > 2 else values
    good = values[~np.isnan(values)]
    if len(good) < 2:
        return None
    start, end = float(good[0]), float(good[-1])
    with np.errstate(all="ignore"):
        ratio = np.divide(end, start)
        factor = float(np.power(np.abs(ratio), 1 / (len(good) - 1)))
    return start, end, factor


def last(found: Blocks, stat: str) -> np.ndarray:
    """Return a statistic over the layers at the last step that has it."""
    values = found.of(stat)
    has = np.flatnonzero(np.isfinite(values).any(axis=1))
    return values[has[-1]] if len(has) else np.full(len(found.indices), np.nan)
