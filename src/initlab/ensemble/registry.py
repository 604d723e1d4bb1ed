"""Which leaf module has which stacked counterpart."""

import copy
from collections.abc import Callable, Sequence

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


def copy_of_first(leaves: Sequence[nn.Module]) -> nn.Module:
    """Take the first of leaves that hold nothing and look at single entries by arithmetic alone."""
    return copy.deepcopy(leaves[0])


Counterpart = Callable[[Sequence[nn.Module]], nn.Module]

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
    """Is there a stacked counterpart of this very leaf?"""
    if isinstance(leaf, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return leaf.affine and leaf.track_running_stats and leaf.momentum is not None
    if isinstance(leaf, (nn.LayerNorm, nn.GroupNorm)):
        return leaf.weight is not None and leaf.bias is not None
    return type(leaf) in COUNTERPARTS
