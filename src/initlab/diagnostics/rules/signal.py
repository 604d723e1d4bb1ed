"""Verdicts on the signal and its gradient along plain chains of layers, where theory says what keeps them alive.

A chain is a run of layers each of which is fed by the one before it through nothing but an activation: no norm, no sum,
no attention, no gate. Elsewhere a scale does not add up over layers, and nothing is said.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

from initlab.activations import Activation
from initlab.diagnostics.examine import Diagnosis
from initlab.diagnostics.rules.remedy import init_remedy, needed_std
from initlab.diagnostics.trace.records import Call
from initlab.report.findings import LayerStats, trends
from initlab.report.findings.record import Finding, format_factor, name_layers
from initlab.report.findings.trends import FAULT_FACTOR, MIN_CHAIN, WARNING_FACTOR

MEAN_FACTOR = 10
"""A mean of weights is no chance where its square exceeds their mean square divided by this."""

PLAIN_STEPS = {"activation", "pool", "scale", "shift"}


@dataclass(frozen=True)
class PlainChain:
    """Layers in a row, without a readout; `explained`: those whose own fault has been named already."""

    calls: tuple[Call, ...]
    explained: frozenset[str] = frozenset()

    @property
    def act(self) -> Activation | None:
        """The activation that all layers have, or None where they differ or it is unknown."""
        found = {call.activation for call in self.calls}
        return found.pop() if len(found) == 1 else None

    @property
    def sigma(self) -> float:
        """Typical std(W)·√fan_in, NaN where unknown."""
        scales = [c.facts.square * c.facts.fan_in for c in self.calls if c.facts is not None and c.facts.square > 0]
        known = [x for x in scales if x == x]
        return math.sqrt(median(known)) if known else math.nan

    @property
    def readings(self) -> list[LayerStats]:
        """Return what rules read of each layer."""
        return [LayerStats(call.layer, call.stats, call.units, call.samples) for call in self.calls]


def plain_chains(found: Diagnosis, explained: frozenset[str]) -> list[PlainChain]:
    """Return the plain chains of a network of at least `MIN_CHAIN` hidden layers, longest first."""
    by_index = {call.index: call for call in found.calls if call.ran and not call.in_gate}
    before: dict[int, int] = {}
    for call in by_index.values():
        words = {word for trace in call.fed.values() for word in trace}
        if call.sources and words <= PLAIN_STEPS and "norm" not in by_index[call.sources[0]].into:
            before[call.index] = call.sources[0]
    followed = set(before.values())
    found_chains = []
    for end in (i for i in by_index if i in before and i not in followed):
        row = [end]
        while row[-1] in before:
            row.append(before[row[-1]])
        calls = [by_index[i] for i in reversed(row)]
        if calls[-1].activation is None and any(call.activation is not None for call in calls):
            calls.pop()  # a readout has a scale of its own
        calls = [call for call in calls if "q" in call.stats]
        if len(calls) >= MIN_CHAIN:
            found_chains.append(PlainChain(tuple(calls), explained))
    return sorted(found_chains, key=lambda chain: -len(chain.calls))


def judge_chains(found: Diagnosis, explained: frozenset[str], known: Collection[str] = ()) -> list[Finding]:
    """Judge signals, gradients and correlations; `explained` layers are left out of every trend.

    Arguments: `known`: names of what has been found already; copied units, for one, make inputs look the same.
    """
    verdicts: list[Finding] = []
    for chain in plain_chains(found, explained)[:1]:
        verdicts += [
            *chain_signal(chain),
            *chain_gradient(chain),
            *([] if "copied_units" in known else chain_correlation(chain)),
        ]
    if found.unused_norms:  # the network that trains has another scale
        return [
            *_first_remedy_only(verdicts),
            *idle_norms_note(found),
            *([] if verdicts or explained else zero_gradients(found)),
        ]
    verdicts = [*_first_remedy_only(verdicts), *residual_stream(found)]
    if verdicts or explained or known:
        return verdicts
    return [*loss_too_high(found), *zero_gradients(found)]


def _first_remedy_only(verdicts: list[Finding]) -> list[Finding]:
    # Signal and gradient die together: the same cure need not be said twice.
    return [v if i == 0 else Finding(v.severity, v.name, v.layers, v.sentence) for i, v in enumerate(verdicts)]


def chain_signal(chain: PlainChain) -> list[Finding]:
    """Whether the signal dies or explodes on its way up."""
    cure = init_remedy(chain.act)
    return trends.signal_findings(
        chain.readings, explained=chain.explained, why=_weights_text(chain), larger=cure, smaller=cure
    )


def chain_gradient(chain: PlainChain) -> list[Finding]:
    """Whether the gradient dies or explodes on its way down."""
    first, cure, more = chain.calls[0], init_remedy(chain.act), ""
    if gradient_underflows(first):
        size = math.sqrt(first.stats["grad_mean_square"])
        more = f" At {first.layer} its size is {size:.1e}: not zero, but too small for its precision, it underflows."
    said = {"why": _weights_text(chain), "more": more, "larger": cure, "smaller": cure}
    return trends.gradient_findings(chain.readings, explained=chain.explained, **said)


def gradient_underflows(call: Call) -> bool:
    """Whether all of a layer's gradient is too small for its precision."""
    return call.stats.get("grad_underflow", 0) >= call.samples * call.units > 0


def _weights_text(chain: PlainChain) -> str:
    want = needed_std(chain.act)
    if not want or not math.isfinite(chain.sigma):
        return ""
    means = [c.facts.mean for c in chain.calls if c.facts is not None and c.facts.square > 0]
    if means and median(means) ** 2 * MEAN_FACTOR > median(c.facts.square for c in chain.calls if c.facts is not None):
        return f" The weights have mean {median(means):.3g}; {want.replace('needs', 'needs mean 0 and std', 1)}."
    return f" The weights have std {chain.sigma:.3g}/√fan_in; {want}."


def chain_correlation(chain: PlainChain) -> list[Finding]:
    """Whether all inputs come to look the same."""
    if chain.explained:
        return []
    return trends.correlation_findings(chain.readings, why=_weights_text(chain), remedy=init_remedy(chain.act))


def residual_stream(found: Diagnosis) -> list[Finding]:
    """Whether a residual stream grows geometrically: branches that are not scaled down, and no norm."""
    run: list = []
    runs = [run]
    for one in found.sums:
        # the same stream goes on where the next sum starts near where this one ended (an activation may halve it)
        goes_on = run and run[-1].total > 0 and 0.25 <= one.stream / run[-1].total <= 1.5
        if not goes_on:
            run = []
            runs.append(run)
        run.append(one)
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


def idle_norms_note(found: Diagnosis) -> list[Finding]:
    """Say that batch norms do nothing yet, and that nothing is said of what they will set right."""
    some = "One batch norm is" if found.unused_norms == 1 else f"{found.unused_norms} batch norms are"
    text = (
        f"{some} in evaluation mode without having seen a batch: signals pass as they are, and their size behind is "
        "not the one that training starts from."
    )
    return [Finding("note", "idle_norms", ("(model)",), text, "look at the model in training mode: model.train()")]


def loss_too_high(found: Diagnosis) -> list[Finding]:
    """Whether the outputs are so large that the network starts sure and wrong."""
    if found.loss is None or found.classes is None or not math.isfinite(found.loss):
        return []
    knows_nothing = math.log(found.classes)
    widths = [call.units for call in found.calls if call.units]
    band = math.sqrt(sum(5 / n for n in widths))
    if found.loss - knows_nothing <= 5 * math.exp(5 * band):
        return []
    text = (
        f"The loss starts at {found.loss:.3g}, where a network that knows nothing has ln({found.classes}) = "
        f"{knows_nothing:.3g}: the outputs are so large that it is sure, and wrong."
    )
    return [Finding("warning", "loss_too_high", ("(model)",), text, "make the weights of the last layer smaller")]


def zero_gradients(found: Diagnosis) -> list[Finding]:
    """Layers whose gradient is exactly zero, or too small for its precision.

    Those of a residual branch that adds nothing for now are left out: its end is zero, which is good practice, or
    stochastic depth has dropped it on every input of this batch.
    """
    idle = {index for s in found.sums if s.branch == 0 for index in range(s.before + 1, s.after + 1)}
    zero = tuple(c.layer for c in found.calls if c.stats.get("grad_mean_square") == 0 and c.index not in idle)
    if zero:
        text = f"No gradient reaches {name_layers(zero)}: it is exactly zero there, and these layers cannot learn."
        return [Finding("warning", "no_gradient", zero, text)]
    small = tuple(call.layer for call in found.calls if gradient_underflows(call))
    if small:
        text = f"The gradient at {name_layers(small)} is not zero, but too small for its precision: it underflows."
        return [Finding("warning", "underflow", small, text)]
    return []
