"""Many networks of one architecture as one computation: parts that train together, each with N ≥ 1 members."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from initlab.models import Dropout


@dataclass
class Part:
    """Networks computed by one forward pass: a plain module (one member), or N of them stacked.

    `members` are positions in the ensemble; `parameters` and `names` what is trained, tensors [N, …] when `stacked`.
    """

    members: list[int]
    module: nn.Module
    names: list[str]
    parameters: list[Tensor]
    stacked: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape], shared by all members, to outputs [N, B, classes]."""
        out = self.module(x)
        return out if self.stacked else out.unsqueeze(0)

    def by_member(self, tensor: Tensor) -> Tensor:
        """View a tensor met inside the forward pass as [N, B, …]."""
        return tensor if self.stacked else tensor.unsqueeze(0)

    def parameters_of(self, position: int) -> dict[str, Tensor]:
        """Return one member's parameters and buffers by name, detached."""
        module_state = self.module.state_dict()
        if not self.stacked:
            return {k: v.detach() for k, v in module_state.items()}
        return {k: v[position].detach() for k, v in module_state.items()}

    def key_dropout(self, generators: Sequence[torch.Generator]) -> None:
        """Give every dropout layer, in order, the generator of its mask for this step."""
        for layer, generator in zip(self.dropouts, generators, strict=True):
            layer.generator = generator

    @cached_property
    def dropouts(self) -> list[Dropout]:
        """The dropout layers in order."""
        return [m for m in self.module.modules() if isinstance(m, Dropout)]

    @cached_property
    def draws_globally(self) -> bool:
        """May a forward pass draw from the global random state? Our own families never do."""
        foreign = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in self.module.modules())
        return foreign or not hasattr(self.module, "weight_layers")


@dataclass
class Ensemble:
    """N networks of one architecture, trained on common batches."""

    parts: list[Part]

    @property
    def size(self) -> int:
        """The number of networks."""
        return sum(len(part.members) for part in self.parts)


def stack(modules: Sequence[nn.Module]) -> Ensemble:
    """Put networks of one architecture together so that they train together.

    Arguments: `modules`, already initialized, on one device, of the same parameter names and shapes.

    >>> ensemble = stack([nn.Linear(3, 2), nn.Linear(3, 2)])
    >>> ensemble.size, [tuple(part.forward(torch.zeros(4, 3)).shape) for part in ensemble.parts]
    (2, [(1, 4, 2), (1, 4, 2)])
    """
    return Ensemble([plain_part(i, module) for i, module in enumerate(modules)])


def plain_part(member: int, module: nn.Module) -> Part:
    """Wrap one network as it is: it costs what a plain loop costs."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return Part([member], module, [n for n, _ in trained], [p for _, p in trained])
