"""Which leaf module has which stacked counterpart: one row each."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from initlab.activations import ACTIVATIONS, Elementwise
from initlab.ensemble.layers import (
    StackedConv2d,
    StackedDropout,
    StackedElementwise,
    StackedFlatten,
    StackedLinear,
    StackedMultiplier,
    StackedPool,
    StackedPReLU,
    StackedShift,
)
from initlab.ensemble.norms import StackedBatchNorm, StackedGroupNorm, StackedLayerNorm
from initlab.models.layers import Dropout, LearnedMultiplier, Multiplier, Shift
from initlab.models.plain import Chain
from initlab.models.residual import ConvBlock, DenseBlock, ResMLP, ResNet

# Modules that only call others and add: a stack of them is one of them with stacked leaves.
CONTAINERS: set[type[nn.Module]] = {
    nn.Sequential, nn.ModuleList, Chain, DenseBlock, ResMLP, ConvBlock, ResNet
}  # fmt: skip


def copy_of_first(leaves: Sequence[nn.Module]) -> nn.Module:
    """Return a copy of the first of N leaves that have no parameters and work entry by entry by arithmetic alone."""
    return copy.deepcopy(leaves[0])


Counterpart: TypeAlias = Callable[[Sequence[nn.Module]], nn.Module]

# A row for a layer of your own: its type, and what makes one layer [N, B, …] -> [N, B, …] of N of them, for example a
# subclass of `initlab.ensemble.layers.StackedLayer`.
COUNTERPARTS: dict[type[nn.Module], Counterpart] = {
    **{type(record.build()): StackedElementwise for record in ACTIVATIONS.values()},
    Elementwise: StackedElementwise,
    nn.Identity: copy_of_first,
    Multiplier: copy_of_first,
    LearnedMultiplier: StackedMultiplier,
    Shift: StackedShift,
    nn.PReLU: StackedPReLU,
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConv2d,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    nn.LayerNorm: StackedLayerNorm,
    nn.GroupNorm: StackedGroupNorm,
    Dropout: StackedDropout,
    nn.Flatten: StackedFlatten,
    nn.AdaptiveAvgPool2d: StackedPool,
    nn.AvgPool2d: StackedPool,
    nn.MaxPool2d: StackedPool,
}


def has_counterpart(leaf: nn.Module) -> bool:
    """Return whether this very leaf has a stacked counterpart."""
    if isinstance(leaf, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return leaf.affine and leaf.track_running_stats and leaf.momentum is not None
    if isinstance(leaf, (nn.LayerNorm, nn.GroupNorm)):
        return leaf.weight is not None and leaf.bias is not None
    if isinstance(leaf, nn.Conv2d) and isinstance(leaf.padding, str):
        return leaf.padding_mode == "zeros"
    return type(leaf) in COUNTERPARTS
