"""Records: fans, a block of a parameter, a parametrization, a parameter."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

WEIGHT_KINDS = ("dense", "conv", "transposed_conv", "bilinear", "packed", "embedding")
"""Kinds of parameters that a scheme fills; other kinds have their own rule or are not changed."""

TABLE_KINDS = ("token", "position", "relative_position")
"""Kinds that are added to a signal rather than multiplied with it: they get N(0, 0.02²)."""


class Fans(NamedTuple):
    """Connections into and out of a unit, and the number of taps of the receptive field between them (1 if dense).

    >>> Fans(fan_in=27, fan_out=576, receptive=9)
    Fans(fan_in=27, fan_out=576, receptive=9)
    """

    fan_in: float
    fan_out: float
    receptive: int = 1


class Block(NamedTuple):
    """One matrix-like part of a stored tensor: `view(tensor)` shows it as `shape` = (out, in, *receptive).

    Attributes:
        fans: connections of this part's units.
        shape: canonical shape; of a bias (out,).
        rows: slice of the stored tensor's first dimension, one index of it, or None for all of it.
        columns: slice of the stored tensor's second dimension, or None for all of it.
        swapped: stored as (in, out, ...).
        label: "q", "k", "v", a gate, or "".
    """

    fans: Fans
    shape: tuple[int, ...]
    rows: slice | int | None = None
    swapped: bool = False
    label: str = ""
    columns: slice | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """Return this block of `tensor` (the parameter as stored), with shared memory."""
        part = tensor if self.rows is None else tensor[self.rows]
        part = part if self.columns is None else part[:, self.columns]
        return (part.transpose(0, 1) if self.swapped else part).view(self.shape)


@dataclass(frozen=True)
class Parametrization:
    """How a weight is computed from other parameters (weight_norm's magnitude and direction, …).

    Attributes:
        label: what computes it, for messages: "weight_norm".
        tensors: the parameters from which it is computed.
        read: computes the effective weight.
        write: sets the parameters so that the effective weight becomes the tensor given, or raises.
        simulate: returns what the effective weight would become, without writing.
    """

    label: str
    tensors: tuple[Tensor, ...] = field(repr=False)
    read: Callable[[], Tensor] = field(repr=False)
    write: Callable[[Tensor], None] = field(repr=False)
    simulate: Callable[[Tensor], Tensor] = field(repr=False)


class Parameter(NamedTuple):
    """A parameter of a module: its canonical name, its kind, its blocks, and the module that owns it.

    Attributes:
        name: canonical: wrappers' prefixes (`module.`, `_orig_mod.`) are stripped.
        kind: dense, conv, transposed_conv, bilinear, packed, embedding; bias, norm_scale, norm_shift, activation,
            layer_scale, temperature; token, position, relative_position; lazy, parametrized, quantized, flattened,
            sparse, expanded; unknown.
        tensor: the parameter itself; of a parametrized weight, a tensor of its shape and dtype.
        owner: the module it belongs to.
        blocks: matrix-like parts of a weight; of a bias, its parts with the fans of the weights they go with.
        start: the initial constant of a scale, a shift or an activation's parameter.
        aliases: canonical names of other places of the same parameter (tied weights).
        parametrization: how it is computed from other parameters, or None for an ordinary parameter.
        refusal: why it cannot be written, with the remedy, or "".
        mismatch: why its shape contradicts its module's class, so that its kind is unknown, or "".
    """

    name: str
    kind: str
    tensor: Tensor
    owner: nn.Module
    blocks: tuple[Block, ...] = ()
    start: float = 0.0
    aliases: tuple[str, ...] = ()
    parametrization: Parametrization | None = None
    refusal: str = ""
    mismatch: str = ""

    def __repr__(self) -> str:
        aliases = f", aliases={self.aliases}" if self.aliases else ""
        return f"Parameter(name={self.name!r}, kind={self.kind!r}, start={self.start}{aliases})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored; of a sharded parameter, of the whole."""
        return () if self.tensor.is_nested else tuple(self.tensor.shape)

    @property
    def layer(self) -> str:
        """Canonical name of the module that owns it: `hidden.0` of `hidden.0.weight`."""
        return self.name.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        """Whether a scheme fills it."""
        return self.kind in WEIGHT_KINDS

    @property
    def fans(self) -> Fans | None:
        """Fans that all blocks share, else None."""
        fans = {block.fans for block in self.blocks}
        return fans.pop() if len(fans) == 1 else None

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.aliases)

    def values(self) -> Tensor:
        """Return its values, detached: the effective weight if parametrized, the whole tensor if sharded."""
        with torch.no_grad():
            tensor = self.tensor.detach() if self.parametrization is None else self.parametrization.read()
            return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
