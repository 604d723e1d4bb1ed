"""The records of one pass through a network: calls of layers, sums of residual streams, origins of tensors."""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from initlab.activations import Activation
from initlab.diagnostics.stats import STATS
from initlab.diagnostics.weight_facts import WeightFacts, read_weight_facts
from initlab.diagnostics.weights import Weight

Origins: TypeAlias = dict[int, frozenset[str]]
"""Calls that a tensor comes from: index (0: the data) -> words for what happened to it since (`signal_step`)."""

DIRECT: frozenset[str] = frozenset()

OPTIONAL_KINDS = ("inputs", "matrix", "spectrum")
"""Kinds of tensors whose statistics are NaN where they are not defined; such a value is not written."""


@dataclass
class Call:
    """One call of a layer during a forward pass, and what was measured of it.

    Attributes:
        index: place in the order of execution, from 1; a layer called twice has two.
        layer: name of the layer.
        weight: its weight; None for a module with several weights (a recurrent one).
        fed: the origins of its input.
        stats: name of a statistic -> value.
        activation: the activation applied to its preactivations, None where unknown.
        entering: mean and standard deviation of the activation's input, behind a norm where there is one.
        into: words for what its preactivations go into before an activation (`norm`, `sum`, …).
        samples: number of values of each unit.
        units: number of units.
        channels_first: whether units are the second axis of the output, as in a convolution.
        ran: False for a weight that took no part in the pass.
        in_gate: part of a gate, a side path that only multiplies the signal it comes from (squeeze and excitation).
        facts: facts about the weight; at the first call of a layer.
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
    in_gate: bool = False
    facts: WeightFacts | None = None

    @property
    def sources(self) -> list[int]:
        """Indices of the calls that feed it, latest first."""
        return sorted((i for i in self.fed if i), reverse=True)

    @property
    def fed_words(self) -> set[str]:
        """Words for what happened to its inputs since the calls that they come from."""
        return set().union(*self.fed.values())

    def forget_activation(self) -> None:
        """Remove an activation that turned out to be part of a larger function, such as x · sigmoid(x)."""
        self.activation = self.entering = None
        for name in ("saturated_fraction", "dead_fraction"):
            self.stats.pop(name, None)

    def measure_weight(self, weight: Weight) -> WeightFacts:
        """Write the statistics of its weight, and return the facts about it."""
        self.write("weight", weight.part(weight.tensor.detach())[None].double())
        self.write("matrix", weight.matrix()[None])
        self.write("units", weight.units()[None])
        return read_weight_facts(weight, copies=self.stats["duplicate_units"] > 0)

    def measure_gradient(self, gradient: Tensor) -> None:
        """Write the statistics of the weight's gradient, given as stored."""
        if self.weight is not None:
            self.write("gradient", self.weight.part(gradient.detach())[None].double())

    def write(self, kind: str, x: Tensor) -> None:
        """Write every statistic of this kind of tensor, whose first axis has length 1."""
        for stat in STATS.values():
            if stat.of == kind:
                value = float(stat.measure(x)[0])
                if value == value or kind not in OPTIONAL_KINDS:
                    self.stats[stat.name] = value


@dataclass(frozen=True)
class StreamSum:
    """A sum of two signals, where a branch joins a stream.

    Attributes:
        name: the module that adds them.
        after: index of the latest call in the branch.
        before: index of the latest call in the stream.
        stream: second moment of the stream.
        branch: second moment of the branch.
        total: second moment of their sum.
    """

    name: str
    after: int
    before: int
    stream: float
    branch: float
    total: float


def second_moment(tensor: Tensor) -> float:
    """Return the second moment of a tensor, summed in float64."""
    return float(tensor.detach().double().square().mean())


class Provenance:
    """The origins of the tensors of a forward pass, by identity; a tensor that is freed is forgotten."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Origins]] = {}

    def traced_tensors(
        self, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None
    ) -> list[tuple[Tensor, Origins]]:
        """Return the tensors among the arguments of a call whose origins are known, with them."""
        traced = []
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(tensor, Tensor) and (entry := self._entries.get(id(tensor))) is not None:
                    reference, origins = entry
                    if reference() is tensor:  # another tensor may have taken the id of one that was freed
                        traced.append((tensor, origins))
        return traced

    def merged_origins(self, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> Origins:
        """Return the origins of all tensors among the arguments of a call."""
        return merge_origins(origins for _, origins in self.traced_tensors(args, kwargs))

    def mark(self, value: Any, origins: Origins) -> None:
        """Set the origins of a tensor, or of every tensor of a tuple."""
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor):
                self._entries[id(tensor)] = weakref.ref(tensor), origins


def merge_origins(several: Iterable[Origins], word: str | None = None) -> Origins:
    """Join the origins of several tensors, and add a word for what was done to them.

    >>> merge_origins([{1: frozenset()}, {2: frozenset({"norm"})}], "sum")[1]
    frozenset({'sum'})
    """
    joined: Origins = {}
    for origins in several:
        for index, words in origins.items():
            joined[index] = joined.get(index, DIRECT) | words
    return joined if word is None else {index: words | {word} for index, words in joined.items()}
