"""Many networks of one architecture as one computation: parts that train together, each with N ≥ 1 members."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from initlab.ensemble.part import Part
from initlab.ensemble.registry import COUNTERPARTS
from initlab.ensemble.stacking import can_stack, make_plain_part, make_stacked_part, part_sizes, stacking_is_faster

__all__ = ["COUNTERPARTS", "Ensemble", "Part", "make_plain_part", "make_stacked_part", "stack"]


@dataclass
class Ensemble:
    """N networks of one architecture, trained on common batches.

    Attributes:
        parts: what is computed together.
        networks: the lone modules, by member: whatever trains, their weights and buffers are current.
    """

    parts: list[Part]
    networks: list[nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        by_member = {m: net for part in self.parts for m, net in zip(part.members, part.networks, strict=True)}
        self.networks = [by_member[m] for m in sorted(by_member)]

    @property
    def size(self) -> int:
        """The number of networks."""
        return len(self.networks)

    def drop(self, members: Sequence[int]) -> None:
        """Remove members from training; their networks keep the weights they had."""
        for part in self.parts:
            part.drop(members)
        self.parts = [part for part in self.parts if part.members]


def stack(modules: Sequence[nn.Module]) -> Ensemble:
    """Put networks of one architecture together so that they train together.

    Where it is faster, their parameters become one tensor [N, …] for each name, and every layer one batched product,
    or, where layers are large, one product after another (see `ensemble.cpu`); else they stay as they are. Either way
    an ensemble is several parts, small enough for the cache, and from two networks on every part is computed by one
    thread: a network's float32 trajectory is the same, bit for bit, whatever the ensemble's size, order and neighbors,
    and whatever the number of threads.

    Args:
        modules: initialized networks on one device, of the same parameter names and shapes. They remain the owners of
            their weights, which from now on are part of the stack's memory.

    >>> ensemble = stack([nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2))])
    >>> ensemble.size, [part.forward(torch.zeros(4, 3)).shape[1:] for part in ensemble.parts][0]
    (2, torch.Size([4, 2]))
    """
    if can_stack(modules) and stacking_is_faster(modules):
        on_cpu = next(modules[0].parameters()).device.type == "cpu"
        sizes = part_sizes(modules, torch.get_num_threads()) if on_cpu else [len(modules)]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        spans = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        return Ensemble([make_stacked_part(span, [modules[m] for m in span]) for span in spans])
    return Ensemble([make_plain_part(member, module) for member, module in enumerate(modules)])
