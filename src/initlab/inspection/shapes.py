"""Blocks from a shape: of dense layers, convolutions, tables, packed projections; and kinds that a user names."""

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
    taps = 1
    for size in reach:
        taps *= size
    return (Block(Fans(inputs * taps, out * taps, taps), tuple(shape)),)


def embedding_blocks(shape: Shape) -> tuple[Block, ...]:
    """Return the block of a table (rows, size): it looks one row up."""
    rows, size = shape
    return (Block(Fans(1, size), (size, rows), swapped=True),)


def packed_blocks(shape: Shape, labels: Sequence[str] = "qkv", swapped: bool = False) -> tuple[Block, ...]:
    """Return the blocks of as many equal projections as labels, one above the other; `swapped`: side by side.

    >>> [(block.label, block.fans.fan_out) for block in packed_blocks((12, 4))]
    [('q', 4), ('k', 4), ('v', 4)]
    """
    rows, inputs = reversed(shape) if swapped else shape
    out = rows // len(labels)
    parts = [slice(i * out, (i + 1) * out) for i in range(len(labels))]
    fans = Fans(inputs, out)
    if swapped:
        return tuple(
            Block(fans, (out, inputs), swapped=True, label=label, columns=part)
            for label, part in zip(labels, parts, strict=True)
        )
    return tuple(Block(fans, (out, inputs), part, label=label) for label, part in zip(labels, parts, strict=True))


def bias_blocks(fans: Fans, shape: Shape) -> tuple[Block, ...]:
    """Return the block of a bias that goes with a weight of these fans."""
    return (Block(fans, tuple(shape)),)


def packed_bias_blocks(weight: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks of the bias of a packed projection: each has the fans of its weight."""
    out = [block.shape[0] for block in weight]
    starts = [sum(out[:i]) for i in range(len(out))]
    return tuple(
        Block(block.fans, (size,), slice(start, start + size), label=block.label)
        for block, size, start in zip(weight, out, starts, strict=True)
    )


def stacked_blocks(shape: Shape, swapped: bool = False) -> tuple[Block, ...]:
    """Return the blocks of (count, out, in), such as the experts of a mixture; `swapped`: (count, in, out)."""
    count, *matrix = shape
    (block,) = dense_blocks(matrix, swapped)
    return tuple(Block(block.fans, block.shape, index, swapped) for index in range(count))


def table_blocks(shape: Shape) -> tuple[Block, ...]:
    """Return the one block of a token or a table: added to a signal, each element has one connection."""
    return (Block(Fans(1, 1), tuple(shape)),)


# What a user may call a parameter: its kind, the dimensions it must have, its blocks.
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


def user_kind_blocks(wanted: str, name: str, shape: Shape) -> tuple[str, tuple[Block, ...]]:
    """Return kind and blocks of what the user calls `wanted`.

    Raises:
        UserError: no such kind, or the shape does not fit it.

    >>> user_kind_blocks("dense_in_out", "w", (3, 5))[1][0].shape
    (5, 3)
    """
    if wanted not in USER_KINDS:
        raise UserError(
            f"kinds: {name}={wanted} is unknown; choose one of {', '.join(USER_KINDS)}.{did_you_mean(wanted, USER_KINDS)}"
        )
    kind, dimensions, blocks = USER_KINDS[wanted]
    if len(shape) not in dimensions or (wanted.startswith("qkv") and shape[wanted == "qkv_in_out"] % 3):
        size = "x".join(map(str, shape))
        raise UserError(f"kinds: {name} has the shape {size or '()'} and cannot be {wanted}: choose another kind.")
    return kind, blocks(shape)
