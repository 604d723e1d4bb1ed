"""Remedies for a wrong scale, by theory: the gain that keeps signal and gradient under an activation."""

import math

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.theory import Critical, default_critical, gains

MAX_SIGMA_W = 3.0
"""A critical σ_w beyond this is not advised: saturation and noise come first."""


def trainable_gain(act: Activation) -> tuple[float, float] | None:
    """Return the (σ_w, σ_b) that keeps gradients under an activation, or None where theory has no answer.

    The critical point where there is a usable one, else the gain that keeps second moments. A layer's σ_w is
    std(W)·√fan_in.

    >>> from initlab.activations import ACTIVATIONS
    >>> tuple(round(x, 3) for x in trainable_gain(ACTIVATIONS["relu"])), trainable_gain(ACTIVATIONS["sigmoid"])
    ((1.414, 0.0), None)
    """
    if (point := usual_critical_point(act)) is not None:
        return (point.sigma_w, point.sigma_b) if point.sigma_w <= MAX_SIGMA_W else None
    try:
        forward = gains(act).forward
    except UserError:
        return None
    return (forward, 0.0) if math.isfinite(forward) else None


def usual_critical_point(act: Activation) -> Critical | None:
    """Return the critical point that `init=critical` uses, or None where there is none (softplus)."""
    try:
        return default_critical(act)
    except UserError:
        return None


def init_remedy(act: Activation | None) -> str:
    """Return the call that initializes a network for an activation, in words; "" where the activation is unknown.

    >>> from initlab.activations import ACTIVATIONS
    >>> init_remedy(ACTIVATIONS["relu"])
    'initialize with he_normal: initlab.initialize_(model, "he_normal", act="relu")'
    """
    if act is None:
        return ""
    slope = act.leaky_slope
    argument = f'act=("{act.name}", {{"negative_slope": {slope:g}}})' if slope else f'act="{act.name}"'
    if act.rectifier:
        return f'initialize with he_normal: initlab.initialize_(model, "he_normal", {argument})'
    gain, point = trainable_gain(act), usual_critical_point(act)
    call = f'initlab.initialize_(model, "critical", {argument})'
    if gain is None and point is not None:
        return (
            "use tanh or relu, or fewer layers; else initialize with critical, weights of std "
            f"{point.sigma_w:.3g}/√fan_in, under which many units saturate: {call}"
        )
    if gain is None:
        return f"{act.name} has no gain that keeps gradients over many layers: use tanh or relu, or fewer layers"
    if point is None:
        return f"initialize with autoinit's gain: weights of std {gain[0]:.3g}/√fan_in, and no biases"
    bias = f" and biases of std {gain[1]:.3g}" if gain[1] else ""
    return f"initialize with critical, weights of std {gain[0]:.3g}/√fan_in{bias}: {call}"


def needed_std(act: Activation | None) -> str:
    """Return the std of weights that an activation needs, as part of a sentence; "" where theory has no answer.

    >>> from initlab.activations import ACTIVATIONS
    >>> needed_std(ACTIVATIONS["relu"])
    'relu needs 1.41/√fan_in'
    """
    gain = None if act is None else trainable_gain(act)
    if act is None or gain is None:
        return ""
    bias = f" and biases of std {gain[1]:.2g}" if gain[1] else ""
    return f"{act.name} needs {gain[0]:.3g}/√fan_in{bias}"
