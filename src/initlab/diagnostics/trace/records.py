"""What one pass through a network left behind: one record per call of a layer, one per sum in a residual stream."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from initlab.activations import Activation
from initlab.diagnostics.stats import STATS, count_underflow, saturated_fraction
from initlab.diagnostics.weight_facts import WeightFacts, read_weight_facts
from initlab.diagnostics.weights import Weight

Origins: TypeAlias = dict[int, frozenset[str]]
"""Where a tensor comes from: index of a call (0: the data) -> words for what happened to it since (`step_of`)."""

DIRECT: frozenset[str] = frozenset()


@dataclass
class Call:
    """One call of a layer during a forward pass, and what was measured of it.

    Attributes:
        index: its place in the order of execution, from 1; a layer called twice has two.
        layer: name of the layer.
        weight: its weight; None for a module with several of its own (a recurrent one).
        fed: what its input is made of.
        stats: name of a statistic -> value.
        activation: what is applied to its preactivations, where that is known.
        entering: mean and standard deviation of what the activation is given, behind a norm where there is one.
        into: words for what its preactivations go into before an activation (`norm`, `sum`, …).
        aside: part of a gate, a side path that only multiplies the signal it comes from (squeeze and excitation).
        samples, units: how many values each unit has, and how many units.
        ran: False for a weight that took no part in the pass.
        facts: about the weight; at the first call of a layer.
    """

    index: int
    layer: str
    weight: Weight | None
    fed: Origins = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    activation: Activation | None = None
    entering: tuple[float, float] | None = None
    into: set[str] = field(default_factory=set)
    samples: int = 0
    units: int = 0
    channels_first: bool = False
    ran: bool = True
    aside: bool = False
    facts: WeightFacts | None = None

    @property
    def sources(self) -> list[int]:
        """Indices of the calls that feed it, latest first."""
        return sorted((i for i in self.fed if i), reverse=True)

    def forget_activation(self) -> None:
        """Take back an activation that turned out to be part of a larger function, such as x · sigmoid(x)."""
        self.activation = self.entering = None
        for name in ("saturated_fraction", "dead_fraction"):
            self.stats.pop(name, None)

    def measure(self, kind: str, tensor: Tensor, batch: int, precision: torch.dtype | None = None) -> None:
        """Write the statistics of preactivations, postactivations or gradients at preactivations.

        `batch`: number of inputs; `precision` to judge underflow by, the tensor's own if None.
        """
        x = self._by_unit(tensor.detach())
        self.write(kind, x)
        if kind == "preactivation":
            self.samples, self.units = x.shape[1:]
            by_input = inputs_first(tensor.detach(), batch)
            if by_input is not None:
                self.write("inputs", by_input[None].double())
        if kind in ("preactivation", "delta"):
            lost = float(count_underflow(tensor.detach()[None], precision)[0])
            if lost:
                self.stats["underflow" if kind == "preactivation" else "grad_underflow"] = lost

    def measure_entering(self, tensor: Tensor, act: Activation) -> None:
        """Note where `tensor`, the input of `act`, lies, and write the fraction of it outside the interval of `act`."""
        x = tensor.detach().double()[None]
        self.entering = float(x.mean()), float(x.std(correction=0))
        if act.saturation is not None:
            self.stats["saturated_fraction"] = float(saturated_fraction(x, act.saturation)[0])

    def measure_weight(self) -> None:
        """Write the statistics of the weight itself."""
        if self.weight is not None:
            part = self.weight.part(self.weight.tensor.detach())
            self.write("weight", part[None].double())
            self.write("matrix", self.weight.matrix()[None])
            self.write("units", self.weight.units()[None])
            self.facts = read_weight_facts(self.weight, copies=self.stats["duplicate_units"] > 0)

    def measure_gradient(self, gradient: Tensor) -> None:
        """Write the statistics of the weight's gradient, given as stored."""
        if self.weight is not None:
            self.write("gradient", self.weight.part(gradient.detach())[None].double())

    def write(self, kind: str, x: Tensor) -> None:
        """Write every statistic of this kind of tensor, whose first axis has length 1."""
        for stat in STATS.values():
            if stat.of == kind:
                value = float(stat.measure(x)[0])
                if value == value or kind not in (
                    "inputs",
                    "matrix",
                    "spectrum",
                ):  # there NaN says that there is no answer
                    self.stats[stat.name] = value

    def _by_unit(self, tensor: Tensor) -> Tensor:
        # [1, samples, units], float64: channels of a map are units, its positions samples.
        x = tensor.double()
        if self.channels_first and x.dim() > 2:
            x = x.movedim(1, -1)
        return x.reshape(1, -1, x.shape[-1] if x.dim() else 1)


@dataclass(frozen=True)
class StreamSum:
    """A sum of two signals in module `name`: a branch joins a stream.

    `after` and `before` are the latest calls in the branch and in the stream, the moments second ones.
    """

    name: str
    after: int
    before: int
    stream: float
    branch: float
    total: float


def inputs_first(tensor: Tensor, batch: int) -> Tensor | None:
    """View a tensor as [batch, features], or return None where no axis goes with the inputs of the batch.

    The first axis may hold several rows per input (windows of an image), the second one the inputs themselves
    (sequences first).
    """
    if batch < 2 or tensor.dim() == 0 or tensor.numel() == 0:
        return None
    if tensor.shape[0] % batch == 0:
        return tensor.reshape(batch, -1)
    if tensor.dim() > 1 and tensor.shape[1] == batch:
        return tensor.transpose(0, 1).reshape(batch, -1)
    return None


def second_moment(tensor: Tensor) -> float:
    """Second moment of a tensor, summed in float64."""
    return float(tensor.detach().double().square().mean())


class Provenance:
    """Remembers where each tensor of a forward pass comes from, as long as the tensor lives."""

    def __init__(self) -> None:
        self._of: Any = WeakTensorKeyDictionary()

    def traced(self, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> list[tuple[Tensor, Origins]]:
        """Return the tensors among the arguments of a call whose origin is known, with it."""
        found = []
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(tensor, Tensor) and (trace := self._of.get(tensor)) is not None:
                    found.append((tensor, trace))
        return found

    def mark(self, value: Any, trace: Origins) -> None:
        """Say where a tensor, or every tensor of a tuple, comes from."""
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor):
                self._of[tensor] = trace


def merge_origins(traces: Iterable[Origins], word: str | None = None) -> Origins:
    """Join the origins of several tensors, and add a word for what was done to them.

    >>> merge_origins([{1: frozenset()}, {2: frozenset({"norm"})}], "sum")[1]
    frozenset({'sum'})
    """
    joined: Origins = {}
    for trace in traces:
        for index, words in trace.items():
            joined[index] = joined.get(index, DIRECT) | words
    return joined if word is None else {index: words | {word} for index, words in joined.items()}
