"""Rules over units: overflow, silent units, saturated units, and their causes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.special import bdtrc, stdtr

from initlab.activations import Activation
from initlab.diagnostics.rules.remedy import init_remedy, needed_std, trainable_gain, usual_critical_point
from initlab.diagnostics.trace.records import Call
from initlab.report.findings.network import LayerStats, NetworkInfo
from initlab.report.findings.record import Finding, capitalize_first, name_layers
from initlab.report.findings.units import (
    DEAD_BOUND,
    NO_GRADIENT_TEXT,
    SATURATED_BOUND,
    dead_unit_sentence,
    overflow_findings,
    passing_gradient_sentence,
    saturation_sentence,
)

SILENT_ON_THE_LEFT = {"relu", "relu6", "gelu", "gelu_tanh", "silu", "mish", "hardswish"}
"""Activations that are silent far on the left."""

MIN_SAMPLES, FAR_LEFT = 8, -4.0
"""Samples from which silent units are counted; mean/std of preactivations from which they need not be."""

SILENT_RATIO = 0.05
"""|φ(x)/x| below which an activation is silent at x: below -1.6 for GELU, below -2.9 for SiLU."""

MAX_CHANCE = 1e-7
"""Probability below which a draw of zero mean cannot have silenced a layer: 10⁻⁵ for a network of a hundred."""

MIN_EXCESS = 1.5
"""Factor on the std that an activation needs from which on the weights are to blame, not their inputs."""


def judge_unit_outputs(calls: Sequence[Call]) -> list[Finding]:
    """Judge the outputs of the units."""
    return [*overflowing_calls(calls), *dead_calls(calls), *saturated_calls(calls)]


def call_stats(calls: Sequence[Call]) -> list[LayerStats]:
    """Return what the rules of `initlab.report.findings` read of each call."""
    return [LayerStats(call.layer, call.stats, call.units, call.samples) for call in calls]


def layer_names(calls: Sequence[Call]) -> tuple[str, ...]:
    """Return the names of the layers of some calls, each once."""
    return tuple(dict.fromkeys(call.layer for call in calls))


def overflowing_calls(calls: Sequence[Call]) -> list[Finding]:
    """Find the first layer with NaN or infinite outputs, unless its weights hold such values."""
    first = next((call for call in calls if call.stats.get("nonfinite", 0) > 0), None)
    if first is None or (first.facts is not None and not first.facts.finite):
        return []
    remedy = init_remedy(first.activation) or "make the weights before it smaller"
    return [replace(one, remedy=remedy) for one in overflow_findings(call_stats(calls), NetworkInfo())]


def is_dead(call: Call) -> bool:
    """Return whether (nearly) all units are silent on every input, although an input is not 0, and not by chance.

    Inputs that are much alike, such as the pooled maps that a squeeze-and-excitation gate is fed, put each unit on one
    side of 0 for all of them: half of the units are silent, and of four units all are in one draw of sixteen.
    """
    if call.activation is None or call.activation.name not in SILENT_ON_THE_LEFT or not call.stats.get("q", 0) > 0:
        return False
    if call.stats.get("underflow", 0) > 0:
        return False  # the outputs are not 0, but too small
    counted = call.samples >= MIN_SAMPLES and call.stats.get("dead_fraction", 0) >= DEAD_BOUND
    mean = _entering(call)[0]
    output = float(call.activation(torch.tensor(mean, dtype=torch.float64)))
    shifted = _relative_mean(call) < FAR_LEFT and abs(output) < SILENT_RATIO * abs(mean)
    if _silencing_bias(call):
        return counted or shifted
    return (counted and chance_of_silence(call) < MAX_CHANCE) or (shifted and chance_of_shift(call) < MAX_CHANCE)


def chance_of_silence(call: Call) -> float:
    """Return P(at least this many units are silent) where each lies left of 0 with probability 1/2 at most."""
    silent = round(call.stats.get("dead_fraction", 0.0) * call.units)
    return float(bdtrc(silent - 1, call.units, 0.5)) if silent else 1.0


def chance_of_shift(call: Call) -> float:
    """Return P(units lie this far left): Student's t, of units N(0, s²) that are the same on every input.

    Inputs that differ make s larger than the spread of the units, and the true probability smaller.
    """
    freedom = call.units - 1
    return float(stdtr(freedom, _relative_mean(call) * freedom**0.5)) if freedom > 0 else 0.5


def _silencing_bias(call: Call) -> float:
    """Return the mean of the layer's bias where that is what moves its units to the left, else 0."""
    bias = call.facts.bias_mean if call.facts is not None else 0.0
    mean, spread = call.stats.get("mean", 0.0), call.stats.get("std", 0.0)
    return bias if "norm" not in call.into and bias < min(-1.0, -2 * spread) and bias < 0.5 * mean else 0.0


def _entering(call: Call) -> tuple[float, float]:
    return call.entering or (call.stats.get("mean", 0.0), call.stats.get("std", 0.0))


def _relative_mean(call: Call) -> float:
    mean, std = _entering(call)
    return mean / std if std > 0 else (-math.inf if mean < 0 else 0.0)


def dead_calls(calls: Sequence[Call]) -> list[Finding]:
    """Find layers whose units are silent on every input."""
    bad = [call for call in calls if is_dead(call)]
    if not bad:
        return []
    first, names = bad[0], layer_names(bad)
    share = first.stats.get("dead_fraction", 1.0)
    many = f"{share:.0%} of the units" if share >= DEAD_BOUND else "nearly all units"
    text = dead_unit_sentence(capitalize_first(name_layers(names)), names, many)
    remedy = "start biases at 0"
    if bias := _silencing_bias(first):
        spread = first.stats.get("std", 0.0)
        text += f" Its bias is {bias:.3g} on average, and the weighted inputs only spread by ±{spread:.2g} around it."
    elif "norm" in first.into:
        remedy = "start the shift (bias) of the norm before its activation at 0"
    else:
        remedy = init_remedy(first.activation) or remedy
    return [Finding("fault", "dead_units", names, text, remedy)]


def is_saturated(call: Call) -> bool:
    """Return whether far more preactivations than of N(0, 1) lie where the activation is flat."""
    act = call.activation
    usual = sum(math.erfc(abs(b) / math.sqrt(2)) / 2 for b in act.saturation) if act and act.saturation else 0.0
    return call.stats.get("saturated_fraction", 0.0) >= SATURATED_BOUND + usual and not is_dead(call)


def _smaller_std(act: Activation) -> str:
    """Name the std of weights that an activation needs, or the one below which it loses the gradient."""
    if needed := needed_std(act):
        return needed
    if (point := usual_critical_point(act)) is None:
        return "std 1/√fan_in is the usual start"
    return f"critical is {point.sigma_w:.3g}/√fan_in, below which gradients die; or use tanh or relu"


def _input_remedy(call: Call) -> str:
    if "sum" in call.fed_words:
        return "scale the residual branches down (1/√depth), or put a norm before the layer"
    return (
        "normalize the data: (x − mean) / std" if 0 in call.fed else "make the weights of the layers before it smaller"
    )


def _saturation_cause(call: Call, act: Activation) -> tuple[str, str]:
    """Return a sentence on what is too large (weights, their mean, a bias, the inputs), and the remedy."""
    mean, std, facts = call.stats["mean"], call.stats["std"], call.facts
    if facts is not None and not (facts.square > 0 and math.isfinite(facts.fan_in)):
        facts = None
    if facts is not None and 10 * facts.mean**2 > facts.square:  # one part in ten is not chance
        text = f" The weights have mean {facts.mean:.3g}, which adds up over {facts.fan_in:.0f} inputs."
        return text, f"draw weights of mean 0, smaller ones: {_smaller_std(act)}"
    if abs(mean) > 2 * std:
        text = f" They are pushed to one side: mean {mean:.3g}, std {std:.2g}."
        return text, "start biases at 0, and give the layer inputs of mean 0"
    if facts is None:
        return "", "make the weights smaller"
    sigma = (facts.square * facts.fan_in) ** 0.5
    text = f" Their std is {std:.2g}; the weights have std {sigma:.3g}/√fan_in."
    gain = trainable_gain(act)
    if sigma > MIN_EXCESS * (gain[0] if gain else 1.0):
        return text, f"make the weights smaller: {_smaller_std(act)}"
    return f"{text} That is not too much: the inputs are large, of size {std / sigma:.2g}.", _input_remedy(call)


def saturated_calls(calls: Sequence[Call]) -> list[Finding]:
    """Find layers whose activations are mostly flat."""
    bad = [call for call in calls if is_saturated(call)]
    if not bad:
        return []
    worst = max(bad, key=lambda call: call.stats["saturated_fraction"])
    act = worst.activation
    assert act is not None
    names = layer_names(bad)
    text = saturation_sentence(capitalize_first(name_layers(names)), len(names), call_stats([worst])[0], act.name)
    zero = any(call.stats.get("grad_mean_square") == 0 for call in bad)
    row = call_stats([call for call in calls if call.activation is not None])
    passing = "" if zero or any(call.into & {"norm", "sum"} for call in calls) else passing_gradient_sentence(row)
    text += NO_GRADIENT_TEXT if zero else passing
    cause, remedy = _saturation_cause(worst, act)
    severity = "fault" if 2 * len(bad) >= len(row) and not passing else "warning"
    return [Finding(severity, "saturated_units", names, text + cause, remedy)]
