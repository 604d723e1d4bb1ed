"""The stacked counterparts of normalization layers; see `layers` for what they take and return."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.ensemble.layers import StackedLayer, merge_channels, split_channels, view_by_channel


class StackedBatchNorm(StackedLayer):
    """Batch normalization with statistics of every member's own: as more channels on maps, one by one elsewhere."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__(leaves)
        first: Any = leaves[0]
        self.momentum, self.eps = first.momentum, first.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, C, …] to the same shape."""
        if self.training:
            self.num_batches_tracked.add_(1)
        norm = (self.running_mean, self.running_var, self.weight, self.bias)
        if x.dim() > 3:
            # Copies: the backward pass holds on to what it was given, and rows may be padded.
            mean, var = self.running_mean.flatten().clone(), self.running_var.flatten().clone()
            own = self.weight.flatten(), self.bias.flatten()
            out = F.batch_norm(merge_channels(x), mean, var, *own, self.training, self.momentum, self.eps)
            if self.training:
                self.running_mean.copy_(mean.view_as(self.running_mean))
                self.running_var.copy_(var.view_as(self.running_var))
            return split_channels(out, len(x))
        normal = [
            F.batch_norm(h, mean, var, scale, shift, self.training, self.momentum, self.eps)
            for h, mean, var, scale, shift in zip(x, *norm, strict=True)
        ]
        return torch.stack(normal)


class StackedLayerNorm(StackedLayer):
    """Layer normalization over the last axes, with every member's own scale and shift."""

    weight: Tensor
    bias: Tensor

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__(leaves)
        first: Any = leaves[0]
        self.normalized_shape, self.eps = first.normalized_shape, first.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, F] to the same shape."""
        normal = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        shape = (len(x), *[1] * (x.dim() - 1 - len(self.normalized_shape)), *self.normalized_shape)
        return normal * self.weight.view(shape) + self.bias.view(shape)


class StackedGroupNorm(StackedLayer):
    """Group normalization, with every member's own scale and shift."""

    weight: Tensor
    bias: Tensor

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__(leaves)
        first: Any = leaves[0]
        self.num_groups, self.eps = first.num_groups, first.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, C, H, W] to the same shape."""
        merged = F.group_norm(merge_channels(x), len(x) * self.num_groups, eps=self.eps)
        return split_channels(merged, len(x)) * view_by_channel(self.weight, x) + view_by_channel(self.bias, x)
