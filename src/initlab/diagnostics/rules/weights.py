"""Rules over weights by themselves: zero, constant, copied, out of scale with their neighbors, left at default."""

from collections.abc import Collection, Sequence

import torch

from initlab.diagnostics.examine import Diagnosis
from initlab.diagnostics.rules.remedy import init_remedy
from initlab.diagnostics.rules.scale import fan_out_rule, out_of_scale_calls, times_text
from initlab.diagnostics.rules.units import layer_names
from initlab.diagnostics.trace.records import Call
from initlab.diagnostics.weight_facts import WeightFacts
from initlab.report.findings.record import SEVERITIES, Finding, capitalize_first, format_factor, name_layers
from initlab.report.findings.units import COPIED_FRACTION, COPIES_TEXT, zero_layer_sentence

Weights = Sequence[tuple[Call, WeightFacts]]


def judge_weight_values(diagnosis: Diagnosis) -> list[Finding]:
    """Judge the weights, causes before what follows from them."""
    weights = [(call, call.facts) for call in diagnosis.calls if call.facts is not None]
    readouts = readout_indices(diagnosis.calls)
    bad = [*nonfinite_weights(weights), *zero_weights(weights, readouts), *copied_units(weights)]
    bad += out_of_scale_weights(diagnosis.calls)
    blamed = {layer for finding in bad for layer in finding.layers}
    inner = [(call, facts) for call, facts in weights if call.index not in readouts and call.layer not in blamed]
    same = [*identical_layers(weights), *scaled_by_fan_out(diagnosis.calls), *default_weights(inner)]
    return [*bad, *same, *weights_without_call(diagnosis.calls)]


def readout_indices(calls: Sequence[Call]) -> set[int]:
    """Return the indices of calls that feed no other call: readouts, one per output."""
    feeding = {source for call in calls for source in call.sources}
    return {call.index for call in calls if call.ran and call.index not in feeding}


def nonfinite_weights(weights: Weights) -> list[Finding]:
    """Find weights that hold NaN or infinity."""
    bad = tuple(call.layer for call, facts in weights if not facts.finite)
    if not bad:
        return []
    text = f"The weights of {name_layers(bad)} hold NaN or infinite values."
    return [Finding("fault", "nonfinite_weight", bad, text, "initialize these layers again")]


def is_zero_weight(facts: WeightFacts) -> bool:
    """Return whether a layer's weight is all zeros; a single element is no layer."""
    return facts.constant and facts.square == 0 and facts.elements > 1 and facts.kind != "unknown" and not facts.tied


def zero_weights(weights: Weights, readouts: Collection[int]) -> list[Finding]:
    """Find layers of zeros: harmless at the end of a branch and in q, k or v, slow in a readout, fatal elsewhere."""
    zero = [
        call
        for call, facts in weights
        if is_zero_weight(facts) and call.ran and "sum" not in call.into and not facts.part
    ]
    inner = [call for call in zero if call.index not in readouts]
    names = layer_names(inner or zero)
    if zero and not inner:
        text = (
            f"The readout, {name_layers(names)}, is all zeros: at first every input gets the same output, and the "
            "layers below get no gradient until the second step. Some networks do this on purpose."
        )
        return [Finding("note", "zero_readout", names, text)]
    if not inner:
        return []
    act = inner[0].activation
    alike = act is not None and float(act(torch.zeros(()))) != 0
    every = len(inner) > 1 and all(is_zero_weight(facts) for _, facts in weights if facts.kind != "embedding")
    remedy = "initialize it at random like any other; only the end of a residual branch, or a readout, may be zero"
    remedy = (init_remedy(act) if every else "") or remedy
    return [Finding("fault", "zero_layer", names, zero_layer_sentence(names, every, alike), remedy)]


def copied_units(weights: Weights) -> list[Finding]:
    """Find units that start as copies of one another."""
    findings = []
    for severity in SEVERITIES:
        bad = [(call, facts) for call, facts in weights if _copies_severity(call, facts) == severity]
        if bad:
            first, facts = bad[0]
            names = layer_names([call for call, _ in bad])
            count = f"{int(first.stats['duplicate_units'])} of {facts.units * facts.groups} units are copies"
            text = (
                f"{capitalize_first(name_layers(names))} cannot break symmetry: in {first.layer or 'it'} "
                f"{'all weights are equal' if facts.constant else count}. {COPIES_TEXT}"
            )
            findings.append(Finding(severity, "copied_units", names, text, "draw these weights at random"))
    return findings


def _copies_severity(call: Call, facts: WeightFacts) -> str | None:
    count = call.stats.get("duplicate_units", 0)
    if facts.kind in ("unknown", "embedding") or not count or is_zero_weight(facts):
        return None
    if facts.patterned and not facts.constant:
        return "note"  # in an identity or another pattern copies are meant
    return "fault" if count >= COPIED_FRACTION * facts.units * facts.groups or facts.constant else "warning"


def identical_layers(weights: Weights) -> list[Finding]:
    """Find layers whose tensors hold the same values without being one tensor."""
    groups = list(dict.fromkeys(facts.twins for _, facts in weights if facts.twins))
    remedy = "initialize each of them by itself, from its own draw"
    if len(groups) <= 2:
        same = "start with identical weights in tensors of their own: one draw was copied, or one seed used twice."
        return [
            Finding("warning", "identical_layers", group, f"{capitalize_first(name_layers(group))} {same}", remedy)
            for group in groups
        ]
    # Blocks stacked from deep copies of one are identical weight by weight: one sentence.
    layers = tuple(layer for group in groups for layer in group)
    text = (
        f"{len(layers)} layers are copies of one another, in {len(groups)} groups of identical weights, the first of "
        f"them {name_layers(groups[0])}: blocks were stacked from deep copies of one, as nn.TransformerEncoder does."
    )
    return [Finding("warning", "identical_layers", layers, text, remedy)]


def out_of_scale_weights(calls: Sequence[Call]) -> list[Finding]:
    """Find layers whose weights are many times larger or smaller than the law of their neighbors gives."""
    findings = []
    for call, law, factor in out_of_scale_calls(calls):
        word, cure = ("larger", "divide") if factor > 1 else ("smaller", "multiply")
        times = times_text(max(factor, 1 / factor))
        text = (
            f"{capitalize_first(name_layers([call.layer]))} has weights {times} {word} than the other layers, which "
            f"follow {law}."
        )
        normed = "norm" in call.into
        if normed:
            text += " The norm behind it hides that from the signal, but not from the size of its gradient."
        remedy = f"{cure} its weights by {times.rstrip('×')}, or initialize it like the others"
        findings.append(Finding("warning" if normed else "fault", "out_of_scale", (call.layer,), text, remedy))
    return findings


def scaled_by_fan_out(calls: Sequence[Call]) -> list[Finding]:
    """Find weights scaled by their fan_out where the signal needs fan_in: a transposed shape, or mode=fan_out."""
    value, ratios = fan_out_rule(calls)
    if not ratios:
        return []
    name, ratio = max(ratios.items(), key=lambda pair: abs(pair[1] - 1) if pair[1] > 1 else 1 / pair[1])
    text = (
        f"The weights are scaled by fan_out where the signal sums fan_in inputs: Var·fan_out is {value:.3g} in all "
        f"layers, and the mean square of the signal changes by fan_in/fan_out at each, by {format_factor(ratio)} at "
        f"layer {name}."
    )
    remedy = (
        "if the shape was taken for (in, out), transpose it; else use mode=fan_in (mode=fan_out keeps gradients "
        "instead, and is right only if that was meant)"
    )
    return [Finding("warning", "scaled_by_fan_out", tuple(ratios), text, remedy)]


def default_weights(weights: Weights) -> list[Finding]:
    """Find layers that still hold torch's own draw, among those that are neither readouts nor blamed already."""
    drawn = [(call, facts) for call, facts in weights if call.ran and facts.kind not in ("unknown", "embedding")]
    left = [(call, facts) for call, facts in drawn if facts.default]
    if drawn and len(left) == len(drawn):
        names = layer_names([call for call, _ in left])
        return [Finding("note", "default_everywhere", names, "Every layer holds torch's default weights.")]
    # Attention's default is Glorot's rule, which others choose too; its output layer is often left as it is.
    calls = [call for call, facts in left if not facts.part and not call.layer.endswith("out_proj")]
    if not calls:
        return []
    names = layer_names(calls)
    rest = len(drawn) - len(calls)
    others = f"the other {rest} layers were" if rest > 1 else "the other layer was"
    text = (
        f"{capitalize_first(name_layers(names))} still {'hold' if len(names) > 1 else 'holds'} torch's default "
        f"weights, U(±1/√fan_in), while {others} initialized differently."
    )
    severity = "note" if all("norm" in call.into for call in calls) else "warning"
    return [Finding(severity, "left_at_default", names, text, "initialize the whole module, not a part of it")]


def weights_without_call(calls: Sequence[Call]) -> list[Finding]:
    """Find weights that took no part in the forward pass."""
    names = tuple(call.layer for call in calls if not call.ran)
    if not names:
        return []
    text = f"{capitalize_first(name_layers(names))} took no part in this forward pass, so nothing is known of it."
    return [Finding("note", "never_ran", names, text)]
