"""Which law the weights of a network follow together, and which layers do not follow it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from initlab.diagnostics.examine import Diagnosis
from initlab.diagnostics.trace.records import Call
from initlab.diagnostics.weight_facts import WeightFacts

MIN_FACTOR, MIN_FACTOR_AT_ENDS = 6.0, 20.0
"""Factors on the std from which a layer counts as out of scale; first layers and readouts may differ on purpose."""

MAX_OUTLIERS = 0.1
"""At most this fraction of a group can be out of scale with the rest; more of them follow a law of their own."""

MIN_DEVIATIONS = 5.0
"""An outlier lies at least this many robust standard deviations of the others' logarithms away."""

MAX_SPREAD = 0.3
"""Robust spread of ln Var under which layers follow a law; where they follow none, the kindest one is taken."""

SCALED_KINDS = {"dense": "dense", "bilinear": "dense", "packed": "dense", "conv": "conv", "transposed_conv": "conv"}


@dataclass(frozen=True)
class ScaleRule:
    """What layers have in common: Var = value / fan; `ratios`: layer and fan_in/fan_out where that tells."""

    text: str
    value: float
    ratios: tuple[tuple[str, float], ...] = ()


def fan_of_mode(mode: str, facts: WeightFacts) -> float:
    """The number by which a mode divides."""
    n, m = facts.fan_in, facts.fan_out
    known = {"fan_in": n, "fan_out": m, "fan_avg": (n + m) / 2, "fan_max": max(n, m), "1": 1.0}
    return known[mode] if mode in known else m * facts.groups


MODES = ("fan_in", "fan_avg", "fan_out", "fan_max", "1", "fan_out·groups")


def times_text(x: float) -> str:
    """Say how many times: `30×`.

    >>> times_text(29.7), times_text(6.54)
    ('30×', '6.5×')
    """
    return f"{x:.0f}×" if x >= 10 else f"{x:.1f}×"


def _scaled_facts(call: Call) -> WeightFacts | None:
    f = call.facts
    usable = (
        f is not None
        and f.kind in SCALED_KINDS
        and f.square > 0
        and f.finite
        and math.isfinite(f.fan_in)
        and not f.tied
    )
    return f if usable and f is not None and f.elements >= 8 else None


def out_of_scale_calls(calls: Sequence[Call]) -> list[tuple[Call, ScaleRule, float]]:
    """Return the layers whose std is out of scale with layers of their kind: call, the others' law, and the factor."""
    groups: dict[str, list[tuple[Call, WeightFacts]]] = {}
    for call in calls:
        facts = _scaled_facts(call)
        if facts is not None:
            # most libraries count the fans of grouped convolutions as if they had one group: a law of their own
            groups.setdefault(SCALED_KINDS[facts.kind] + (" in groups" if facts.groups > 1 else ""), []).append(
                (call, facts)
            )
    if all(len(group) < 3 for group in groups.values()):
        groups = {"all": [pair for group in groups.values() for pair in group]}
    return [found for group in groups.values() for found in _outliers(group)]


def _outliers(group: Sequence[tuple[Call, WeightFacts]]) -> list[tuple[Call, ScaleRule, float]]:
    """Measure a group by the law that leaves the fewest layers out, and name those."""
    if len(group) < 3:
        return []
    tight = [mode for mode in MODES if _robust_std(_deviations(mode, group)[1]) < MAX_SPREAD]
    off, mode = min(((_deviating(m, group), m) for m in tight or MODES), key=lambda fit: len(fit[0]))
    if len(off) > max(1, int(MAX_OUTLIERS * len(group))):
        return []
    value = math.exp(_deviations(mode, group)[0])
    return [(call, ScaleRule(_rule_text(mode, value), value), times) for call, times in off]


def _deviating(mode: str, group: Sequence[tuple[Call, WeightFacts]]) -> list[tuple[Call, float]]:
    _, deviations = _deviations(mode, group)
    spread = _robust_std(deviations)
    ends = (group[0][0], group[-1][0])
    found = []
    for (call, _), deviation in zip(group, deviations, strict=True):
        times = math.exp(deviation / 2)
        # the end of a residual branch may be small on purpose; larger than everything else is never one
        small = times < 1 and ("sum" in call.into or "gate" in call.into)
        bound = MIN_FACTOR_AT_ENDS if call in ends else MIN_FACTOR
        if not small and max(times, 1 / times) >= bound and abs(deviation) > MIN_DEVIATIONS * spread:
            found.append((call, times))
    return found


def _deviations(mode: str, group: Sequence[tuple[Call, WeightFacts]]) -> tuple[float, list[float]]:
    logs = [math.log(facts.square * fan_of_mode(mode, facts)) for _, facts in group]
    middle = median(logs)
    return middle, [x - middle for x in logs]


def _robust_std(deviations: Sequence[float]) -> float:
    # A standard deviation that a few outliers do not move: the median of the sizes, scaled to a normal law.
    return 1.4826 * median(map(abs, deviations))


def _rule_text(mode: str, value: float) -> str:
    return f"std {math.sqrt(value):.3g}" if mode == "1" else f"std {math.sqrt(value):.3g}/√{mode}"


def fan_out_rule(found: Diagnosis) -> ScaleRule | None:
    """Return the law Var = value/fan_out where all layers that no norm follows obey it, and it is not Var ∝ 1/fan_in.

    Only layers fed by data or an activation count, and at least three of them must be far from square.
    """
    plain = []
    for call in found.calls:
        facts = _scaled_facts(call)
        fed = {word for words in call.fed.values() for word in words}
        if facts is not None and call.ran and "norm" not in call.into and fed <= {"activation", "pool", "shift"}:
            plain.append((call, facts))
    telling = [(c, f) for c, f in plain if abs(math.log(f.fan_in / f.fan_out)) >= math.log(2)]
    if len(telling) < 3 or len(telling) < 0.5 * len(plain):
        return None
    if not _follows("fan_out", telling) or _follows("fan_in", telling) or _follows("fan_avg", telling):
        return None
    if len({round(math.log(f.fan_in / f.fan_out), 1) for _, f in telling}) < 2:
        return None  # one ratio alone: any constant on fan_in looks the same
    value = math.exp(_deviations("fan_out", telling)[0])
    return ScaleRule(_rule_text("fan_out", value), value, tuple((c.layer, f.fan_in / f.fan_out) for c, f in telling))


def _follows(mode: str, group: Sequence[tuple[Call, WeightFacts]]) -> bool:
    """Whether Var · fan is one number in at least four of five layers, up to what drawing leaves open."""
    _, deviations = _deviations(mode, group)
    close = [abs(d) < 0.1 + 6 * math.sqrt(2 / f.elements) for (_, f), d in zip(group, deviations, strict=True)]
    return sum(close) >= 0.8 * len(close)
