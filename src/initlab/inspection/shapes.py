"""Blocks by shape: of dense layers, convolutions, tables and packed projections, and of the kinds that a user names."""

import math
from collections.abc import Callable, Sequence

from initlab.errors import UserError, did_you_mean
from initlab.inspection.records import TABLE_KINDS, Block, Fans

Shape = Sequence[int]


def dense_blocks(shape: Shape, swapped: bool = False) -> tuple[Block, ...]:
    """Return the block of a stored (out, in) matrix; `swapped`: stored as (in, out)."""
    out, inputs = reversed(shape) if swapped else shape
    return (Block(Fans(inputs, out), (out, inputs), swapped=swapped),)


def conv_blocks(shape: Shape) -> tuple[Block, ...]:
    """Return the block of (out, in, *taps)."""
    out, inputs, *reach = shape
    taps = math.prod(reach)
    return (Block(Fans(inputs * taps, out * taps, taps), tuple(shape)),)


def embedding_blocks(shape: Shape) -> tuple[Block, ...]:
    """Return the block of an embedding (rows, size), whose outputs depend on one row each."""
    rows, size = shape
    return (Block(Fans(1, size), (size, rows), swapped=True),)


def packed_blocks(shape: Shape, labels: Sequence[str] = "qkv", swapped: bool = False) -> tuple[Block, ...]:
    """Return one block per label of equal projections, one above the other; `swapped`: side by side.

    >>> [(block.label, block.fans.fan_out) for block in packed_blocks((12, 4))]
    [('q', 4), ('k', 4), ('v', 4)]
    """
    rows, inputs = reversed(shape) if swapped else shape
    out = rows // len(labels)
    block = Block(Fans(inputs, out), (out, inputs), swapped=swapped)
    parts = [(label, slice(i * out, (i + 1) * out)) for i, label in enumerate(labels)]
    if swapped:
        return tuple(block._replace(label=label, columns=part) for label, part in parts)
    return tuple(block._replace(label=label, rows=part) for label, part in parts)


def bias_blocks(fans: Fans, shape: Shape) -> tuple[Block, ...]:
    """Return the block of a bias whose weight has these fans."""
    return (Block(fans, tuple(shape)),)


def packed_bias_blocks(weight: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks of the bias of a packed projection: each has the fans of its weight."""
    blocks, start = [], 0
    for block in weight:
        size = block.shape[0]
        blocks.append(Block(block.fans, (size,), slice(start, start + size), label=block.label))
        start += size
    return tuple(blocks)


def stacked_blocks(shape: Shape, swapped: bool = False) -> tuple[Block, ...]:
    """Return the blocks of (count, out, in), such as the experts of a mixture; `swapped`: (count, in, out)."""
    (block,) = dense_blocks(shape[1:], swapped)
    return tuple(block._replace(rows=index) for index in range(shape[0]))


def table_blocks(shape: Shape) -> tuple[Block, ...]:
    """Return the block of a token or a table, which is added to a signal: each element has one connection."""
    return (Block(Fans(1, 1), tuple(shape)),)


USER_KINDS: dict[str, tuple[str, range, Callable[[Shape], tuple[Block, ...]]]] = {
    "dense": ("dense", range(2, 3), dense_blocks),
    "dense_in_out": ("dense", range(2, 3), lambda shape: dense_blocks(shape, swapped=True)),
    "conv": ("conv", range(3, 6), conv_blocks),
    "embedding": ("embedding", range(2, 3), embedding_blocks),
    "qkv": ("packed", range(2, 3), packed_blocks),
    "qkv_in_out": ("packed", range(2, 3), lambda shape: packed_blocks(shape, swapped=True)),
    "stack": ("packed", range(3, 4), stacked_blocks),
    "stack_in_out": ("packed", range(3, 4), lambda shape: stacked_blocks(shape, swapped=True)),
    "bias": ("bias", range(1, 2), lambda shape: bias_blocks(Fans(1, shape[0]), shape)),
    **{kind: (kind, range(1, 9), table_blocks) for kind in TABLE_KINDS},
    **{kind: (kind, range(9), lambda shape: ()) for kind in ("norm_scale", "norm_shift", "layer_scale", "unknown")},
}
"""What a user may call a parameter -> its kind, the numbers of dimensions it may have, its blocks."""


def user_kind_blocks(user_kind: str, name: str, shape: Shape) -> tuple[str, tuple[Block, ...]]:
    """Return kind and blocks of a parameter that the user gives a kind.

    Args:
        user_kind: a key of `USER_KINDS`.
        name: the parameter's name, for messages.
        shape: its shape as stored.

    Raises:
        UserError: there is no such kind, or the shape does not fit it.

    >>> user_kind_blocks("dense_in_out", "w", (3, 5))[1][0].shape
    (5, 3)
    """
    if user_kind not in USER_KINDS:
        near = did_you_mean(user_kind, USER_KINDS)
        raise UserError(f"kinds: {name}={user_kind} is unknown; choose one of {', '.join(USER_KINDS)}.{near}")
    kind, dimensions, blocks = USER_KINDS[user_kind]
    thirds = user_kind.startswith("qkv")
    if len(shape) not in dimensions or (thirds and shape[user_kind == "qkv_in_out"] % 3):
        size = "x".join(map(str, shape))
        raise UserError(f"kinds: {name} has the shape {size or '()'} and cannot be {user_kind}: choose another kind.")
    return kind, blocks(shape)
