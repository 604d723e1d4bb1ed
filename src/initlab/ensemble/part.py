"""A part: networks that are computed together, as one module, on common batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.sequential import SequentialMembers, fast_path
from initlab.ensemble.matmul import allocate_members
from initlab.models import Dropout

# torch's own dropouts: their masks come from the global random state.
GLOBAL_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass
class Part:
    """Networks computed by one forward pass: a plain module (one member), or N of them stacked.

    Attributes:
        members: positions in the ensemble.
        module: what computes them.
        networks: the lone modules, by position; their weights are the stack's own memory, so they are always current.
        stacked: whether parameters are [N, …].
        names: names of the trained parameters.
        parameters: the trained parameters.
    """

    members: list[int]
    module: nn.Module
    networks: list[nn.Module]
    stacked: bool = False
    names: list[str] = field(init=False)
    parameters: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        trained = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        self.names, self.parameters = [n for n, _ in trained], [p for _, p in trained]
        if self.stacked:
            self._share_memory()

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape], shared by all members, to outputs [N, B, classes]."""
        return self.module(x.expand(len(self.members), *x.shape)) if self.stacked else self.module(x).unsqueeze(0)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the same without gradients and hooks, one member after another where that is faster."""
        fast = None if torch.is_autocast_enabled(x.device.type) else self.fast_path
        return fast.outputs(x) if fast is not None and fast.is_faster(len(x)) else self.forward(x)

    @cached_property
    def fast_path(self) -> SequentialMembers | None:
        """The members to be computed one after another, where they can be; faster for large batches and layers."""
        return fast_path(self)

    def by_member(self, tensor: Tensor) -> Tensor:
        """View a tensor met inside the forward pass as [N, B, …]."""
        return tensor if self.stacked else tensor.unsqueeze(0)

    def unbind_members(self, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
        """Return the rows of tensors of the parameters' shapes by member: what one network's optimizer takes."""
        if not self.stacked:
            return [list(tensors)]
        return [list(own) for own in zip(*(t.unbind(0) for t in tensors), strict=True)]

    def drop(self, members: Sequence[int]) -> None:
        """Remove members: the others train on, bit for bit as before.

        The networks of those that leave keep the weights they had, in memory that is not the stack's.
        """
        stay = [k for k, member in enumerate(self.members) if member not in members]
        if len(stay) == len(self.members):
            return
        removed = [network for k, network in enumerate(self.networks) if k not in stay]
        self.members = [self.members[k] for k in stay]
        self.networks = [self.networks[k] for k in stay]
        if not self.stacked:
            return
        for network in removed:
            for tensor in named_tensors(network).values():
                tensor.data = tensor.data.clone()
        for tensor in named_tensors(self.module).values():
            rows = allocate_members(len(stay), tensor.shape[1:], tensor)
            for row, k in zip(rows, stay, strict=True):
                row.copy_(tensor.data[k])
            tensor.data = rows
        self._share_memory()

    def _share_memory(self) -> None:
        """Make the lone networks' tensors rows of the stack's."""
        vars(self).pop("fast_path", None)
        rows = named_tensors(self.module)
        for k, network in enumerate(self.networks):
            for name, tensor in named_tensors(network).items():
                tensor.data = rows[name].data[k]

    @cached_property
    def dropouts(self) -> list[Dropout]:
        """The dropout layers in order."""
        return [m for m in self.module.modules() if isinstance(m, Dropout)]

    @cached_property
    def draws_globally(self) -> bool:
        """Whether a forward pass may draw from the global random state; our own families never do."""
        foreign = any(isinstance(m, GLOBAL_DROPOUTS) for m in self.module.modules())
        return foreign or not hasattr(self.module, "weight_layers")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
