"""Verdicts on the signal and its gradient along plain chains of layers, where theory says what keeps them alive.

A chain is a run of layers each of which is fed by the one before it through nothing but an activation: no norm, no sum,
no attention, no gate. Elsewhere a scale does not add up over layers, and nothing is said.
"""

import math
from dataclasses import dataclass
from statistics import median

from initlab.activations import Activation
from initlab.diagnostics import Call, Diagnosis
from initlab.causes.record import Verdict, listed, power_of_ten
from initlab.verdicts.remedy import needed, remedy_for

PLAIN = {"activation", "pool", "scale", "shift"}

LONG = 3
"""Hidden layers from which on a chain has a trend."""

WARNS, FAULTS = 1e3, 1e6
"""Factors on a mean square, over the whole chain, from which on it is a warning and a fault."""

ALIKE, LOST = 1e-4, 1e-6
"""1 − c below which two inputs can hardly be told apart, and below which not at all."""


@dataclass(frozen=True)
class Chain:
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

    def band(self) -> float:
        """Standard deviation that ln(mean square) gets from finite widths alone: √Σ 5/n, as for ReLU.

        Source: Hanin and Rolnick 2018, *How to start training*; SCIENCE: E[R²] = ∏(1 + 5/n).
        """
        return math.sqrt(sum(5 / max(call.units, 1) for call in self.calls))

    def change(self, stat: str) -> float | None:
        """ln of last over first of a mean square, without the steps whose cause is known; None where it cannot be."""
        total = 0.0
        for one, two in zip(self.calls, self.calls[1:], strict=False):
            a, b = (_size(call, stat) for call in (one, two))
            if two.layer in self.explained or one.layer in self.explained:
                continue
            if a is None or b is None or not (0 < a < math.inf and 0 < b < math.inf):
                return None
            total += math.log(b / a)
        return total


def _size(call: Call, stat: str) -> float | None:
    # Of gradients the sum over units and positions: a map that shrinks spreads the same gradient over fewer of them.
    value = call.stats.get(stat)
    return value if value is None or stat == "q" else value * call.samples * call.units


def chains(found: Diagnosis, explained: frozenset[str]) -> list[Chain]:
    """Return the plain chains of a network of at least `LONG` hidden layers, longest first."""
    by_index = {call.index: call for call in found.calls if call.ran and not call.aside}
    before: dict[int, int] = {}
    for call in by_index.values():
        words = {word for trace in call.fed.values() for word in trace}
        if call.sources and words <= PLAIN and "norm" not in by_index[call.sources[0]].into:
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
        if len(calls) >= LONG:
            found_chains.append(Chain(tuple(calls), explained))
    return sorted(found_chains, key=lambda chain: -len(chain.calls))


def of_signal(found: Diagnosis, explained: frozenset[str]) -> list[Verdict]:
    """Judge signals, gradients and correlations; `explained` layers are left out of every trend."""
    verdicts: list[Verdict] = []
    for chain in chains(found, explained)[:1]:
        verdicts += [*signal(chain), *gradient(chain), *alike(chain)]
    if found.idle_norms:  # the network that trains has another scale
        return [*_one_remedy(verdicts), *idle(found), *([] if verdicts or explained else lost(found))]
    verdicts = [*_one_remedy(verdicts), *stream(found)]
    if verdicts or explained:
        return verdicts
    return [*confident(found), *lost(found)]


def _one_remedy(verdicts: list[Verdict]) -> list[Verdict]:
    # Signal and gradient die together: the same cure need not be said twice.
    return [v if i == 0 else Verdict(v.severity, v.name, v.layers, v.sentence) for i, v in enumerate(verdicts)]


def _bad(change: float | None, band: float) -> str | None:
    """Severity of a trend: beyond both a fixed factor and what finite width alone does."""
    if change is None or abs(change) < max(math.log(WARNS), 5 * band + band**2 / 2):
        return None
    return "fault" if abs(change) >= math.log(FAULTS) else "warning"


def signal(chain: Chain) -> list[Verdict]:
    """Whether the signal dies or explodes on its way up."""
    change = chain.change("q")
    severity = _bad(change, chain.band())
    if severity is None or change is None:
        return []
    first, last = chain.calls[0].layer, chain.calls[-1].layer
    steps = len(chain.calls) - 1
    grows = change > 0
    text = (
        f"The signal {'explodes' if grows else 'dies'}: its size changes by {math.exp(change / 2 / steps):.2g}× per "
        f"layer from {first} to {last}, {power_of_ten(math.exp(change / 2))} over {steps} layers.{_why(chain)}"
    )
    return [
        Verdict(severity, "signal_explodes" if grows else "signal_dies", (first, last), text, remedy_for(chain.act))
    ]


def gradient(chain: Chain) -> list[Verdict]:
    """Whether the gradient dies or explodes on its way down."""
    change = chain.change("grad_mean_square")
    severity = _bad(change, chain.band())
    if severity is None or change is None:
        return []
    first, last = chain.calls[0], chain.calls[-1]
    steps = len(chain.calls) - 1
    grows = change < 0  # larger at the first layer than at the last: it grows on its way down
    text = (
        f"The gradient {'explodes' if grows else 'dies'} on its way down: its length changes by "
        f"{math.exp(-change / 2 / steps):.2g}× per layer from {last.layer} to {first.layer}, "
        f"{power_of_ten(math.exp(-change / 2))} over {steps} layers.{_why(chain)}"
    )
    if underflows(first):
        size = math.sqrt(first.stats["grad_mean_square"])
        text += f" At {first.layer} its size is {size:.1e}: not zero, but too small for its precision, it underflows."
    name = "gradient_explodes" if grows else "gradient_dies"
    return [Verdict(severity, name, (first.layer, last.layer), text, remedy_for(chain.act))]


def underflows(call: Call) -> bool:
    """Whether all of a layer's gradient is too small for its precision."""
    return call.stats.get("grad_underflow", 0) >= call.samples * call.units > 0


def _why(chain: Chain) -> str:
    want = needed(chain.act)
    if not want or not math.isfinite(chain.sigma):
        return ""
    return f" The weights have std {chain.sigma:.3g}/√fan_in; {want}."


def alike(chain: Chain) -> list[Verdict]:
    """Whether all inputs come to look the same."""
    first, last = chain.calls[0], chain.calls[-1]
    before, after = first.stats.get("c"), last.stats.get("c")
    if before is None or after is None or before > 0.9 or 1 - after > ALIKE or chain.explained:
        return []
    where = next(call for call in chain.calls if 1 - call.stats.get("c", 0.0) <= ALIKE)
    text = (
        f"All inputs look the same from {listed([where.layer])} on: the correlation of two different inputs rises from "
        f"{before:.2f} to {after:.6f}, so the layers behind cannot tell them apart.{_why(chain)}"
    )
    severity = "fault" if 1 - after <= LOST else "warning"
    return [Verdict(severity, "inputs_alike", (where.layer,), text, remedy_for(chain.act))]


def stream(found: Diagnosis) -> list[Verdict]:
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
    if not math.isfinite(growth) or growth < WARNS:
        return []
    each = growth ** (1 / len(run))
    text = (
        "The residual stream explodes: every branch adds in proportion to what the stream holds already, so that its "
        f"size grows {math.sqrt(each):.2g}× per branch from {run[0].name or 'the first'} to "
        f"{run[-1].name or 'the last'}, {power_of_ten(math.sqrt(growth))} over {len(run)} branches."
    )
    remedy = (
        f"scale the branches: multiply each by 1/√{len(run)} = {len(run) ** -0.5:.2g}, start the last layer of each at "
        "zero, or put a norm at the start of each branch"
    )
    severity = "fault" if growth >= FAULTS else "warning"
    return [Verdict(severity, "stream_explodes", (run[0].name, run[-1].name), text, remedy)]


def idle(found: Diagnosis) -> list[Verdict]:
    """Say that batch norms do nothing yet, and that nothing is said of what they will set right."""
    some = "One batch norm is" if found.idle_norms == 1 else f"{found.idle_norms} batch norms are"
    text = (
        f"{some} in evaluation mode without having seen a batch: signals pass as they are, and their size behind is "
        "not the one that training starts from."
    )
    return [Verdict("note", "idle_norms", ("(model)",), text, "look at the model in training mode: model.train()")]


def confident(found: Diagnosis) -> list[Verdict]:
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
    return [Verdict("warning", "loss_too_high", ("(model)",), text, "make the weights of the last layer smaller")]


def lost(found: Diagnosis) -> list[Verdict]:
    """Layers whose gradient is exactly zero, or too small for its precision.

    Those of a residual branch that adds nothing for now are left out: its end is zero, which is good practice, or
    stochastic depth has dropped it on every input of this batch.
    """
    idle = {index for s in found.sums if s.branch == 0 for index in range(s.before + 1, s.after + 1)}
    zero = tuple(c.layer for c in found.calls if c.stats.get("grad_mean_square") == 0 and c.index not in idle)
    if zero:
        text = f"No gradient reaches {listed(zero)}: it is exactly zero there, and these layers cannot learn."
        return [Verdict("warning", "no_gradient", zero, text)]
    small = tuple(call.layer for call in found.calls if underflows(call))
    if small:
        text = f"The gradient at {listed(small)} is not zero, but too small for its precision: it underflows."
        return [Verdict("warning", "underflow", small, text)]
    return []
