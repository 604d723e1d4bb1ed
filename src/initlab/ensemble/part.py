"""A part: networks that are computed together, as one module, on common batches."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.sequential import SequentialMembers, sequential_members
from initlab.ensemble.layers import StackedLinear
from initlab.ensemble.matmul import allocate_members
from initlab.models import Dropout


@dataclass
class Part:
    """Networks computed by one forward pass: a plain module (one member), or N of them stacked.

    `members` are positions in the ensemble; `names` and `parameters` what is trained, tensors [N, …] when `stacked`.
    `networks` are the lone modules, by position: their weights are the stack's own memory, so they are always current.
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
            self._share()

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch [B, *input_shape], shared by all members, to outputs [N, B, classes]."""
        return self.module(x.expand(len(self.members), *x.shape)) if self.stacked else self.module(x).unsqueeze(0)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the same where nobody listens and nobody wants gradients: one member after another where that pays."""
        lane = None if torch.is_autocast_enabled(x.device.type) else self.lane
        return lane.outputs(x) if lane is not None and lane.pays(len(x)) else self.forward(x)

    def give_back(self, batch: int) -> None:
        """Give back what `outputs` took, but for batches of this size: evaluations take more samples than steps."""
        if "lane" in vars(self) and self.lane is not None:
            self.lane.rooms = {count: room for count, room in self.lane.rooms.items() if count == batch}

    def by_member(self, tensor: Tensor) -> Tensor:
        """View a tensor met inside the forward pass as [N, B, …]."""
        return tensor if self.stacked else tensor.unsqueeze(0)

    def of_member(self, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
        """Part tensors of the parameters' shapes by position: what one network's optimizer sees."""
        if not self.stacked:
            return [list(tensors)]
        return [list(own) for own in zip(*(t.unbind(0) for t in tensors), strict=True)]

    def drop(self, members: Sequence[int]) -> None:
        """Let members go: the others train on, bit for bit as before, and what is gone costs nothing.

        Their networks keep the weights they had, in memory of their own.
        """
        stay = [k for k, member in enumerate(self.members) if member not in members]
        if len(stay) == len(self.members):
            return
        left = [network for k, network in enumerate(self.networks) if k not in stay]
        self.members = [self.members[k] for k in stay]
        self.networks = [self.networks[k] for k in stay]
        if not self.stacked:
            return
        for network in left:
            for tensor in named_tensors(network).values():
                tensor.data = tensor.data.clone()
        for tensor in named_tensors(self.module).values():
            rows = allocate_members(len(stay), tensor.shape[1:], tensor)
            for row, k in zip(rows, stay, strict=True):
                row.copy_(tensor.data[k])
            tensor.data = rows
        self._share()

    def _share(self) -> None:
        """Let the lone networks' tensors be rows of the stack's."""
        vars(self).pop("lane", None)
        rows = named_tensors(self.module)
        for k, network in enumerate(self.networks):
            for name, tensor in named_tensors(network).items():
                tensor.data = rows[name].data[k]

    def sinks(self) -> list[Tensor]:
        """Allocate tensors for the gradients of the parameters, every member on a boundary of its own."""
        return [allocate_members(len(p), p.shape[1:], p) for p in self.parameters]

    @contextmanager
    def gradients_into(self, sinks: Sequence[Tensor]) -> Iterator[None]:
        """Let the layers that can write their gradients there: those of passes that begin and end in here."""
        for layer, weight, bias in self._writers:
            # Past nn.Module's own __setattr__, which takes longer than a small layer's product.
            vars(layer)["sinks"] = sinks[weight], None if bias is None else sinks[bias]
        try:
            yield
        finally:
            for layer, _, _ in self._writers:
                vars(layer)["sinks"] = None

    @cached_property
    def lane(self) -> SequentialMembers | None:
        """The way through the networks one by one, where they have one; it pays for large batches and layers."""
        return sequential_members(self.module, self.parameters) if self.stacked else None

    @cached_property
    def _writers(self) -> list[tuple[StackedLinear, int, int | None]]:
        place = {id(p): k for k, p in enumerate(self.parameters)}
        layers = [m for m in self.module.modules() if isinstance(m, StackedLinear) and id(m.weight) in place]
        return [(layer, place[id(layer.weight)], place.get(id(layer.bias))) for layer in layers]

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


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
