"""Signal, gradient and correlation along layers in a row: which change is a fault, and how it is said.

Bounds hold for a run of layers each of which is fed by the one before it through nothing but an activation.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

from initlab.report.findings.network import LayerStats
from initlab.report.findings.record import Finding, format_factor, name_layers

MIN_CHAIN = 3
"""Hidden layers from which on a chain has a trend."""

WARNING_FACTOR, FAULT_FACTOR = 1e3, 1e6
"""Factors on a mean square, over the whole chain, from which on it is a warning and a fault."""

ALIKE_WARNING, ALIKE_FAULT = 1e-4, 1e-6
"""1 − c below which two inputs can hardly be told apart, and below which not at all."""

DEPTH_SCALES = 6
"""Depth scales ξ_c beyond which a network hardly trains; ξ_c is how many layers 1 − c takes to fall by a factor e.

Source: Schoenholz et al. 2017, *Deep Information Propagation*.
"""

FADED_FRACTION = 1e-2
"""Part of 1 − c that is left at the end, below which inputs come to look the same if it falls geometrically."""


def width_noise(chain: Sequence[LayerStats]) -> float:
    """Standard deviation that ln(mean square) gets from finite widths alone: √Σ 5/n, as for ReLU.

    Source: Hanin and Rolnick 2018, *How to start training*: E[R²] = ∏(1 + 5/n).
    """
    return math.sqrt(sum(5 / one.units for one in chain if one.units))


def log_change(chain: Sequence[LayerStats], stat: str, explained: Collection[str] = ()) -> float | None:
    """ln of last over first of a mean square, without the steps whose cause is known; None where it cannot be.

    >>> round(log_change([LayerStats("a", {"q": 1.0}), LayerStats("b", {"q": 100.0})], "q"), 3)
    4.605
    """
    total = 0.0
    for one, two in pairwise(chain):
        if two.layer in explained or one.layer in explained:
            continue
        a, b = mean_square_total(one, stat), mean_square_total(two, stat)
        if a is None or b is None or not (0 < a < math.inf and 0 < b < math.inf):
            return None
        total += math.log(b) - math.log(a)
    return total


def mean_square_total(one: LayerStats, stat: str) -> float | None:
    """A mean square; of gradients the sum over units and positions: a smaller map spreads it over fewer of them."""
    value = one.stats.get(stat)
    return value if value is None or stat == "q" else value * one.samples * max(one.units, 1)


def trend_severity(found: float | None, width: float) -> str | None:
    """Severity of a trend: beyond both a fixed factor and what finite width alone does."""
    if found is None or abs(found) < max(math.log(WARNING_FACTOR), 5 * width + width**2 / 2):
        return None
    return "fault" if abs(found) >= math.log(FAULT_FACTOR) else "warning"


def signal_findings(
    chain: Sequence[LayerStats], *, explained: Collection[str] = (), why: str = "", larger: str = "", smaller: str = ""
) -> list[Finding]:
    """Judge whether the signal dies or explodes on its way up; `larger`, `smaller`: the remedies."""
    found = log_change(chain, "q", explained)
    bad = trend_severity(found, width_noise(chain))
    if bad is None or found is None:
        return []
    first, last, steps = chain[0].layer, chain[-1].layer, len(chain) - 1
    grows = found > 0
    text = (
        f"The signal {'explodes' if grows else 'dies'}: its size changes by {math.exp(found / 2 / steps):.2g}× per "
        f"layer from {first} to {last}, {format_factor(math.exp(found / 2))} over {steps} layers.{why}"
    )
    name = "signal_explodes" if grows else "signal_dies"
    return [Finding(bad, name, (first, last), text, smaller if grows else larger)]


def gradient_findings(
    chain: Sequence[LayerStats],
    *,
    explained: Collection[str] = (),
    why: str = "",
    more: str = "",
    larger: str = "",
    smaller: str = "",
) -> list[Finding]:
    """Judge whether the gradient dies or explodes on its way down; `more` is said of one that dies."""
    found = log_change(chain, "grad_mean_square", explained)
    bad = trend_severity(found, width_noise(chain))
    if bad is None or found is None:
        return vanished_gradient_findings(chain, explained, larger)
    first, last, steps = chain[0].layer, chain[-1].layer, len(chain) - 1
    grows = found < 0  # larger at the first layer than at the last: it grows on its way down
    text = (
        f"The gradient {'explodes' if grows else 'dies'} on its way down: its length changes by "
        f"{math.exp(-found / 2 / steps):.2g}× per layer from {last} to {first}, "
        f"{format_factor(math.exp(-found / 2))} over {steps} layers.{why}{more}"
    )
    name = "gradient_explodes" if grows else "gradient_dies"
    return [Finding(bad, name, (first, last), text, smaller if grows else larger)]


def vanished_gradient_findings(chain: Sequence[LayerStats], explained: Collection[str], larger: str) -> list[Finding]:
    """Judge a gradient that is exactly 0, or below the precision, in the lower layers and not in the last one."""
    sizes = [one.stats.get("grad_mean_square") for one in chain]
    zero = [one.layer for one, value in zip(chain, sizes, strict=True) if value == 0]
    if not zero or len(zero) == len(chain) or set(zero) & set(explained) or not sizes[-1] or sizes[0] != 0:
        return []
    text = (
        f"The gradient dies on its way down: it is {math.sqrt(sizes[-1]):.1e} in {chain[-1].layer} and exactly 0 in "
        f"{name_layers(zero)}."
    )
    return [Finding("fault", "gradient_dies", (chain[0].layer, chain[-1].layer), text, larger)]


def correlation_findings(chain: Sequence[LayerStats], *, why: str = "", remedy: str = "") -> list[Finding]:
    """Judge whether all inputs come to look the same: 1 − c is nearly 0, or the depth exceeds 6 ξ_c as measured."""
    known = [(one.layer, one.stats["c"]) for one in chain if one.stats.get("c", math.nan) == one.stats.get("c")]
    if len(known) < MIN_CHAIN or len(known) < len(chain) or known[0][1] > 0.9:
        return []
    gaps = [1 - c for _, c in known]
    before, after, half = gaps[0], gaps[-1], len(gaps) // 2
    # ξ_c is measured over the second half; at criticality 1 − c falls there by 2 (tanh) or 4 (ReLU) at any depth.
    fades = after <= FADED_FRACTION * before and after <= math.exp(-DEPTH_SCALES * half / len(gaps)) * gaps[-1 - half]
    if after > ALIKE_WARNING and not fades:
        return []
    bound = max(ALIKE_WARNING, after)
    where = next(layer for (layer, _), gap in zip(known, gaps, strict=True) if gap <= bound)
    head, tail = (
        ("All inputs", "so the layers behind cannot tell them apart")
        if after <= ALIKE_WARNING
        else ("Different inputs", f"so that {max(after, 0) / before:.1g} of what sets them apart is left")
    )
    text = (
        f"{head} look the same from {name_layers([where])} on: the correlation of two different inputs rises from "
        f"{round(known[0][1], 2) + 0.0:.2f} to {known[-1][1]:.6f}, {tail}.{why}"
    )
    return [Finding("fault" if after <= ALIKE_FAULT else "warning", "inputs_alike", (where,), text, remedy)]
