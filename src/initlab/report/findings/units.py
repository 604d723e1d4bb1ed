"""Weights and units of single layers: zero, equal, not finite, dead, saturated."""

import math
from collections.abc import Sequence

from initlab.report.findings.network import NONZERO_AT_ZERO, PATTERN_SCHEMES, USUAL_SATURATION, LayerStats, NetworkInfo
from initlab.report.findings.record import Finding, capitalize_first, format_factor, name_layers
from initlab.report.findings.trends import log_change

DEAD_BOUND = 0.8
"""Fraction of silent units that no healthy ReLU layer reaches: with all inputs alike it tends to a half."""

SATURATED_BOUND = 0.25
"""Fraction of preactivations outside the interval, beyond that of N(0, 1), of a saturated layer."""

PASSING_FACTOR = 1e2
"""Factor on the mean square of the gradient over all layers, up to which saturated layers let it pass."""

COPIED_FRACTION = 0.5
"""Fraction of a layer's units that are copies from which on this is a fault."""

SATURATING_ACTIVATIONS = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "erf", "arctan", "softsign", "relu6")
NO_GRADIENT_TEXT = " No gradient passes: it is exactly 0 there."
COPIES_TEXT = (
    "Copies compute the same and, where the next layer treats them alike, get the same gradient and stay copies."
)


def overflow_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge signals with NaN or infinite values at step 0."""
    bad = [layer.layer for layer in layers if layer.stats.get("nonfinite", 0) > 0]
    if not bad:
        return []
    text = f"NaN or infinite values first appear behind {name_layers(bad[:1])}, and in {len(bad)} layers altogether."
    return [Finding("fault", "overflow", (bad[0],), text, network.rescaled("smaller"))]


def zero_layer_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge layers of zeros before the readout; in a residual network the end of a branch may be zero."""
    zero = [layer.layer for layer in layers[:-1] if layer.stats.get("weight_norm") == 0]
    if not zero or (network.model not in ("", "mlp", "cnn") and len(zero) < len(layers) - 1):
        return []
    every = len(zero) == len(layers) - 1 and layers[-1].stats.get("weight_norm") == 0
    text = zero_layer_sentence(zero, every, alike=network.act in NONZERO_AT_ZERO)
    return [Finding("fault", "zero_layer", tuple(zero), text, network.at_random())]


def zero_layer_sentence(names: Sequence[str], every: bool, alike: bool) -> str:
    """Return a sentence about layers of zeros.

    Args:
        names: of the layers.
        every: whether all layers of the network are zero.
        alike: whether their units have one and the same output, because φ(0) ≠ 0.
    """
    subject = "Every layer is" if every else capitalize_first(name_layers(names))
    subject += "" if every else " is" if len(set(names)) == 1 else " are"
    if alike:
        effect = "its units are all alike and stay so, because they get the same gradient"
    elif every:
        effect = "every preactivation is 0 whatever the input, and no weight gets a gradient, so that none ever changes"
    else:
        effect = (
            "nothing passes, so that all inputs look the same behind it and no gradient reaches the layers before it"
        )
    return f"{subject} all zeros: {effect}."


def layers_subject(names: Sequence[str], layers: Sequence[LayerStats]) -> str:
    """Return the subject of a sentence about some layers.

    >>> layers = [LayerStats(name) for name in "abcd"]
    >>> layers_subject(["a", "b", "c"], layers), layers_subject(["a"], layers)
    ('All hidden layers', 'Layer a')
    """
    if len(names) >= len(layers) - 1 >= 3:
        return "All hidden layers"
    return capitalize_first(name_layers(names))


def copied_unit_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge units that start as copies of one another; `zero_layer_findings` judges zeros."""
    bad = [
        layer
        for layer in layers[:-1]
        if network.scheme not in PATTERN_SCHEMES
        and layer.stats.get("weight_norm") != 0
        and layer.stats.get("duplicate_units", 0) >= max(1, COPIED_FRACTION * layer.units - 1)
    ]
    if not bad:
        return []
    names = tuple(layer.layer for layer in bad)
    count = int(bad[0].stats["duplicate_units"]) + 1
    whole = not bad[0].units or count >= bad[0].units
    what = f"all {count} units start equal" if whole else f"{count} of {bad[0].units} units are copies"
    text = f"{layers_subject(names, layers)} cannot break symmetry: in {bad[0].layer} {what}. {COPIES_TEXT}"
    return [Finding("fault", "copied_units", names, text, network.at_random())]


def saturation_findings(layers: Sequence[LayerStats], network: NetworkInfo, when: str = "") -> list[Finding]:
    """Judge layers whose activations are on their plateaus; `when` is a part of the sentence."""
    bound = SATURATED_BOUND + USUAL_SATURATION.get(network.act, 0.0)
    hidden = [layer for layer in layers if "saturated_fraction" in layer.stats]
    bad = [layer for layer in hidden if layer.stats["saturated_fraction"] >= bound]
    if not bad:
        return []
    worst = max(bad, key=lambda layer: layer.stats["saturated_fraction"])
    names = [layer.layer for layer in bad]
    text = saturation_sentence(layers_subject(names, layers), len(names), worst, network.act, when)
    zero = not when and any(layer.stats.get("grad_mean_square") == 0 for layer in bad)
    passing = "" if when or zero or not network.plain else passing_gradient_sentence(layers[:-1])
    text += NO_GRADIENT_TEXT if zero else passing
    mean, std = worst.stats.get("mean", 0.0), worst.stats.get("std", 0.0)
    remedy = network.rescaled("smaller")
    if abs(mean) > 2 * std:
        text += f" They are pushed to one side: mean {mean:.3g}, std {std:.2g}."
        remedy = network.at_random() if network.scheme else "start biases at 0, and give the layer inputs of mean 0"
    severity = "fault" if 2 * len(bad) >= len(hidden) and not passing else "warning"
    return [Finding(severity, "saturated_units", tuple(layer.layer for layer in bad), text, remedy)]


def passing_gradient_sentence(chain: Sequence[LayerStats]) -> str:
    """Return a sentence that the gradient keeps its size although units are saturated; "" where it does not.

    >>> chain = [LayerStats(name, {"grad_mean_square": value}) for name, value in (("a", 1.0), ("b", 4.0))]
    >>> passing_gradient_sentence(chain)
    ' The gradient passes all the same: from b to a its length changes by 0.5×.'
    """
    found = log_change(chain, "grad_mean_square")
    if len(chain) < 2 or found is None or abs(found) > math.log(PASSING_FACTOR):
        return ""
    times = format_factor(math.exp(-found / 2))
    return (
        f" The gradient passes all the same: from {chain[-1].layer} to {chain[0].layer} its length changes by {times}."
    )


def saturation_sentence(who: str, count: int, worst: LayerStats, act: str, when: str = "") -> str:
    """Return a sentence that `count` layers, of which `who` is the subject, are saturated, and how far the worst is."""
    return (
        f"{who} {'are' if count > 1 else 'is'} saturated{when}: {worst.stats['saturated_fraction']:.0%} of the inputs "
        f"of {act or 'the activation'} in {worst.layer} lie where it is flat, its slope under 5 % of the largest."
    )


def dead_unit_findings(layers: Sequence[LayerStats], network: NetworkInfo, when: str = "") -> list[Finding]:
    """Judge layers whose units are silent on every input that is not 0."""
    bad = [
        layer for layer in layers if layer.stats.get("dead_fraction", 0) >= DEAD_BOUND and layer.stats.get("q", 0) > 0
    ]
    if not bad or (len(bad) == 1 and 0 < bad[0].units < 8):
        return []
    names = tuple(layer.layer for layer in bad)
    text = dead_unit_sentence(
        layers_subject(names, layers), names, f"{bad[0].stats['dead_fraction']:.0%} of the units", when
    )
    bias = "init.sigma_b=0" if network.scheme else "start biases at 0"
    remedy = f"init={network.keeper}" if network.keeper else bias
    return [Finding("fault", "dead_units", names, text, remedy)]


def dead_unit_sentence(who: str, names: Sequence[str], many: str, when: str = "") -> str:
    """Return a sentence that layers, of which `who` is the subject, are dead: `many` units of the first one."""
    return (
        f"{who} {'are' if len(set(names)) > 1 else 'is'} dead{when}: {many} of {names[0]} are "
        "silent on every input, so they pass on nothing and get no gradient."
    )


def off_center_findings(layers: Sequence[tuple[str, float, float]], network: NetworkInfo) -> list[Finding]:
    """Judge weights whose mean is not 0; `layers`: name, mean of the weights and fan_in of such layers.

    >>> off_center_findings([("a", 0.5, 784)], NetworkInfo(act="relu"))[0].sentence
    'The weights of layer a have mean 0.5 and add up over 784 inputs, not cancelling: relu lets the signal explode.'
    """
    if not layers:
        return []
    names = [name for name, _, _ in layers]
    _, mean, fan_in = layers[0]
    effect = "lets the signal explode"
    if network.act in SATURATING_ACTIVATIONS:
        effect = "saturates, and gradients hardly pass"
    text = (
        f"The weights of {name_layers(names)} have mean {mean:.3g} and add up over {fan_in:.0f} inputs, not "
        f"cancelling: {network.act or 'the activation'} {effect}."
    )
    return [Finding("fault", "weights_off_centre", tuple(names), text, network.at_random())]
