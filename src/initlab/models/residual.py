"""Residual networks: `resmlp` (x + α f(x) over dense branches) and `resnet` (the CIFAR form)."""

from collections.abc import Sequence

from torch import Tensor, nn

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.models.layers import Dropout, Shift, WeightLayer, multiplier
from initlab.models.plain import NORMS_1D, NORMS_2D, norm_constructor


def branch_multiplier(value: float | str, blocks: int) -> float | None:
    """Return α of x + α f(x): a number, or `inverse_sqrt_depth` (1/√L) and `inverse_depth` (1/L) over L blocks.

    None stands for `learned`: one parameter per branch.

    Source: Hanin & Rolnick 2018, "How to Start Training: The Effect of Initialization and Architecture".

    >>> branch_multiplier("inverse_sqrt_depth", 16), branch_multiplier(1.0, 16)
    (0.25, 1.0)
    """
    named = {"inverse_sqrt_depth": blocks**-0.5, "inverse_depth": 1 / blocks}
    if value == "learned":
        return None
    if isinstance(value, str) and value not in named:
        raise UserError(f"model.branch={value!r} is unknown: give a number, or one of {', '.join(named)}, learned.")
    return named[value] if isinstance(value, str) else float(value)


class DenseBlock(nn.Module):
    """x + α · outer(φ(inner([norm](x)))), with scalar shifts before inner, φ and outer where they are asked for."""

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


def branch_shifts() -> nn.ModuleList:
    """Return the scalar biases of one branch of two layers: before the first, before φ, before the second.

    Source: Zhang, Dauphin & Ma 2019, "Fixup Initialization: Residual Learning Without Normalization".

    >>> len(branch_shifts())
    3
    """
    return nn.ModuleList(Shift() for _ in range(3))


class ResMLP(nn.Module):
    """A linear stem, residual blocks, and a readout from the stream."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], readout: nn.Module, norm: nn.Module | None):
        super().__init__()
        self.entry = nn.Flatten()
        self.first = stem
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.readout = readout
        fed = "norm" if norm is not None else "residual"
        self.weight_layers = (
            WeightLayer("first", "first", "data"),
            *(
                layer
                for k in range(len(self.blocks))
                for layer in (
                    WeightLayer(f"blocks.{k}.inner", "hidden", fed, f"blocks.{k}.act", branch=k + 1),
                    WeightLayer(f"blocks.{k}.outer", "branch_end", "activation", branch=k + 1),
                )
            ),
            WeightLayer("readout", "readout", fed),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape] to outputs [B, classes]."""
        x = self.first(self.entry(x))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x) if self.norm is not None else x)


def resmlp(
    *,
    depth: int,
    width: int,
    act: Activation,
    input_shape: Sequence[int],
    classes: int,
    norm: str = "none",
    dropout: float = 0.0,
    branch: float | str = 1.0,
    shifts: bool = False,
) -> nn.Module:
    """Build a residual MLP: `depth` blocks x + α W₂ φ(W₁ x), pre-norm where a norm is asked for."""
    width = require_single_width(width, "resmlp")
    inputs = 1
    for extent in input_shape:
        inputs *= extent
    make_norm = norm_constructor(norm, NORMS_1D)
    alpha = branch_multiplier(branch, depth)
    blocks = [
        DenseBlock(width, act, make_norm(width) if make_norm else None, dropout, alpha, shifts) for _ in range(depth)
    ]
    return ResMLP(nn.Linear(inputs, width), blocks, nn.Linear(width, classes), make_norm(width) if make_norm else None)


def require_single_width(width: int | Sequence[int], model: str) -> int:
    """Return the one width that a residual stream has; raises UserError for a list."""
    if not isinstance(width, int):
        raise UserError(f"width={list(width)} is a list, and model={model} has one width all along: say width=64.")
    return width


class ConvBlock(nn.Module):
    """φ(shortcut(x) + α · [norm](conv2(φ([norm](conv1(x))))))."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        act: Activation,
        norm: type | None,
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
        blocks = [(s, k, block) for s, stage in enumerate(stages) for k, block in enumerate(stage)]
        self.weight_layers = (
            WeightLayer("first", "first", "data", "act"),
            *(
                layer
                for number, (s, k, block) in enumerate(blocks, start=1)
                for layer in conv_block_layers(f"stages.{s}.{k}", number, block)
            ),
            WeightLayer("readout", "readout", "activation"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, C, H, W] to outputs [B, classes]."""
        x = self.first(x)
        x = self.act(self.norm(x) if self.norm is not None else x)
        for stage in self.stages:
            x = stage(x)
        return self.readout(self.pool(x))


def conv_block_layers(name: str, number: int, block: nn.Module) -> list[WeightLayer]:
    """Declare the weights of one residual block in forward order."""
    declared = [
        WeightLayer(f"{name}.conv1", "hidden", "activation", f"{name}.act1", branch=number),
        WeightLayer(f"{name}.conv2", "branch_end", "activation", f"{name}.act2", branch=number),
    ]
    if block.shortcut is not None:
        declared.append(WeightLayer(f"{name}.shortcut", "shortcut", "activation"))
    return declared


def resnet(
    *,
    depth: int,
    width: int,
    act: Activation,
    input_shape: Sequence[int],
    classes: int,
    norm: str = "batch",
    branch: float | str = 1.0,
    shifts: bool = False,
) -> nn.Module:
    """Build the CIFAR ResNet of He et al. 2015 ("Deep Residual Learning"): `depth` blocks in each of three stages."""
    if len(input_shape) != 3:
        raise UserError(
            f"model=resnet needs images [channels, height, width] and the data has shape {list(input_shape)}: "
            "choose model=resmlp, or an image data set such as data=fashion_mini."
        )
    width = require_single_width(width, "resnet")
    make_norm = norm_constructor(norm, NORMS_2D)
    alpha = branch_multiplier(branch, 3 * depth)
    stages, inputs = [], width
    for s in range(3):
        outputs = width * 2**s
        stage = []
        for k in range(depth):
            stage.append(ConvBlock(inputs, outputs, 2 if s and k == 0 else 1, act, make_norm, alpha, shifts))
            inputs = outputs
        stages.append(stage)
    return ResNet(
        nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=make_norm is None),
        make_norm(width) if make_norm else None,
        act.build(),
        stages,
        nn.Linear(inputs, classes),
    )
