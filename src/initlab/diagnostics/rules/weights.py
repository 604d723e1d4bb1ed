"""Verdicts on weights by themselves: zero, constant, copied, out of scale with their neighbours, left at default."""

from collections.abc import Sequence

import torch

from initlab.diagnostics.examine import Diagnosis
from initlab.diagnostics.rules.remedy import init_remedy
from initlab.diagnostics.rules.scale import ScaleRule, fan_out_rule, out_of_scale_calls, times_text
from initlab.diagnostics.trace.records import Call
from initlab.report.findings.record import SEVERITIES, Finding, capitalize_first, format_factor, name_layers
from initlab.report.findings.units import COPIED_FRACTION, COPIES_TEXT, zero_layer_sentence


def judge_weight_values(found: Diagnosis) -> list[Finding]:
    """Judge the weights; in a fixed order, causes before what follows from them."""
    calls = [call for call in found.calls if call.facts is not None]
    bad = [*nonfinite_weights(calls), *zero_weights(found), *copied_units(calls), *out_of_scale_weights(calls)]
    blamed = frozenset(layer for verdict in bad for layer in verdict.layers)
    return [
        *bad,
        *identical_layers(calls),
        *scaled_by_fan_out(found),
        *default_weights(found, blamed),
        *weights_without_call(found.calls),
    ]


def nonfinite_weights(calls: Sequence[Call]) -> list[Finding]:
    """Weights that hold NaN or infinity."""
    bad = [call.layer for call in calls if call.facts is not None and not call.facts.finite]
    if not bad:
        return []
    text = f"The weights of {name_layers(bad)} hold NaN or infinite values."
    return [Finding("fault", "nonfinite_weight", tuple(bad), text, "initialize these layers again")]


def is_zero_weight(call: Call) -> bool:
    """Whether a layer's weight is all zero; parts q and k of attention may be, and a single element is no layer."""
    f = call.facts
    return f is not None and f.constant and f.square == 0 and f.elements > 1 and f.kind != "unknown" and not f.tied


def zero_weights(found: Diagnosis) -> list[Finding]:
    """Layers of zeros: harmless at the end of a branch, slow in a readout, fatal in between."""
    zero = [
        c for c in found.calls if is_zero_weight(c) and c.ran and "sum" not in c.into and c.facts and not c.facts.part
    ]
    if not zero:
        return []
    ends = readout_indices(found)
    inner = [call for call in zero if call.index not in ends]
    if not inner:
        text = (
            f"The readout, {name_layers(_layer_names(zero))}, is all zeros: at first every input gets the same output, and the "
            "layers below get no gradient until the second step. Some networks do this on purpose."
        )
        return [Finding("note", "zero_readout", _layer_names(zero), text)]
    weights = [call for call in found.calls if call.facts is not None and call.facts.kind != "embedding"]
    act = inner[0].activation
    alike = act is not None and float(act(torch.zeros(()))) != 0
    every = len(inner) > 1 and all(map(is_zero_weight, weights))
    text = zero_layer_sentence(_layer_names(inner), every, alike)
    remedy = "initialize it at random like any other; only the end of a residual branch, or a readout, may be zero"
    remedy = (init_remedy(act) if every else "") or remedy
    return [Finding("fault", "zero_layer", _layer_names(inner), text, remedy)]


def _layer_names(calls: Sequence[Call]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(call.layer for call in calls))


def readout_indices(found: Diagnosis) -> set[int]:
    """Return the indices of calls that feed no other call: readouts, one per output."""
    feeding = {source for call in found.calls for source in call.sources}
    return {call.index for call in found.calls if call.ran and call.index not in feeding}


def copied_units(calls: Sequence[Call]) -> list[Finding]:
    """Units that start as copies of one another."""
    verdicts = []
    for severity in SEVERITIES:
        bad = [call for call in calls if _copies_severity(call) == severity]
        if not bad:
            continue
        names = _layer_names(bad)
        first = bad[0]
        assert first.facts is not None
        total = first.facts.units * first.facts.groups
        copied = int(first.stats["duplicate_units"])
        what = "all weights are equal" if first.facts.constant else f"{copied} of {total} units are copies"
        text = f"{capitalize_first(name_layers(names))} cannot break symmetry: in {first.layer or 'it'} {what}. {COPIES_TEXT}"
        verdicts.append(Finding(severity, "copied_units", names, text, "draw these weights at random"))
    return verdicts


def _copies_severity(call: Call) -> str | None:
    """How bad copies in this layer are, None if there are none; in an identity or another pattern they are meant."""
    facts, count = call.facts, call.stats.get("duplicate_units", 0)
    if facts is None or facts.kind in ("unknown", "embedding") or not count or is_zero_weight(call):
        return None
    if facts.patterned and not facts.constant:
        return "note"
    return "fault" if count >= COPIED_FRACTION * facts.units * facts.groups or facts.constant else "warning"


def identical_layers(calls: Sequence[Call]) -> list[Finding]:
    """Find layers whose tensors hold the same values without being one tensor."""
    groups = list(dict.fromkeys(call.facts.twins for call in calls if call.facts is not None and call.facts.twins))
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
    """Layers whose weights are many times larger or smaller than the law of their neighbours promises."""
    verdicts = []
    for call, law, off in out_of_scale_calls(calls):
        larger = off > 1
        times = times_text(off if larger else 1 / off)
        text = (
            f"{capitalize_first(name_layers([call.layer]))} has weights {times} {'larger' if larger else 'smaller'} than the "
            f"other layers, which follow {law.text}."
        )
        normed = "norm" in call.into
        if normed:
            text += " The norm behind it hides that from the signal, but not from the size of its gradient."
        remedy = (
            f"{'divide' if larger else 'multiply'} its weights by {times.rstrip('×')}, or initialize it like the others"
        )
        verdicts.append(Finding("warning" if normed else "fault", "out_of_scale", (call.layer,), text, remedy))
    return verdicts


def scaled_by_fan_out(found: Diagnosis) -> list[Finding]:
    """Weights scaled by their fan_out where the signal needs fan_in: a transposed shape, or mode=fan_out."""
    law: ScaleRule | None = fan_out_rule(found)
    if law is None:
        return []
    worst = max(law.ratios, key=lambda pair: abs(pair[1] - 1) if pair[1] > 1 else 1 / pair[1])
    name, ratio = worst
    text = (
        f"The weights are scaled by fan_out where the signal sums fan_in inputs: Var·fan_out is {law.value:.3g} in all "
        f"layers, and the mean square of the signal changes by fan_in/fan_out at each, by {format_factor(ratio)} at "
        f"layer {name}."
    )
    remedy = (
        "if the shape was taken for (in, out), transpose it; else use mode=fan_in (mode=fan_out keeps gradients "
        "instead, and is right only if that was meant)"
    )
    return [Finding("warning", "scaled_by_fan_out", tuple(n for n, _ in law.ratios), text, remedy)]


def default_weights(found: Diagnosis, blamed: frozenset[str] = frozenset()) -> list[Finding]:
    """Layers that still hold torch's own draw; those `blamed` for something else are no comparison."""
    ends = readout_indices(found)
    drawn = [
        c
        for c in found.calls
        if c.ran and c.facts is not None and c.facts.kind not in ("unknown", "embedding") and c.index not in ends
        if c.layer not in blamed
    ]
    left = [call for call in drawn if call.facts is not None and call.facts.default]
    if drawn and len(left) == len(drawn):
        return [Finding("note", "default_everywhere", _layer_names(left), "Every layer holds torch's default weights.")]
    # attention's default is Glorot's rule, which others choose too; its output layer is often left as it is
    left = [c for c in left if c.facts is not None and not c.facts.part and not c.layer.endswith("out_proj")]
    if not left:
        return []
    names = _layer_names(left)
    rest = len(drawn) - len(left)
    others = f"the other {rest} layers were" if rest > 1 else "the other layer was"
    text = (
        f"{capitalize_first(name_layers(names))} still {'hold' if len(names) > 1 else 'holds'} torch's default weights, "
        f"U(±1/√fan_in), while {others} initialized differently."
    )
    severity = "note" if all("norm" in call.into for call in left) else "warning"
    return [Finding(severity, "left_at_default", names, text, "initialize the whole module, not a part of it")]


def weights_without_call(calls: Sequence[Call]) -> list[Finding]:
    """Weights that took no part in the forward pass."""
    names = tuple(call.layer for call in calls if not call.ran)
    if not names:
        return []
    text = f"{capitalize_first(name_layers(names))} took no part in this forward pass, so nothing is known of what it does."
    return [Finding("note", "never_ran", names, text)]
