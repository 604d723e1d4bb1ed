"""The records: connections, a block of a parameter, a parameter."""

from dataclasses import dataclass, field

from torch import Tensor, nn

WEIGHT_KINDS = ("dense", "conv", "transposed_conv", "bilinear", "packed", "embedding")
"""Kinds of parameters that a scheme fills; the others have a rule of their own or are left alone."""


@dataclass(frozen=True)
class Fans:
    """Connections into and out of a unit, and the number of taps of the receptive field between them (1 if dense).

    >>> Fans(fan_in=27, fan_out=576, receptive=9)
    Fans(fan_in=27, fan_out=576, receptive=9)
    """

    fan_in: float
    fan_out: float
    receptive: int = 1


@dataclass(frozen=True)
class Block:
    """One matrix-like part of a stored tensor: `view(tensor)` shows it as `shape` = (out, in, *receptive).

    Attributes:
        fans: connections of this part's units.
        shape: canonical shape; of a bias (out,).
        rows: slice of the stored tensor's first dimension, or None for all of it.
        swapped: stored as (in, out, ...).
        label: "q", "k", "v", a gate, or "".
    """

    fans: Fans
    shape: tuple[int, ...]
    rows: slice | None = None
    swapped: bool = False
    label: str = ""

    def view(self, tensor: Tensor) -> Tensor:
        """Return the part of `tensor` (the parameter as stored) that this block is; it shares the memory."""
        part = tensor if self.rows is None else tensor[self.rows]
        return (part.transpose(0, 1) if self.swapped else part).view(self.shape)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module: its canonical name, its kind, its blocks, and the module that owns it.

    Attributes:
        name: canonical: wrappers' prefixes (`module.`, `_orig_mod.`) are stripped.
        kind: dense, conv, transposed_conv, bilinear, packed, embedding; bias, norm_scale, norm_shift, activation;
            parametrized, lazy, unknown.
        tensor: the parameter itself.
        owner: the module it belongs to.
        blocks: matrix-like parts of a weight; of a bias, its parts with the fans of the weights they go with.
        start: the constant that a norm scale, a norm shift or an activation's parameter starts from.
        aliases: canonical names of other places the same parameter stands at (tied weights).
    """

    name: str
    kind: str
    tensor: Tensor = field(repr=False)
    owner: nn.Module = field(repr=False)
    blocks: tuple[Block, ...] = field(default=(), repr=False)
    start: float = 0.0
    aliases: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return tuple(self.tensor.shape)

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
        if not self.blocks or any(block.fans != self.blocks[0].fans for block in self.blocks):
            return None
        return self.blocks[0].fans
