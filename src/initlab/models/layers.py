"""What the families are built from: what a model declares of its weights, and a dropout with keyed masks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkSpec:
    """The network that a builder is to make, without the options of its family.

    Attributes:
        model: name of the family, for messages.
        depth: at least 1; what it counts is the family's.
        width: units per layer, or a list of them.
        act: the activation.
        input_shape: shape of one sample.
        classes: number of outputs.
    """

    model: str
    depth: Any
    width: Any
    act: Any
    input_shape: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class WeightLayer:
    """One weight layer as its model declares it: initialization, theory and diagnostics read these, in forward order.

    Attributes:
        name: the module that owns the weight.
        role: what it is for (first, hidden, readout, branch_end, …).
        fed_by: what its input is: `data`, `activation`, `norm`, `residual` or `unknown`.
        activation: the module that turns its preactivation into its postactivation; None for a readout or a linear
            end of a branch.
        branch: the residual branch it stands in, counted from 1; 0 outside.
        normed: a norm stands between the layer and its activation (or the sum of its branch).
        dropout: the module that drops its inputs, if any.

    >>> WeightLayer("hidden.0", role="first", fed_by="data", activation="acts.0").role
    'first'
    """

    name: str
    role: str
    fed_by: str
    activation: str | None = None
    branch: int = 0
    normed: bool = False
    dropout: str | None = None


@dataclass(frozen=True)
class ResidualSum:
    """x ↦ φ(shortcut(x) + multiplier · layers(x)); φ is the activation of the last layer, absent where it has none.

    Attributes:
        layers: the weight layers of the branch, in forward order.
        multiplier: the module whose `value` is the multiplier.
        shortcut: the weight layer beside the branch; None for the identity.
    """

    layers: tuple[WeightLayer, ...]
    multiplier: str
    shortcut: WeightLayer | None = None


@dataclass(frozen=True)
class MeanPool:
    """Mean over all positions of a map."""


Structure: TypeAlias = tuple[WeightLayer | ResidualSum | MeanPool, ...]
"""What a module may declare as `structure`, in forward order: theory follows the signal through it."""


def flatten_structure(structure: Iterable[WeightLayer | ResidualSum | MeanPool]) -> tuple[WeightLayer, ...]:
    """Return the weight layers of a structure in forward order, the shortcut of a branch after its layers.

    >>> branch = ResidualSum((WeightLayer("inner", "hidden", "residual"),), "scale")
    >>> [layer.name for layer in flatten_structure((WeightLayer("first", "first", "data"), branch, MeanPool()))]
    ['first', 'inner']
    """
    layers: list[WeightLayer] = []
    for step in structure:
        if isinstance(step, WeightLayer):
            layers.append(step)
        elif isinstance(step, ResidualSum):
            layers += [*step.layers, *([step.shortcut] if step.shortcut else [])]
    return tuple(layers)


class Dropout(nn.Module):
    """Dropout whose mask comes from a generator that the trainer keys by (data.seed, step, layer).

    x ↦ x · m / (1 − p), m ~ Bernoulli(1 − p) over one network's (batch, …) shape, so that every network of an
    ensemble sees the same mask. Without a generator it falls back to torch's own dropout. Source: Srivastava et al.
    2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".

    >>> Dropout(0.5).eval()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of `x` [batch, …] in training mode; the identity otherwise."""
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            return nn.functional.dropout(x, self.p)
        return x * self.mask(x.shape, x)

    def mask(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Draw the scaled mask on the CPU, so that it is the same on every device."""
        keep = torch.rand(shape, generator=self.generator) >= self.p
        return keep.to(like.device, like.dtype).div_(1 - self.p)

    def extra_repr(self) -> str:
        """Show `p`."""
        return f"p={self.p}"


class Multiplier(nn.Module):
    """A fixed branch multiplier α: x ↦ α · x, as in ResNets with scaled branches.

    >>> Multiplier(0.5)(torch.ones(2)).tolist()
    [0.5, 0.5]
    """

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Scale the branch."""
        return x if self.value == 1 else x * self.value

    def extra_repr(self) -> str:
        """Show α."""
        return f"value={self.value}"


class LearnedMultiplier(nn.Module):
    """A branch multiplier that is learned: x ↦ α · x with one α, as in ReZero, SkipInit and Fixup.

    >>> LearnedMultiplier()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    init_value = 1.0  # where schemes without a rule for branches start it

    def __init__(self) -> None:
        super().__init__()
        self.res_scale = nn.Parameter(torch.ones(1))

    @property
    def value(self) -> float:
        """α as a number."""
        return self.init_value if self.res_scale.is_meta else float(self.res_scale.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Scale the branch."""
        return x * self.res_scale


class Shift(nn.Module):
    """A learned scalar bias: x ↦ x + b with one b, as Fixup puts before every layer of a branch.

    >>> Shift()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to every entry."""
        return x + self.shift


def multiplier(value: float | None) -> Multiplier | LearnedMultiplier:
    """Return a fixed multiplier of this value, or a learned one for None.

    >>> multiplier(None), multiplier(0.5)
    (LearnedMultiplier(), Multiplier(value=0.5))
    """
    return LearnedMultiplier() if value is None else Multiplier(value)
