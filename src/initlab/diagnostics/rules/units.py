"""Verdicts on units: overflow, silent units, saturated ones, and why."""

import math
from collections.abc import Sequence

import torch
from scipy.special import bdtrc, stdtr

from initlab.activations import Activation
from initlab.diagnostics.examine import Diagnosis
from initlab.diagnostics.rules.remedy import init_remedy, needed_std, trainable_gain, usual_critical_point
from initlab.diagnostics.trace.records import Call
from initlab.report.findings.network import LayerStats
from initlab.report.findings.record import Finding, capitalize_first, name_layers
from initlab.report.findings.units import (
    DEAD_BOUND,
    NO_GRADIENT_TEXT,
    SATURATED_BOUND,
    dead_unit_sentence,
    passing_gradient_sentence,
    saturation_sentence,
)

SILENT_ON_THE_LEFT = {"relu", "relu6", "gelu", "gelu_tanh", "silu", "mish", "hardswish"}
"""Activations that are silent far on the left."""

MIN_SAMPLES, FAR_LEFT = 8, -4.0
"""Samples from which silence is told by counting; mean/std of preactivations from which it is told without."""

SILENT_RATIO = 0.05
"""|φ(x)/x| below which an activation is silent at x: below -1.6 for GELU, below -2.9 for SiLU."""

MAX_CHANCE = 1e-7
"""Probability below which a draw of zero mean cannot have silenced a layer: 10⁻⁵ for a network of a hundred."""

MIN_EXCESS = 1.5
"""Factor on the std that an activation needs from which on the weights are to blame, not what comes in."""


def judge_unit_outputs(found: Diagnosis) -> list[Finding]:
    """Judge what the units do."""
    return [*overflowing_calls(found.calls), *dead_calls(found.calls), *saturated_calls(found.calls)]


def overflowing_calls(calls: Sequence[Call]) -> list[Finding]:
    """Signals that are no numbers any more."""
    bad = [call for call in calls if call.stats.get("nonfinite", 0) > 0]
    if not bad or (bad[0].facts is not None and not bad[0].facts.finite):
        return []
    name = bad[0].layer
    text = f"NaN or infinite values first appear behind {name_layers([name])}, and in {len(bad)} layers altogether."
    remedy = init_remedy(bad[0].activation) or "make the weights before it smaller"
    return [Finding("fault", "overflow", (name,), text, remedy)]


def is_dead(call: Call) -> bool:
    """Whether (nearly) all units of a layer are silent on every input, although something comes in, and by no chance.

    Inputs that are much alike, such as the pooled maps that a squeeze-and-excitation gate is fed, put each unit on one
    side of 0 for all of them: half of the units are silent, and of four units all are in one draw of sixteen.
    """
    if call.activation is None or call.activation.name not in SILENT_ON_THE_LEFT or not call.stats.get("q", 0) > 0:
        return False
    if call.stats.get("underflow", 0) > 0:
        return False  # what looks silent is only too small
    counted = call.samples >= MIN_SAMPLES and call.stats.get("dead_fraction", 0) >= DEAD_BOUND
    shifted = _relative_mean(call) < FAR_LEFT and _silent_at(call.activation, _entering(call)[0])
    if _bias_silences(call):
        return counted or shifted
    return (counted and chance_of_silence(call) < MAX_CHANCE) or (shifted and chance_of_shift(call) < MAX_CHANCE)


def chance_of_silence(call: Call) -> float:
    """Probability that so many units or more are silent although each lies left of 0 with probability 1/2 at most."""
    silent = round(call.stats.get("dead_fraction", 0.0) * call.units)
    return float(bdtrc(silent - 1, call.units, 0.5)) if silent else 1.0


def chance_of_shift(call: Call) -> float:
    """Probability that units lie so far left by chance: Student's, of units N(0, s²) that are the same on every input.

    Inputs that differ make s larger than the spread of the units, and the true probability smaller.
    """
    freedom = call.units - 1
    return float(stdtr(freedom, _relative_mean(call) * freedom**0.5)) if freedom > 0 else 0.5


def _bias_silences(call: Call) -> bool:
    """Whether a layer's bias is what pushes its units to the left."""
    bias = call.facts.bias_mean if call.facts is not None else 0.0
    mean, spread = call.stats.get("mean", 0.0), call.stats.get("std", 0.0)
    return "norm" not in call.into and bias < min(-1.0, -2 * spread) and bias < 0.5 * mean


def _silent_at(act: Activation, x: float) -> bool:
    return abs(float(act(torch.tensor(x, dtype=torch.float64)))) < SILENT_RATIO * abs(x)


def _entering(call: Call) -> tuple[float, float]:
    return call.entering or (call.stats.get("mean", 0.0), call.stats.get("std", 0.0))


def _relative_mean(call: Call) -> float:
    mean, std = _entering(call)
    return mean / std if std > 0 else (-float("inf") if mean < 0 else 0.0)


def dead_calls(calls: Sequence[Call]) -> list[Finding]:
    """Layers whose units are silent on every input."""
    bad = [call for call in calls if is_dead(call)]
    if not bad:
        return []
    first = bad[0]
    assert first.activation is not None
    share = first.stats.get("dead_fraction", 1.0)
    many = f"{share:.0%} of the units" if share >= DEAD_BOUND else "nearly all units"
    names = tuple(dict.fromkeys(call.layer for call in bad))
    text = dead_unit_sentence(capitalize_first(name_layers(names)), names, many)
    remedy = "start biases at 0"
    if _bias_silences(first) and first.facts is not None:
        text += (
            f" Its bias is {first.facts.bias_mean:.3g} on average, and the weighted inputs only spread by "
            f"±{first.stats.get('std', 0.0):.2g} around it."
        )
    elif "norm" in first.into:
        remedy = "start the shift (bias) of the norm before its activation at 0"
    else:
        remedy = init_remedy(first.activation) or remedy
    return [Finding("fault", "dead_units", names, text, remedy)]


def is_saturated(call: Call) -> bool:
    """Whether most preactivations of a layer lie where its activation is flat."""
    act = call.activation
    usual = sum(math.erfc(abs(b) / math.sqrt(2)) / 2 for b in act.saturation) if act and act.saturation else 0.0
    return call.stats.get("saturated_fraction", 0.0) >= SATURATED_BOUND + usual and not is_dead(call)


def _largest_std(act: Activation) -> str:
    """Say the std of weights of an activation whose critical point saturates units: smaller ones lose the gradient."""
    point = usual_critical_point(act)
    if point is None:
        return "std 1/√fan_in is the usual start"
    return f"critical is {point.sigma_w:.3g}/√fan_in, below which gradients die; or use tanh or relu"


def _input_remedy(call: Call) -> str:
    words = {word for trace in call.fed.values() for word in trace}
    if "sum" in words:
        return "scale the residual branches down (1/√depth), or put a norm before the layer"
    return (
        "normalise the data: (x − mean) / std" if 0 in call.fed else "make the weights of the layers before it smaller"
    )


def _saturation_cause(call: Call, act: Activation) -> tuple[str, str]:
    """Say of a saturated layer what is too large (its weights, their mean, a bias, what comes in), and the remedy."""
    mean, std, facts = call.stats["mean"], call.stats["std"], call.facts
    known = facts is not None and facts.square > 0 and facts.fan_in == facts.fan_in
    if facts is not None and known and 10 * facts.mean**2 > facts.square:  # one part in ten is no chance
        said = f" The weights have mean {facts.mean:.3g}, which adds up over {facts.fan_in:.0f} inputs."
        return said, f"draw weights of mean 0, smaller ones: {needed_std(act) or _largest_std(act)}"
    if abs(mean) > 2 * std:
        said = f" They are pushed to one side: mean {mean:.3g}, std {std:.2g}."
        return said, "start biases at 0, and give the layer inputs of mean 0"
    if facts is None or not known:
        return "", "make the weights smaller"
    sigma = (facts.square * facts.fan_in) ** 0.5
    said = f" Their std is {std:.2g}; the weights have std {sigma:.3g}/√fan_in."
    good = trainable_gain(act)
    if sigma > MIN_EXCESS * (good[0] if good else 1.0):
        return said, f"make the weights smaller: {needed_std(act) or _largest_std(act)}"
    return f"{said} That is not too much: what comes in is large, of size {std / sigma:.2g}.", _input_remedy(call)


def saturated_calls(calls: Sequence[Call]) -> list[Finding]:
    """Layers whose activations are stuck on their plateaus."""
    bad = [call for call in calls if is_saturated(call)]
    if not bad:
        return []
    worst = max(bad, key=lambda call: call.stats["saturated_fraction"])
    act = worst.activation
    assert act is not None
    names = tuple(dict.fromkeys(call.layer for call in bad))
    text = saturation_sentence(
        capitalize_first(name_layers(names)), len(names), LayerStats(worst.layer, worst.stats), act.name
    )
    zero = any(call.stats.get("grad_mean_square") == 0 for call in bad)
    row = [LayerStats(c.layer, c.stats, c.units, c.samples) for c in calls if c.activation is not None]
    passing = "" if zero or any(call.into & {"norm", "sum"} for call in calls) else passing_gradient_sentence(row)
    text += NO_GRADIENT_TEXT if zero else passing
    said, remedy = _saturation_cause(worst, act)
    severity = "fault" if 2 * len(bad) >= len(row) and not passing else "warning"
    return [Finding(severity, "saturated_units", names, text + said, remedy)]
