"""Rules over the signal and its gradient along plain chains of layers, where theory gives what keeps their size.

A chain is a run of layers each of which is fed by the one before it through nothing but an activation: no norm, no sum,
no attention, no gate. Elsewhere scales do not multiply over layers, and no rule applies.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import median

from initlab.activations import Activation
from initlab.diagnostics.examine import NETWORK, Diagnosis
from initlab.diagnostics.rules.remedy import init_remedy, needed_std
from initlab.diagnostics.rules.units import call_stats
from initlab.diagnostics.trace.records import Call, StreamSum
from initlab.report.findings.record import Finding, format_factor, name_layers
from initlab.report.findings.start import zero_gradient_findings
from initlab.report.findings.trends import (
    FAULT_FACTOR,
    MIN_CHAIN,
    WARNING_FACTOR,
    correlation_findings,
    gradient_findings,
    signal_findings,
)

MEAN_FACTOR = 10
"""A mean of weights is not chance where its square exceeds their mean square divided by this."""

PLAIN_STEPS = {"activation", "pool", "scale", "shift"}


def judge_chains(diagnosis: Diagnosis, explained: Collection[str], known: Collection[str] = ()) -> list[Finding]:
    """Judge signals, gradients and correlations.

    Args:
        diagnosis: the diagnosis.
        explained: layers that have a named fault; every trend leaves them out.
        known: names of earlier findings; copied units, for one, make inputs look the same.
    """
    findings = judge_chain(longest_chain(diagnosis.calls), explained, known)
    if diagnosis.unused_norms:  # the network that trains has another scale
        zero = [] if findings or explained else zero_gradients(diagnosis)
        return [*findings, unused_norms_note(diagnosis.unused_norms), *zero]
    findings += residual_stream(diagnosis.sums)
    if findings or explained or known:
        return findings
    return [*loss_too_high(diagnosis), *zero_gradients(diagnosis)]


def longest_chain(calls: Sequence[Call]) -> list[Call]:
    """Return the longest plain chain of at least `MIN_CHAIN` hidden layers, [] where there is none."""
    by_index = {call.index: call for call in calls if call.ran and not call.in_gate}
    before: dict[int, int] = {}
    for call in by_index.values():
        if call.sources and call.fed_words <= PLAIN_STEPS and "norm" not in by_index[call.sources[0]].into:
            before[call.index] = call.sources[0]
    followed = set(before.values())
    chains = []
    for end in (index for index in before if index not in followed):
        row = [end]
        while row[-1] in before:
            row.append(before[row[-1]])
        chain = [by_index[index] for index in reversed(row)]
        if chain[-1].activation is None and any(call.activation is not None for call in chain):
            chain.pop()  # a readout has a scale of its own
        chains.append([call for call in chain if "q" in call.stats])
    return max((chain for chain in chains if len(chain) >= MIN_CHAIN), key=len, default=[])


def judge_chain(chain: Sequence[Call], explained: Collection[str], known: Collection[str]) -> list[Finding]:
    """Judge whether signal or gradient dies or explodes along a chain, and whether all inputs come to look the same."""
    if not chain:
        return []
    activations = {call.activation for call in chain}
    act = activations.pop() if len(activations) == 1 else None
    stats, remedy, why = call_stats(chain), init_remedy(act), _weights_text(chain, act)
    first, more = chain[0], ""
    if gradient_underflows(first):
        size = math.sqrt(first.stats["grad_mean_square"])
        more = f" At {first.layer} its size is {size:.1e}: not zero, but too small for its precision, it underflows."
    findings = [
        *signal_findings(stats, explained=explained, why=why, larger=remedy, smaller=remedy),
        *gradient_findings(stats, explained=explained, why=why, more=more, larger=remedy, smaller=remedy),
    ]
    if not explained and "copied_units" not in known:
        findings += correlation_findings(stats, why=why, remedy=remedy)
    return [*findings[:1], *(replace(finding, remedy="") for finding in findings[1:])]  # one remedy for all


def gradient_underflows(call: Call) -> bool:
    """Return whether all of a layer's gradient is too small for its precision."""
    return call.stats.get("grad_underflow", 0) >= call.samples * call.units > 0


def _weights_text(chain: Sequence[Call], act: Activation | None) -> str:
    facts = [call.facts for call in chain if call.facts is not None and call.facts.square > 0]
    squares = [one.square * one.fan_in for one in facts if not math.isnan(one.fan_in)]
    needed = needed_std(act)
    if not needed or not squares:
        return ""
    mean, square = median(one.mean for one in facts), median(c.facts.square for c in chain if c.facts is not None)
    if mean**2 * MEAN_FACTOR > square:
        return f" The weights have mean {mean:.3g}; {needed.replace('needs', 'needs mean 0 and std', 1)}."
    return f" The weights have std {math.sqrt(median(squares)):.3g}/√fan_in; {needed}."


def residual_stream(sums: Sequence[StreamSum]) -> list[Finding]:
    """Judge whether a residual stream grows geometrically: branches that are not scaled down, and no norm."""
    runs: list[list[StreamSum]] = [[]]
    for one in sums:
        # A sum belongs to the same stream where it starts near where the last one ended (an activation may halve it).
        last = runs[-1][-1].total if runs[-1] else 0.0
        if not (last > 0 and 0.25 <= one.stream / last <= 1.5):
            runs.append([])
        runs[-1].append(one)
    run = max(runs, key=lambda r: r[-1].total / r[0].stream if len(r) >= 4 and r[0].stream > 0 else 0.0)
    if len(run) < 4 or not run[0].stream > 0:
        return []
    growth = run[-1].total / run[0].stream
    if not math.isfinite(growth) or growth < WARNING_FACTOR:
        return []
    each = growth ** (1 / len(run))
    text = (
        "The residual stream explodes: every branch adds in proportion to what the stream holds already, so that its "
        f"size grows {math.sqrt(each):.2g}× per branch from {run[0].name or 'the first'} to "
        f"{run[-1].name or 'the last'}, {format_factor(math.sqrt(growth))} over {len(run)} branches."
    )
    remedy = (
        f"scale the branches: multiply each by 1/√{len(run)} = {len(run) ** -0.5:.2g}, start the last layer of each at "
        "zero, or put a norm at the start of each branch"
    )
    severity = "fault" if growth >= FAULT_FACTOR else "warning"
    return [Finding(severity, "stream_explodes", (run[0].name, run[-1].name), text, remedy)]


def unused_norms_note(count: int) -> Finding:
    """Note that batch norms change no signal yet, so that the scale behind them is not judged."""
    text = (
        f"{'One batch norm is' if count == 1 else f'{count} batch norms are'} in evaluation mode without having seen a "
        "batch: signals pass as they are, and their size behind is not the one that training starts from."
    )
    return Finding("note", "idle_norms", (NETWORK,), text, "look at the model in training mode: model.train()")


def loss_too_high(diagnosis: Diagnosis) -> list[Finding]:
    """Judge whether the outputs are so large that the network starts sure and wrong."""
    loss, classes = diagnosis.loss, diagnosis.classes
    if loss is None or classes is None or not math.isfinite(loss):
        return []
    chance = math.log(classes)
    noise = math.sqrt(sum(5 / call.units for call in diagnosis.calls if call.units))
    if loss - chance <= 5 * math.exp(5 * noise):
        return []
    text = (
        f"The loss starts at {loss:.3g}, where equal probabilities give ln({classes}) = {chance:.3g}: the outputs are "
        "so large that the network is sure, and wrong."
    )
    return [Finding("warning", "loss_too_high", (NETWORK,), text, "make the weights of the last layer smaller")]


def zero_gradients(diagnosis: Diagnosis) -> list[Finding]:
    """Find layers whose gradient is exactly zero, or too small for its precision.

    Layers of a residual branch that adds nothing at first are left out: its end is zero, which is good practice, or
    stochastic depth has dropped it on every input of this batch.
    """
    silent = {index for s in diagnosis.sums if s.branch == 0 for index in range(s.before + 1, s.after + 1)}
    if zero := zero_gradient_findings(call_stats([call for call in diagnosis.calls if call.index not in silent])):
        return zero
    small = tuple(call.layer for call in diagnosis.calls if gradient_underflows(call))
    if not small:
        return []
    text = f"The gradient at {name_layers(small)} is not zero, but too small for its precision: it underflows."
    return [Finding("warning", "underflow", small, text)]
