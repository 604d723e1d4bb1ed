"""Transformers: `vit` on patches of an image, `gpt` on characters; blocks of attention and of two dense layers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.models.layers import Dropout, NetworkSpec, WeightLayer, multiplier
from initlab.models.plain import require_images
from initlab.models.residual import branch_multiplier, require_single_width

NORM_PLACES = ("none", "pre", "post")
EXPANSION = 4  # width of the inner dense layer over that of the stream: Vaswani et al. 2017


@dataclass(frozen=True)
class TransformerShape:
    """What all blocks of a transformer share; `branch` is None where the multipliers are learned."""

    width: int
    heads: int
    act: Activation
    norm: str
    dropout: float
    branch: float | None
    stream: float
    causal: bool
    attention_power: float


class AttentionMixing(nn.Module):
    """softmax(q kᵀ / d^power) v in every head of d units; a causal one lets no position see a later one.

    Written out, so that it can be differentiated more than once.

    >>> AttentionMixing(heads=1, causal=True)(*torch.ones(3, 1, 2, 4)).shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, heads: int, causal: bool = False, power: float = 0.5):
        super().__init__()
        self.heads, self.causal, self.power = heads, causal, power

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map queries, keys and values [B, T, width] to [B, T, width]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -self.power
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        """Show the heads."""
        return f"heads={self.heads}, causal={self.causal}, power={self.power}"


class Attention(nn.Module):
    """Multi-head attention with separate projections, so that each has its own name, fans and random stream."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.heads = shape.heads
        self.query, self.key, self.value = (nn.Linear(shape.width, shape.width) for _ in range(3))
        self.mixing = AttentionMixing(shape.heads, shape.causal, shape.attention_power)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to the same shape."""
        return self.out(self.mixing(self.query(x), self.key(x), self.value(x)))


class FeedForward(nn.Module):
    """outer(φ(inner(x))) at every position, four times as wide inside."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.inner = nn.Linear(shape.width, EXPANSION * shape.width)
        self.act = shape.act.build()
        self.outer = nn.Linear(EXPANSION * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, width] to the same shape."""
        return self.outer(self.act(self.inner(x)))


class ResidualBranch(nn.Module):
    """pre: c·x + α f(norm(x)); post: norm(c·x + α f(x)); none: c·x + α f(x)."""

    def __init__(self, f: nn.Module, shape: TransformerShape):
        super().__init__()
        self.f = f
        self.post = shape.norm == "post"
        self.norm = nn.LayerNorm(shape.width) if shape.norm != "none" else None
        self.dropout = Dropout(shape.dropout) if shape.dropout else None
        self.branch = multiplier(shape.branch)
        self.stream = shape.stream

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the stream [B, T, width]."""
        h = self.f(self.norm(x) if self.norm is not None and not self.post else x)
        h = self.branch(self.dropout(h) if self.dropout is not None else h)
        total = (x if self.stream == 1 else x * self.stream) + h
        return self.norm(total) if self.norm is not None and self.post else total


class TransformerBlock(nn.Module):
    """A residual branch of attention, then one of two dense layers."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        self.attention = ResidualBranch(Attention(shape), shape)
        self.dense = ResidualBranch(FeedForward(shape), shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream [B, T, width] to the same shape."""
        return self.dense(self.attention(x))


class MapToTokens(nn.Module):
    """Positions of maps [B, C, H, W] as tokens [B, H·W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten the positions and put the channels last."""
        return x.flatten(2).transpose(1, 2)


class MeanOverTokens(nn.Module):
    """Mean over the tokens of [B, T, width]."""

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        return x.mean(1)


class Transformer(nn.Module):
    """first → + positions → [attention, dense] × depth → [norm] → [pool] → readout.

    Parameters are `first.weight`, `position_embedding`, `blocks.<k>.attention.f.query.weight`, …,
    `blocks.<k>.dense.f.inner.weight`, …, `readout.weight`.
    """

    def __init__(self, first: nn.Module, tokens: int, depth: int, shape: TransformerShape, outputs: int):
        super().__init__()
        self.first = first
        embeds = isinstance(first, nn.Embedding)
        self.patches = None if embeds else MapToTokens()
        self.position_embedding = nn.Parameter(torch.zeros(1, tokens, shape.width))
        self.blocks = nn.ModuleList(TransformerBlock(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.width) if shape.norm == "pre" else None
        self.pool = None if embeds else MeanOverTokens()
        self.readout = nn.Linear(shape.width, outputs)
        fed_by = "residual" if shape.norm == "none" else "norm"
        self.weight_layers = (
            WeightLayer("first", "embedding" if embeds else "first", "data"),
            *(layer for k in range(depth) for layer in transformer_block_layers(k, fed_by, shape.norm)),
            WeightLayer("readout", "readout", fed_by),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes], or characters [B, T] to those that follow, [B, T, V]."""
        x = self.first(x.long()) if self.patches is None else self.patches(self.first(x))
        x = x + self.position_embedding[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x) if self.norm is not None else x
        return self.readout(self.pool(x) if self.pool is not None else x)


def transformer_block_layers(k: int, fed_by: str, norm: str) -> list[WeightLayer]:
    """Declare the weights of block `k` in forward order.

    Args:
        k: number of the block, from 0.
        fed_by: what its branches are fed by, `norm` or `residual`.
        norm: a place of `NORM_PLACES`.
    """
    attention, dense = f"blocks.{k}.attention.f", f"blocks.{k}.dense.f"
    first = "residual" if norm == "post" and k == 0 else fed_by
    projections = {"query": "q", "key": "k", "value": "v"}
    return [
        *(WeightLayer(f"{attention}.{name}", role, first, branch=2 * k + 1) for name, role in projections.items()),
        WeightLayer(f"{attention}.out", "branch_end", "unknown", branch=2 * k + 1),
        WeightLayer(f"{dense}.inner", "hidden", fed_by, f"{dense}.act", branch=2 * k + 2),
        WeightLayer(f"{dense}.outer", "branch_end", "activation", branch=2 * k + 2),
    ]


def transformer_shape(
    spec: NetworkSpec,
    causal: bool,
    *,
    norm: str = "pre",
    dropout: float = 0.0,
    heads: int = 2,
    branch: float | str = 1.0,
    residual: float | str = 1.0,
    attention_power: float = 0.5,
) -> TransformerShape:
    """Check the options that all transformers have, and put them together.

    Args:
        spec: the requested network.
        causal: a position attends to none after it.
        norm: no norm, before each branch or after each sum.
        dropout: probability of dropping a unit at the end of a branch.
        heads: number of heads, which divides the width.
        branch: as in `branch_multiplier`, over 2 · depth branches.
        residual: multiplier of the stream, or `deepnorm`: (2·depth)^(1/4).
        attention_power: scores are divided by (units of a head)^power, 0.5 or 1.

    Raises:
        UserError: an option that cannot be, with its key, value and the remedy.
    """
    width = require_single_width(spec)
    if norm not in NORM_PLACES:
        choices = ", ".join(NORM_PLACES)
        raise UserError(f"model.norm={norm!r} is unknown for model={spec.model}: choose one of {choices}.")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"model.heads={heads!r} must divide width={width}: say for example model.heads=1.")
    if residual != "deepnorm" and (not isinstance(residual, (int, float)) or not residual > 0):
        raise UserError(f"model.residual={residual!r} must be a positive number, or deepnorm: (2·depth)^(1/4).")
    if attention_power not in (0.5, 1):
        raise UserError(f"model.attention_power={attention_power!r} must be 0.5 (1/√d) or 1 (1/d).")
    stream = (2 * spec.depth) ** 0.25 if isinstance(residual, str) else float(residual)
    alpha = branch_multiplier(branch, 2 * spec.depth)
    return TransformerShape(width, heads, spec.act, norm, dropout, alpha, stream, causal, float(attention_power))


def vit(spec: NetworkSpec, *, patch: int = 4, **options: Any) -> nn.Module:
    """Build a small vision transformer with mean pooling: `depth` blocks on patches of `patch` × `patch` pixels.

    Its other options are those of `transformer_shape`.

    Raises:
        UserError: the data are not images, or patches do not divide them.
    """
    require_images(spec, "mlp")
    shape = transformer_shape(spec, False, **options)
    channels, *sides = spec.input_shape
    if not isinstance(patch, int) or patch < 1 or any(side % patch for side in sides):
        raise UserError(
            f"model.patch={patch!r} must divide images of {list(spec.input_shape)}: say for example model.patch=1."
        )
    tokens = math.prod(side // patch for side in sides)
    return Transformer(nn.Conv2d(channels, shape.width, patch, patch), tokens, spec.depth, shape, spec.classes)


def gpt(spec: NetworkSpec, **options: Any) -> nn.Module:
    """Build a causal transformer on `classes` characters: `depth` blocks, one prediction at every position.

    Its options are those of `transformer_shape`.

    Raises:
        UserError: the data are not sequences of characters.
    """
    if len(spec.input_shape) != 1:
        raise UserError(
            f"model=gpt needs characters [length] and the data has shape {list(spec.input_shape)}: say data=tiny_text."
        )
    shape = transformer_shape(spec, True, **options)
    first = nn.Embedding(spec.classes, shape.width)
    return Transformer(first, spec.input_shape[0], spec.depth, shape, spec.classes)
