"""The stacked counterparts of the leaf modules that our families are built from, except norms.

All take [N, B, …] and return [N, B, …], parameters and buffers are [N, …] under the lone module's names. A batch common
to all members comes in expanded, with stride 0 along N. Containers and `+` need no counterpart.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.ensemble.cpu import fast_activation
from initlab.ensemble.matmul import Affine, allocate_members, fills_vectors
from initlab.models.layers import Dropout


class StackedLayer(nn.Module):
    """A layer whose parameters and buffers are those of N lone layers, as [N, …] under the same names.

    >>> StackedLayer([nn.Linear(3, 2), nn.Linear(3, 2)]).weight.shape
    torch.Size([2, 2, 3])
    """

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        add_stacked_tensors(self, leaves)


def add_stacked_tensors(layer: nn.Module, leaves: Sequence[nn.Module]) -> None:
    """Give a stacked layer the parameters and buffers of lone ones under the same names, as [N, …]."""
    for name, parameter in leaves[0].named_parameters(recurse=False):
        layer.register_parameter(name, nn.Parameter(stack_tensor(leaves, name), parameter.requires_grad))
    for name, _ in leaves[0].named_buffers(recurse=False):
        layer.register_buffer(name, stack_tensor(leaves, name))
    if getattr(leaves[0], "bias", layer) is None:
        layer.register_parameter("bias", None)


def stack_tensor(leaves: Sequence[nn.Module], name: str) -> Tensor:
    """Return one tensor of all leaves as [N, …], every member on a boundary."""
    lone = [getattr(leaf, name).detach() for leaf in leaves]
    rows = allocate_members(len(lone), lone[0].shape, lone[0])
    for row, value in zip(rows, lone, strict=True):
        row.copy_(value)
    return rows


def view_by_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter [N, C] along the channels of x [N, B, C, …]; [N, 1] is one number for all."""
    return parameter.view(len(x), 1, -1, *[1] * (x.dim() - 3))


def merge_channels(x: Tensor) -> Tensor:
    """View or copy [N, B, C, …] as [B, N·C, …]."""
    return x.transpose(0, 1).flatten(1, 2)


def split_channels(x: Tensor, members: int) -> Tensor:
    """View [B, N·C, …] as [N, B, C, …]."""
    return x.unflatten(1, (members, -1)).transpose(0, 1)


class StackedLinear(StackedLayer):
    """x Wᵀ + b for every member."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, in] to [N, B, out]."""
        if not x.is_cpu and x.stride(0) == 0:
            # One product for the common batch: an accelerator wants it large, and promises no bits anyway.
            bias = None if self.bias is None else self.bias.flatten()
            return F.linear(x[0], self.weight.flatten(0, 1), bias).unflatten(1, (len(x), -1)).transpose(0, 1)
        if torch.is_autocast_enabled(x.device.type):
            turned = self.weight.transpose(1, 2)
            return torch.bmm(x, turned) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), x, turned)
        out: Tensor = Affine.apply(x, self.weight, self.bias)
        return out


class StackedConv2d(nn.Conv2d):
    """A grouped convolution: N times the groups of the lone one. A subclass, so that its maps are known as maps."""

    def __init__(self, leaves: Sequence[nn.Module]):
        nn.Module.__init__(self)
        add_stacked_tensors(self, leaves)
        first: Any = leaves[0]
        self.lone = {"stride": first.stride, "dilation": first.dilation}
        self.lone_groups = first.groups
        self.padding_mode, self.padding = first.padding_mode, first.padding

    def extra_repr(self) -> str:
        """Show the members."""
        return f"members={len(self.weight)}"

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, in, H, W] to [N, B, out, H', W']."""
        members = len(self.weight)
        common = x.stride(0) == 0 and self.lone_groups == 1
        h = x[0] if common else merge_channels(x)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            pads = [extent for extent in reversed(padding) for _ in range(2)]
            h, padding = F.pad(h, pads, mode=self.padding_mode), 0
        bias = None if self.bias is None else self.bias.flatten()
        groups = 1 if common else members * self.lone_groups
        out = F.conv2d(h, self.weight.flatten(0, 1), bias, padding=padding, groups=groups, **self.lone)
        return split_channels(out, members)


class StackedPReLU(StackedLayer):
    """x where x > 0, else a x, with every member's own slope or slopes (one per channel)."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, …] to the same shape."""
        return torch.where(x > 0, x, x * view_by_channel(self.weight, x))


class StackedMultiplier(StackedLayer):
    """α x, with every member's own learned α."""

    res_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, …] to the same shape."""
        return x * view_by_channel(self.res_scale, x)


class StackedShift(StackedLayer):
    """x + b, with every member's own learned b."""

    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, …] to the same shape."""
        return x + view_by_channel(self.shift, x)


class StackedElementwise(nn.Module):
    """A function of every entry, for all members at once where their bits cannot depend on each other's.

    Vector code computes whole vectors and leaves the rest of a tensor to scalar code, which rounds differently: where a
    member does not fill whole vectors, the bits of its rest would depend on the members that follow.
    """

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        self.lone = copy.deepcopy(leaves[0])
        self.phi = fast_activation(self.lone)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, …] to the same shape."""
        # Vector code takes two vectors at a time.
        if x.device.type != "cpu" or fills_vectors(x[0].numel(), x, vectors=2):
            return self.phi(x)
        return torch.stack([self.phi(h) for h in x])


class StackedDropout(Dropout):
    """Dropout with one mask for all members, the one that a lone network gets."""

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__(leaves[0].p)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of [N, B, …] in training mode; the identity otherwise."""
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            return x * F.dropout(torch.ones_like(x[0]), self.p)
        return x * self.mask(x.shape[1:], x)


class StackedFlatten(nn.Module):
    """Flatten with its axes one further on."""

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        first: Any = leaves[0]
        self.start = first.start_dim + (first.start_dim >= 0)
        self.end = first.end_dim + (first.end_dim >= 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, C, H, W] to [N, B, C·H·W], or as its axes say."""
        return x.flatten(self.start, self.end)


class StackedPool(nn.Module):
    """A pooling layer, to which members are more channels."""

    def __init__(self, leaves: Sequence[nn.Module]):
        super().__init__()
        self.pool = copy.deepcopy(leaves[0])

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, B, C, H, W] to [N, B, C, H', W']."""
        return split_channels(self.pool(merge_channels(x)), len(x))
