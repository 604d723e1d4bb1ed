"""Weights and units by themselves: zero, equal, not finite, dead, saturated."""

from collections.abc import Sequence

from initlab.causes.network import NOT_ZERO, USUAL, Network, Reading
from initlab.causes.record import Verdict, capital, listed

DEAD = 0.8
"""Fraction of silent units that no healthy ReLU layer reaches: with all inputs alike it tends to a half."""

SATURATED = 0.25
"""Fraction of preactivations outside the interval, beyond that of N(0, 1), that counts as a saturated layer."""

MANY = 0.5
"""Fraction of a layer's units that are copies from which on this is a fault."""

ALL_ALIKE = "its units are all alike and stay so, because they get the same gradient"
NOTHING_PASSES = "nothing passes, so that all inputs look the same behind it and no gradient reaches the layers before it"
COPIES = (
    "Copies compute the same and, where the next layer treats them alike, get the same gradient and stay copies for "
    "ever."
)


def overflow(layers: Sequence[Reading], network: Network) -> list[Verdict]:
    """Judge signals that are no numbers at step 0."""
    bad = [one.layer for one in layers if one.stats.get("nonfinite", 0) > 0]
    if not bad:
        return []
    text = f"NaN or infinite values first appear behind {listed(bad[:1])}, and in {len(bad)} layers altogether."
    return [Verdict("fault", "overflow", (bad[0],), text, network.rescaled("smaller"))]


def zeros(layers: Sequence[Reading], network: Network) -> list[Verdict]:
    """Judge layers of zeros: slow in a readout, fatal before it; in a residual network the end of a branch may be."""
    zero = [one.layer for one in layers[:-1] if one.stats.get("weight_norm") == 0]
    if not zero or (network.model not in ("", "mlp", "cnn") and len(zero) < len(layers) - 1):
        return []
    every = len(zero) == len(layers) - 1 and layers[-1].stats.get("weight_norm") == 0
    subject = "Every layer" if every else capital(listed(zero))
    verb = "is" if every or len(zero) == 1 else "are"
    fate = ALL_ALIKE if network.act in NOT_ZERO else NOTHING_PASSES
    return [Verdict("fault", "zero_layer", tuple(zero), f"{subject} {verb} all zeros: {fate}.", network.at_random())]


def copies(layers: Sequence[Reading], network: Network) -> list[Verdict]:
    """Judge units that start as copies of one another; zeros are judged by `zeros`."""
    bad = [
        one
        for one in layers[:-1]
        if one.stats.get("weight_norm") != 0
        and one.stats.get("duplicate_units", 0) >= max(1, MANY * one.units - 1)
    ]
    if not bad:
        return []
    names = tuple(one.layer for one in bad)
    count = int(bad[0].stats["duplicate_units"]) + 1
    whole = not bad[0].units or count >= bad[0].units
    what = f"all {count} units start equal" if whole else f"{count} of {bad[0].units} units are copies"
    text = f"{capital(listed(names))} cannot break symmetry: in {bad[0].layer} {what}. {COPIES}"
    return [Verdict("fault", "copied_units", names, text, network.at_random())]


def saturated(layers: Sequence[Reading], network: Network, when: str = "") -> list[Verdict]:
    """Judge layers whose activations are stuck on their plateaus; `when` is said in their sentence."""
    bound = SATURATED + USUAL.get(network.act, 0.0)
    hidden = [one for one in layers if "saturated_fraction" in one.stats]
    bad = [one for one in hidden if one.stats["saturated_fraction"] >= bound]
    if not bad:
        return []
    worst = max(bad, key=lambda one: one.stats["saturated_fraction"])
    text = saturated_text(tuple(one.layer for one in bad), worst, network.act, when)
    mean, std = worst.stats.get("mean", 0.0), worst.stats.get("std", 0.0)
    remedy = network.rescaled("smaller")
    if abs(mean) > 2 * std:
        text += f" They are pushed to one side: mean {mean:.3g}, std {std:.2g}."
        remedy = network.at_random() if network.scheme else "start biases at 0, and give the layer inputs of mean 0"
    grade = "fault" if 2 * len(bad) >= len(hidden) else "warning"
    return [Verdict(grade, "saturated_units", tuple(one.layer for one in bad), text, remedy)]


def saturated_text(names: Sequence[str], worst: Reading, act: str, when: str = "") -> str:
    """Say that layers are saturated, and how far the worst of them is."""
    return (
        f"{capital(listed(names))} {'are' if len(set(names)) > 1 else 'is'} saturated{when}: "
        f"{worst.stats['saturated_fraction']:.0%} of the inputs of {act or 'the activation'} in {worst.layer} lie "
        "where it is flat, its slope under 5 % of the largest."
    )


def dead(layers: Sequence[Reading], network: Network, when: str = "") -> list[Verdict]:
    """Judge layers whose units are silent on every input; nothing comes into layers behind zeros."""
    bad = [one for one in layers if one.stats.get("dead_fraction", 0) >= DEAD and one.stats.get("q", 0) > 0]
    if not bad or (len(bad) == 1 and 0 < bad[0].units < 8):
        return []
    names = tuple(one.layer for one in bad)
    text = dead_text(names, f"{bad[0].stats['dead_fraction']:.0%} of the units", when)
    bias = "init.sigma_b=0" if network.scheme else "start biases at 0"
    remedy = f"init={network.keeper}" if network.keeper else bias
    return [Verdict("fault", "dead_units", names, text, remedy)]


def dead_text(names: Sequence[str], many: str, when: str = "") -> str:
    """Say that layers are dead."""
    return (
        f"{capital(listed(names))} {'are' if len(set(names)) > 1 else 'is'} dead{when}: {many} of {names[0]} are "
        "silent on every input, so they pass on nothing and get no gradient."
    )
