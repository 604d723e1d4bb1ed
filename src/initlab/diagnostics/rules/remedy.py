"""What would mend a scale, by theory: the gain that keeps signal and gradient, for the activation that is there."""

import math

from initlab.activations import Activation, slope
from initlab.errors import UserError
from initlab.theory import Critical, default_critical, gains

FAR = 3.0
"""A critical σ_w beyond this is no advice: saturation and noise come first."""

RECTIFIERS = ("relu", "leaky_relu", "prelu")


def good_gain(act: Activation) -> tuple[float, float] | None:
    """Return the (σ_w, σ_b) that keeps gradients alive under an activation, or None where theory has no answer.

    The critical point where there is a usable one, else the gain that keeps second moments. A layer's σ_w is
    std(W)·√fan_in.

    >>> from initlab.activations import ACTIVATIONS
    >>> tuple(round(x, 3) for x in good_gain(ACTIVATIONS["relu"])), good_gain(ACTIVATIONS["sigmoid"])
    ((1.414, 0.0), None)
    """
    point = critical_at(act)
    if point is not None:
        return (point.sigma_w, point.sigma_b) if point.sigma_w <= FAR else None
    try:
        forward = gains(act).forward
    except UserError:
        return None
    return (forward, 0.0) if math.isfinite(forward) else None


def critical_at(act: Activation) -> Critical | None:
    """Return the critical point that `init=critical` uses, or None where there is none (softplus)."""
    try:
        return default_critical(act)
    except UserError:
        return None


def remedy_for(act: Activation | None) -> str:
    """Say which call initializes a network for an activation; "" where theory has no answer.

    >>> from initlab.activations import ACTIVATIONS
    >>> remedy_for(ACTIVATIONS["relu"])
    'initialize with he_normal: initlab.initialize_(model, "he_normal", act="relu")'
    """
    if act is None:
        return ""
    if act.name in RECTIFIERS:
        return f'initialize with he_normal: initlab.initialize_(model, "he_normal", {_named(act)})'
    found, point = good_gain(act), critical_at(act)
    if found is None and point is not None:
        return (
            "use tanh or relu, or fewer layers; else initialize with critical, weights of std "
            f"{point.sigma_w:.3g}/√fan_in, under which many units saturate: "
            f'initlab.initialize_(model, "critical", {_named(act)})'
        )
    if found is None:
        return f"{act.name} has no gain that keeps gradients over many layers: use tanh or relu, or fewer layers"
    if critical_at(act) is None:
        return f"initialize with autoinit's gain: weights of std {found[0]:.3g}/√fan_in, and no biases"
    bias = f" and biases of std {found[1]:.3g}" if found[1] else ""
    call = f'initlab.initialize_(model, "critical", {_named(act)})'
    return f"initialize with critical, weights of std {found[0]:.3g}/√fan_in{bias}: {call}"


def _named(act: Activation) -> str:
    if slope(act):
        return f'act=("{act.name}", {{"negative_slope": {slope(act):g}}})'
    return f'act="{act.name}"'


def needed(act: Activation | None) -> str:
    """Say the std of weights that an activation needs, as part of a sentence; "" where theory has no answer.

    >>> from initlab.activations import ACTIVATIONS
    >>> needed(ACTIVATIONS["relu"])
    'relu needs 1.41/√fan_in'
    """
    found = good_gain(act) if act is not None else None
    if act is None or found is None:
        return ""
    bias = f" and biases of std {found[1]:.2g}" if found[1] else ""
    return f"{act.name} needs {found[0]:.3g}/√fan_in{bias}"
