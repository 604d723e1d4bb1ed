"""Residual networks: `resmlp` (x + α f(x) over dense branches) and `resnet` (the CIFAR form)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.models.layers import (
    Dropout,
    MeanPool,
    NetworkSpec,
    ResidualSum,
    Shift,
    Structure,
    WeightLayer,
    flatten_structure,
    multiplier,
)
from initlab.models.plain import NORMS_1D, NORMS_2D, NormMaker, norm_constructor, require_images


def branch_multiplier(value: float | str, blocks: int) -> float | None:
    """Return α of x + α f(x): a number, or `inverse_sqrt_depth` (1/√L) and `inverse_depth` (1/L) over L blocks.

    None stands for `learned`: one parameter per branch.

    Source: Hanin & Rolnick 2018, "How to Start Training: The Effect of Initialization and Architecture".

    Raises:
        UserError: another word.

    >>> branch_multiplier("inverse_sqrt_depth", 16), branch_multiplier(1.0, 16)
    (0.25, 1.0)
    """
    named = {"inverse_sqrt_depth": blocks**-0.5, "inverse_depth": 1 / blocks, "learned": None}
    if not isinstance(value, str):
        return float(value)
    if value not in named:
        raise UserError(f"model.branch={value!r} is unknown: give a number, or one of {', '.join(named)}.")
    return named[value]


def branch_shifts() -> nn.ModuleList:
    """Return the scalar biases of one branch of two layers: before the first, before φ, before the second.

    Source: Zhang, Dauphin & Ma 2019, "Fixup Initialization: Residual Learning Without Normalization".

    >>> len(branch_shifts())
    3
    """
    return nn.ModuleList(Shift() for _ in range(3))


class DenseBlock(nn.Module):
    """x + α · outer(φ(inner([norm](x)))), with optional scalar shifts before inner, φ and outer."""

    only_calls_children = True

    def __init__(
        self,
        width: int,
        act: Activation,
        norm: nn.Module | None,
        dropout: float,
        branch: float | None,
        shifts: bool = False,
    ):
        super().__init__()
        self.norm = norm
        self.inner = nn.Linear(width, width)
        self.act = act.build()
        self.dropout = Dropout(dropout) if dropout else None
        self.outer = nn.Linear(width, width)
        self.branch = multiplier(branch)
        self.shifts = branch_shifts() if shifts else None

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the stream [B, width]."""
        h = self.norm(x) if self.norm is not None else x
        if self.shifts is not None:
            h = self.shifts[2](self.act(self.shifts[1](self.inner(self.shifts[0](h)))))
        else:
            h = self.act(self.inner(h))
        h = self.dropout(h) if self.dropout is not None else h
        return x + self.branch(self.outer(h))


class ResMLP(nn.Module):
    """A linear stem, residual blocks, and a readout from the stream."""

    only_calls_children = True

    def __init__(self, stem: nn.Module, blocks: Sequence[DenseBlock], readout: nn.Module, norm: nn.Module | None):
        super().__init__()
        self.entry = nn.Flatten()
        self.first = stem
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.readout = readout
        fed_by = "residual" if norm is None else "norm"
        self.structure: Structure = (
            WeightLayer("first", "first", "data"),
            *(_dense_sum(f"blocks.{k}", k + 1, fed_by, block) for k, block in enumerate(blocks)),
            WeightLayer("readout", "readout", fed_by),
        )
        self.weight_layers = flatten_structure(self.structure)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape] to outputs [B, classes]."""
        x = self.first(self.entry(x))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x) if self.norm is not None else x)


def _dense_sum(name: str, number: int, fed_by: str, block: DenseBlock) -> ResidualSum:
    dropout = None if block.dropout is None else f"{name}.dropout"
    inner = WeightLayer(f"{name}.inner", "hidden", fed_by, f"{name}.act", number)
    outer = WeightLayer(f"{name}.outer", "branch_end", "activation", None, number, dropout=dropout)
    return ResidualSum((inner, outer), f"{name}.branch")


def resmlp(
    spec: NetworkSpec, *, norm: str = "none", dropout: float = 0.0, branch: float | str = 1.0, shifts: bool = False
) -> nn.Module:
    """Build a residual MLP: `depth` blocks x + α W₂ φ(W₁ x), pre-norm where there is a norm."""
    width = require_single_width(spec)
    norm_of = norm_constructor(norm, NORMS_1D) or _no_norm
    alpha = branch_multiplier(branch, spec.depth)
    blocks = [DenseBlock(width, spec.act, norm_of(width), dropout, alpha, shifts) for _ in range(spec.depth)]
    stem, readout = nn.Linear(math.prod(spec.input_shape), width), nn.Linear(width, spec.classes)
    return ResMLP(stem, blocks, readout, norm_of(width))


def _no_norm(width: int) -> None:
    return None


def require_single_width(spec: NetworkSpec) -> int:
    """Return the one width that a residual stream has.

    Raises:
        UserError: a list of widths.
    """
    if not isinstance(spec.width, int):
        raise UserError(
            f"width={list(spec.width)} is a list, and model={spec.model} has one width all along: say width=64."
        )
    return spec.width


class ConvBlock(nn.Module):
    """φ(shortcut(x) + α · [norm](conv2(φ([norm](conv1(x))))))."""

    only_calls_children = True

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        act: Activation,
        norm: NormMaker | None,
        branch: float | None,
        shifts: bool = False,
    ):
        super().__init__()
        bias = norm is None
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=bias)
        self.norm1 = norm(width) if norm else None
        self.act1 = act.build()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=bias)
        self.norm2 = norm(width) if norm else None
        self.branch = multiplier(branch)
        self.shifts = branch_shifts() if shifts else None
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride != 1 or inputs != width else None
        self.act2 = act.build()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut of the maps [B, C, H, W], then apply φ."""
        h = self.conv1(x if self.shifts is None else self.shifts[0](x))
        h = self.norm1(h) if self.norm1 is not None else h
        h = self.act1(h if self.shifts is None else self.shifts[1](h))
        h = self.conv2(h if self.shifts is None else self.shifts[2](h))
        h = self.branch(self.norm2(h) if self.norm2 is not None else h)
        return self.act2(h + (self.shortcut(x) if self.shortcut is not None else x))


class ResNet(nn.Module):
    """A convolutional stem, three stages of blocks, mean pooling, a dense readout."""

    only_calls_children = True

    def __init__(
        self,
        first: nn.Module,
        norm: nn.Module | None,
        act: nn.Module,
        stages: Sequence[Sequence[ConvBlock]],
        readout: nn.Module,
    ):
        super().__init__()
        self.first = first
        self.norm = norm
        self.act = act
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.readout = readout
        blocks = [(f"stages.{s}.{k}", block) for s, stage in enumerate(stages) for k, block in enumerate(stage)]
        self.structure: Structure = (
            WeightLayer("first", "first", "data", "act", normed=norm is not None),
            *(_conv_sum(name, number, block) for number, (name, block) in enumerate(blocks, start=1)),
            MeanPool(),
            WeightLayer("readout", "readout", "activation"),
        )
        self.weight_layers = flatten_structure(self.structure)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        x = self.first(x)
        x = self.act(self.norm(x) if self.norm is not None else x)
        for stage in self.stages:
            x = stage(x)
        return self.readout(self.pool(x))


def _conv_sum(name: str, number: int, block: ConvBlock) -> ResidualSum:
    normed = block.norm1 is not None
    first = WeightLayer(f"{name}.conv1", "hidden", "activation", f"{name}.act1", number, normed)
    second = WeightLayer(f"{name}.conv2", "branch_end", "activation", f"{name}.act2", number, normed)
    shortcut = None if block.shortcut is None else WeightLayer(f"{name}.shortcut", "shortcut", "activation")
    return ResidualSum((first, second), f"{name}.branch", shortcut)


def resnet(spec: NetworkSpec, *, norm: str = "batch", branch: float | str = 1.0, shifts: bool = False) -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2015 ("Deep Residual Learning"): `depth` blocks in each of three stages."""
    require_images(spec, "resmlp")
    width = require_single_width(spec)
    make_norm = norm_constructor(norm, NORMS_2D)
    alpha = branch_multiplier(branch, 3 * spec.depth)
    stages, inputs = [], width
    for s in range(3):
        outputs = width * 2**s
        stage = []
        for k in range(spec.depth):
            stage.append(ConvBlock(inputs, outputs, 2 if s and k == 0 else 1, spec.act, make_norm, alpha, shifts))
            inputs = outputs
        stages.append(stage)
    first = nn.Conv2d(spec.input_shape[0], width, 3, 1, 1, bias=make_norm is None)
    norm1 = make_norm(width) if make_norm else None
    return ResNet(first, norm1, spec.act.build(), stages, nn.Linear(inputs, spec.classes))
