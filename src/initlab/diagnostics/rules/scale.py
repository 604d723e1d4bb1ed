"""The law that the weights of a network follow together, and the layers that do not follow it."""

import math
from collections.abc import Callable, Sequence
from statistics import median

from initlab.diagnostics.trace.records import Call
from initlab.diagnostics.weight_facts import WeightFacts

MIN_FACTOR, MIN_FACTOR_AT_ENDS = 6.0, 20.0
"""Factors on the std from which a layer counts as out of scale; first layers and readouts may differ on purpose."""

MAX_OUTLIERS = 0.1
"""At most this fraction of a group can be out of scale with the rest; more of them follow a law of their own."""

MIN_DEVIATIONS = 5.0
"""Robust standard deviations between an outlier and the others, in logarithms."""

MAX_SPREAD = 0.3
"""Robust spread of ln Var under which layers follow a law; otherwise the law with the fewest outliers is used."""

SCALED_KINDS = {"dense": "dense", "bilinear": "dense", "packed": "dense", "conv": "conv", "transposed_conv": "conv"}

MODES: dict[str, Callable[[WeightFacts], float]] = {
    "fan_in": lambda facts: facts.fan_in,
    "fan_avg": lambda facts: (facts.fan_in + facts.fan_out) / 2,
    "fan_out": lambda facts: facts.fan_out,
    "fan_max": lambda facts: max(facts.fan_in, facts.fan_out),
    "1": lambda facts: 1.0,
    "fan_out·groups": lambda facts: facts.fan_out * facts.groups,
}
"""Name of a law -> the number n of Var = value / n."""

Group = Sequence[tuple[Call, WeightFacts]]


def times_text(x: float) -> str:
    """Write a factor: `30×`.

    >>> times_text(29.7), times_text(6.54)
    ('30×', '6.5×')
    """
    return f"{x:.0f}×" if x >= 10 else f"{x:.1f}×"


def scaled_weights(calls: Sequence[Call]) -> Group:
    """Return the weights that have a scale, in order of their calls."""
    weights = [(call, call.facts) for call in calls if call.facts is not None]
    return [
        (call, facts)
        for call, facts in weights
        if facts.kind in SCALED_KINDS and facts.square > 0 and facts.finite and math.isfinite(facts.fan_in)
        if not facts.tied and facts.elements >= 8
    ]


def out_of_scale_calls(calls: Sequence[Call]) -> list[tuple[Call, str, float]]:
    """Return the layers whose std is out of scale with layers of their kind: call, the others' law, and the factor."""
    groups: dict[str, list[tuple[Call, WeightFacts]]] = {}
    for call, facts in scaled_weights(calls):
        # Most libraries count the fans of grouped convolutions as if they had one group: a law of their own.
        kind = SCALED_KINDS[facts.kind] + (" in groups" if facts.groups > 1 else "")
        groups.setdefault(kind, []).append((call, facts))
    if all(len(group) < 3 for group in groups.values()):
        groups = {"all": [pair for group in groups.values() for pair in group]}
    return [outlier for group in groups.values() for outlier in _outliers(group)]


def _outliers(group: Group) -> list[tuple[Call, str, float]]:
    """Measure a group by the law that leaves the fewest layers out, and return those."""
    if len(group) < 3:
        return []
    fits = {mode: _deviations(mode, group) for mode in MODES}
    tight = [mode for mode, (_, deviations) in fits.items() if _robust_std(deviations) < MAX_SPREAD]
    outliers = {mode: _deviating(group, fits[mode][1]) for mode in tight or MODES}
    mode = min(outliers, key=lambda name: len(outliers[name]))
    if len(outliers[mode]) > max(1, int(MAX_OUTLIERS * len(group))):
        return []
    law = f"std {math.sqrt(math.exp(fits[mode][0])):.3g}" + ("" if mode == "1" else f"/√{mode}")
    return [(call, law, factor) for call, factor in outliers[mode]]


def _deviating(group: Group, deviations: Sequence[float]) -> list[tuple[Call, float]]:
    spread = _robust_std(deviations)
    ends = (group[0][0], group[-1][0])
    outliers = []
    for (call, _), deviation in zip(group, deviations, strict=True):
        factor = math.exp(deviation / 2)
        # The end of a residual branch may be small on purpose, but not larger than everything else.
        small = factor < 1 and ("sum" in call.into or "gate" in call.into)
        bound = MIN_FACTOR_AT_ENDS if call in ends else MIN_FACTOR
        if not small and max(factor, 1 / factor) >= bound and abs(deviation) > MIN_DEVIATIONS * spread:
            outliers.append((call, factor))
    return outliers


def _deviations(mode: str, group: Group) -> tuple[float, list[float]]:
    logs = [math.log(facts.square * MODES[mode](facts)) for _, facts in group]
    middle = median(logs)
    return middle, [x - middle for x in logs]


def _robust_std(deviations: Sequence[float]) -> float:
    # A standard deviation that a few outliers do not move: the median of the sizes, scaled to a normal law.
    return 1.4826 * median(map(abs, deviations))


def fan_out_rule(calls: Sequence[Call]) -> tuple[float, dict[str, float]]:
    """Return whether layers that no norm follows obey Var = value/fan_out and not Var ∝ 1/fan_in.

    Only layers fed by data or an activation count, and at least three of them must be far from square.

    Returns:
        The value, and layer -> fan_in/fan_out of the layers that are far from square; none where they do not obey.
    """
    plain = [
        (call, facts)
        for call, facts in scaled_weights(calls)
        if call.ran and "norm" not in call.into and call.fed_words <= {"activation", "pool", "shift"}
    ]
    distinct = [(c, f) for c, f in plain if abs(math.log(f.fan_in / f.fan_out)) >= math.log(2)]
    if len(distinct) < max(3, 0.5 * len(plain)):
        return 0.0, {}
    follows = {mode: _follows(mode, distinct) for mode in ("fan_out", "fan_in", "fan_avg")}
    # Of one ratio alone any constant on fan_in looks the same.
    one_ratio = len({round(math.log(f.fan_in / f.fan_out), 1) for _, f in distinct}) < 2
    if one_ratio or not follows["fan_out"] or follows["fan_in"] or follows["fan_avg"]:
        return 0.0, {}
    return math.exp(_deviations("fan_out", distinct)[0]), {c.layer: f.fan_in / f.fan_out for c, f in distinct}


def _follows(mode: str, group: Group) -> bool:
    """Return whether Var · fan is one number in at least four of five layers, up to the noise of a draw."""
    _, deviations = _deviations(mode, group)
    close = [abs(d) < 0.1 + 6 * math.sqrt(2 / f.elements) for (_, f), d in zip(group, deviations, strict=True)]
    return sum(close) >= 0.8 * len(close)
