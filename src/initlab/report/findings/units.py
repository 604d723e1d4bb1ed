"""Weights and units by themselves: zero, equal, not finite, dead, saturated."""

import math
from collections.abc import Sequence

from initlab.report.findings.network import NONZERO_AT_ZERO, PATTERN_SCHEMES, USUAL_SATURATION, LayerStats, NetworkInfo
from initlab.report.findings.record import Finding, capitalize_first, format_factor, name_layers
from initlab.report.findings.trends import log_change

DEAD_BOUND = 0.8
"""Fraction of silent units that no healthy ReLU layer reaches: with all inputs alike it tends to a half."""

SATURATED_BOUND = 0.25
"""Fraction of preactivations outside the interval, beyond that of N(0, 1), that counts as a saturated layer."""

PASSING_FACTOR = 1e2
"""Factor on the mean square of the gradient over all layers, up to which saturated layers let it pass."""

COPIED_FRACTION = 0.5
"""Fraction of a layer's units that are copies from which on this is a fault."""

ALL_ALIKE_TEXT = "its units are all alike and stay so, because they get the same gradient"
NOTHING_PASSES_TEXT = (
    "nothing passes, so that all inputs look the same behind it and no gradient reaches the layers before it"
)
SATURATING_ACTIVATIONS = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "erf", "arctan", "softsign", "relu6")
NO_GRADIENT_TEXT = " No gradient passes: it is exactly 0 there."
NOTHING_PASSES_ANYWHERE_TEXT = (
    "every preactivation is 0 whatever the input, and no weight gets a gradient, so that none ever changes"
)
COPIES_TEXT = (
    "Copies compute the same and, where the next layer treats them alike, get the same gradient and stay copies for "
    "ever."
)


def overflow_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge signals that are no numbers at step 0."""
    bad = [one.layer for one in layers if one.stats.get("nonfinite", 0) > 0]
    if not bad:
        return []
    text = f"NaN or infinite values first appear behind {name_layers(bad[:1])}, and in {len(bad)} layers altogether."
    return [Finding("fault", "overflow", (bad[0],), text, network.rescaled("smaller"))]


def zero_layer_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge layers of zeros: slow in a readout, fatal before it; in a residual network the end of a branch may be."""
    zero = [one.layer for one in layers[:-1] if one.stats.get("weight_norm") == 0]
    if not zero or (network.model not in ("", "mlp", "cnn") and len(zero) < len(layers) - 1):
        return []
    every = len(zero) == len(layers) - 1 and layers[-1].stats.get("weight_norm") == 0
    text = zero_layer_sentence(zero, every, alike=network.act in NONZERO_AT_ZERO)
    return [Finding("fault", "zero_layer", tuple(zero), text, network.at_random())]


def zero_layer_sentence(names: Sequence[str], every: bool, alike: bool) -> str:
    """Say that layers are zero; `alike`: their units answer all the same, because φ(0) ≠ 0."""
    fate = ALL_ALIKE_TEXT if alike else NOTHING_PASSES_ANYWHERE_TEXT if every else NOTHING_PASSES_TEXT
    if every:
        return f"Every layer is all zeros: {fate}."
    return f"{capitalize_first(name_layers(names))} {'is' if len(set(names)) == 1 else 'are'} all zeros: {fate}."


def layers_subject(names: Sequence[str], layers: Sequence[LayerStats]) -> str:
    """Name the layers of a sentence; all of many hidden ones by that.

    >>> layers_subject(["a", "b", "c"], [LayerStats(name) for name in "abcd"]), layers_subject(["a"], [LayerStats("a"), LayerStats("b")])
    ('All hidden layers', 'Layer a')
    """
    if len(names) >= len(layers) - 1 >= 3:
        return "All hidden layers"
    return capitalize_first(name_layers(names))


def copied_unit_findings(layers: Sequence[LayerStats], network: NetworkInfo) -> list[Finding]:
    """Judge units that start as copies of one another; zeros are judged by `zero_layer_findings`."""
    bad = [
        one
        for one in layers[:-1]
        if network.scheme not in PATTERN_SCHEMES
        and one.stats.get("weight_norm") != 0
        and one.stats.get("duplicate_units", 0) >= max(1, COPIED_FRACTION * one.units - 1)
    ]
    if not bad:
        return []
    names = tuple(one.layer for one in bad)
    count = int(bad[0].stats["duplicate_units"]) + 1
    whole = not bad[0].units or count >= bad[0].units
    what = f"all {count} units start equal" if whole else f"{count} of {bad[0].units} units are copies"
    text = f"{layers_subject(names, layers)} cannot break symmetry: in {bad[0].layer} {what}. {COPIES_TEXT}"
    return [Finding("fault", "copied_units", names, text, network.at_random())]


def saturation_findings(layers: Sequence[LayerStats], network: NetworkInfo, when: str = "") -> list[Finding]:
    """Judge layers whose activations are stuck on their plateaus; `when` is said in their sentence."""
    bound = SATURATED_BOUND + USUAL_SATURATION.get(network.act, 0.0)
    hidden = [one for one in layers if "saturated_fraction" in one.stats]
    bad = [one for one in hidden if one.stats["saturated_fraction"] >= bound]
    if not bad:
        return []
    worst = max(bad, key=lambda one: one.stats["saturated_fraction"])
    names = [one.layer for one in bad]
    text = saturation_sentence(layers_subject(names, layers), len(names), worst, network.act, when)
    zero = not when and any(one.stats.get("grad_mean_square") == 0 for one in bad)
    passing = "" if when or zero or not network.plain else passing_gradient_sentence(layers[:-1])
    text += NO_GRADIENT_TEXT if zero else passing
    mean, std = worst.stats.get("mean", 0.0), worst.stats.get("std", 0.0)
    remedy = network.rescaled("smaller")
    if abs(mean) > 2 * std:
        text += f" They are pushed to one side: mean {mean:.3g}, std {std:.2g}."
        remedy = network.at_random() if network.scheme else "start biases at 0, and give the layer inputs of mean 0"
    grade = "fault" if 2 * len(bad) >= len(hidden) and not passing else "warning"
    return [Finding(grade, "saturated_units", tuple(one.layer for one in bad), text, remedy)]


def passing_gradient_sentence(chain: Sequence[LayerStats]) -> str:
    """Say that the gradient keeps its size although units are saturated; "" where it does not, or is not known.

    >>> passing_gradient_sentence([LayerStats("a", {"grad_mean_square": 1.0}), LayerStats("b", {"grad_mean_square": 4.0})])
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
    """Say that `count` layers, `who` in a sentence, are saturated, and how far the worst of them is."""
    return (
        f"{who} {'are' if count > 1 else 'is'} saturated{when}: {worst.stats['saturated_fraction']:.0%} of the inputs "
        f"of {act or 'the activation'} in {worst.layer} lie where it is flat, its slope under 5 % of the largest."
    )


def dead_unit_findings(layers: Sequence[LayerStats], network: NetworkInfo, when: str = "") -> list[Finding]:
    """Judge layers whose units are silent on every input; nothing comes into layers behind zeros."""
    bad = [one for one in layers if one.stats.get("dead_fraction", 0) >= DEAD_BOUND and one.stats.get("q", 0) > 0]
    if not bad or (len(bad) == 1 and 0 < bad[0].units < 8):
        return []
    names = tuple(one.layer for one in bad)
    text = dead_unit_sentence(
        layers_subject(names, layers), names, f"{bad[0].stats['dead_fraction']:.0%} of the units", when
    )
    bias = "init.sigma_b=0" if network.scheme else "start biases at 0"
    remedy = f"init={network.keeper}" if network.keeper else bias
    return [Finding("fault", "dead_units", names, text, remedy)]


def dead_unit_sentence(who: str, names: Sequence[str], many: str, when: str = "") -> str:
    """Say that layers, `who` in a sentence, are dead: `many` units of the first of them."""
    return (
        f"{who} {'are' if len(set(names)) > 1 else 'is'} dead{when}: {many} of {names[0]} are "
        "silent on every input, so they pass on nothing and get no gradient."
    )


def off_center_findings(layers: Sequence[tuple[str, float, float]], network: NetworkInfo) -> list[Finding]:
    """Judge weights that do not average to 0; `layers`: name, mean of the weights, fan_in of those that do not.

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
