"""Signal, gradient and correlation along layers in a row: which change is a fault, and its sentence.

Bounds hold for layers each of which is fed by the one before it through an activation alone.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from initlab.report.findings.network import LayerStats
from initlab.report.findings.record import Finding, format_factor, name_layers

MIN_CHAIN = 3
"""Hidden layers that a trend takes."""

WARNING_FACTOR, FAULT_FACTOR = 1e3, 1e6
"""Factors on a mean square over the whole chain that are a warning and a fault."""

ALIKE_WARNING, ALIKE_FAULT = 1e-4, 1e-6
"""1 − c below which two inputs can hardly be told apart (warning), or not at all (fault)."""

DEPTH_SCALES = 6
"""Depth scales ξ_c beyond which a network hardly trains; 1 − c falls by a factor e over ξ_c layers.

Source: Schoenholz et al. 2017, *Deep Information Propagation*.
"""

FADED_FRACTION = 1e-2
"""Ratio of the last to the first 1 − c below which a geometric fall is a warning."""


def width_noise(chain: Sequence[LayerStats]) -> float:
    """Return the standard deviation that finite widths alone give to ln(mean square): √Σ 5/n, as for ReLU.

    Source: Hanin and Rolnick 2018, *How to start training*: E[R²] = ∏(1 + 5/n).
    """
    return math.sqrt(sum(5 / layer.units for layer in chain if layer.units))


def log_change(chain: Sequence[LayerStats], stat: str, explained: Collection[str] = ()) -> float | None:
    """Return ln of last over first of a mean square, without steps whose cause is known; None where it is undefined.

    >>> round(log_change([LayerStats("a", {"q": 1.0}), LayerStats("b", {"q": 100.0})], "q"), 3)
    4.605
    """
    total = 0.0
    for first, second in pairwise(chain):
        if not {first.layer, second.layer}.intersection(explained):
            before, after = mean_square_total(first, stat), mean_square_total(second, stat)
            if not (0 < before < math.inf and 0 < after < math.inf):
                return None
            total += math.log(after) - math.log(before)
    return total


def mean_square_total(layer: LayerStats, stat: str) -> float:
    """Return a mean square, of gradients summed over units and positions; NaN where it is unknown.

    A smaller map has the same gradient on fewer positions.
    """
    value = layer.stats.get(stat, math.nan)
    return value if stat == "q" else value * layer.samples * max(layer.units, 1)


def trend_severity(change: float | None, noise: float) -> str | None:
    """Return the severity of a log change; None within a fixed factor, or what finite width alone does."""
    if change is None or abs(change) < max(math.log(WARNING_FACTOR), 5 * noise + noise**2 / 2):
        return None
    return "fault" if abs(change) >= math.log(FAULT_FACTOR) else "warning"


def signal_findings(
    chain: Sequence[LayerStats], *, explained: Collection[str] = (), why: str = "", larger: str = "", smaller: str = ""
) -> list[Finding]:
    """Judge whether the signal dies or explodes from layer to layer.

    Args:
        chain: the layers in their order.
        explained: layers whose change has a known cause.
        why: appended to the sentence.
        larger: remedy for a signal that dies.
        smaller: remedy for a signal that explodes.
    """
    change = log_change(chain, "q", explained)
    severity = trend_severity(change, width_noise(chain))
    if severity is None or change is None:
        return []
    first, last, steps = chain[0].layer, chain[-1].layer, len(chain) - 1
    verb = "explodes" if change > 0 else "dies"
    text = (
        f"The signal {verb}: its size changes by {math.exp(change / 2 / steps):.2g}× per layer from {first} to {last}, "
        f"{format_factor(math.exp(change / 2))} over {steps} layers.{why}"
    )
    return [Finding(severity, f"signal_{verb}", (first, last), text, smaller if change > 0 else larger)]


def gradient_findings(
    chain: Sequence[LayerStats],
    *,
    explained: Collection[str] = (),
    why: str = "",
    more: str = "",
    larger: str = "",
    smaller: str = "",
) -> list[Finding]:
    """Judge whether the gradient dies or explodes from the last layer to the first.

    Args:
        chain: the layers in their order.
        explained: layers whose change has a known cause.
        why: appended to the sentence.
        more: appended after that.
        larger: remedy for a gradient that dies.
        smaller: remedy for a gradient that explodes.
    """
    change = log_change(chain, "grad_mean_square", explained)
    severity = trend_severity(change, width_noise(chain))
    if severity is None or change is None:
        return vanished_gradient_findings(chain, explained, larger)
    first, last, steps = chain[0].layer, chain[-1].layer, len(chain) - 1
    verb = "explodes" if change < 0 else "dies"
    text = (
        f"The gradient {verb} on its way down: its length changes by {math.exp(-change / 2 / steps):.2g}× per layer "
        f"from {last} to {first}, {format_factor(math.exp(-change / 2))} over {steps} layers.{why}{more}"
    )
    return [Finding(severity, f"gradient_{verb}", (first, last), text, smaller if change < 0 else larger)]


def vanished_gradient_findings(chain: Sequence[LayerStats], explained: Collection[str], larger: str) -> list[Finding]:
    """Judge a gradient that is exactly 0 in the first layers and not in the last one."""
    sizes = [layer.stats.get("grad_mean_square") for layer in chain]
    zero = [layer.layer for layer, size in zip(chain, sizes, strict=True) if size == 0]
    if not sizes or sizes[0] != 0 or not sizes[-1] or set(zero) & set(explained):
        return []
    first, last = chain[0].layer, chain[-1].layer
    text = f"it is {math.sqrt(sizes[-1]):.1e} in {last} and exactly 0 in {name_layers(zero)}."
    return [Finding("fault", "gradient_dies", (first, last), f"The gradient dies on its way down: {text}", larger)]


def correlation_findings(chain: Sequence[LayerStats], *, why: str = "", remedy: str = "") -> list[Finding]:
    """Judge whether all inputs come to look the same: 1 − c is nearly 0, or the depth exceeds 6 ξ_c as measured.

    Args:
        chain: the layers in their order.
        why: appended to the sentence.
        remedy: of the finding.
    """
    correlations = [layer.stats.get("c", math.nan) for layer in chain]
    if len(chain) < MIN_CHAIN or any(map(math.isnan, correlations)) or correlations[0] > 0.9:
        return []
    gaps = [1 - c for c in correlations]
    before, after, half = gaps[0], gaps[-1], len(gaps) // 2
    # ξ_c is measured over the second half; at criticality 1 − c falls there by 2 (tanh) or 4 (ReLU) at any depth.
    fades = after <= FADED_FRACTION * before and after <= math.exp(-DEPTH_SCALES * half / len(gaps)) * gaps[-1 - half]
    if after > ALIKE_WARNING and not fades:
        return []
    where = next(layer.layer for layer, gap in zip(chain, gaps, strict=True) if gap <= max(ALIKE_WARNING, after))
    head, tail = "All inputs", "so the layers behind cannot tell them apart"
    if after > ALIKE_WARNING:
        head, tail = "Different inputs", f"so that {after / before:.1g} of what sets them apart is left"
    text = (
        f"{head} look the same from {name_layers([where])} on: the correlation of two different inputs rises from "
        f"{round(correlations[0], 2) + 0.0:.2f} to {correlations[-1]:.6f}, {tail}.{why}"
    )
    return [Finding("fault" if after <= ALIKE_FAULT else "warning", "inputs_alike", (where,), text, remedy)]
