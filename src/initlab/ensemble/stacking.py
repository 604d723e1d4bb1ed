"""Which networks are computed as one, how many at a time, and how the stack is made."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from initlab.ensemble.layers import StackedConv2d
from initlab.ensemble.part import Part
from initlab.ensemble.registry import COUNTERPARTS, has_counterpart
from initlab.models import WeightLayer

# Weights of one part on a CPU, in bytes. With gradients and momentum they are three times as much, for every core, and
# should stay in the cache from the forward pass to the update; a part much smaller costs more calls than it saves.
PART_BYTES = 16 * 2**20
# Large networks overflow it one by one already, and in sixes they share the calls: 64 residual blocks of width 128 took
# 54 ms a step alone in a part, 37 in sixes, and 45 in a plain loop; on 4 layers of width 1,024 it was 28, 25 and 45.
PART_MIN_MEMBERS = 6
PART_MAX_MEMBERS = 64


def part_sizes(networks: Sequence[nn.Module], threads: int) -> list[int]:
    """Divide N networks into parts of nearly one size, as many for every thread, as large as the cache allows.

    The results do not depend on it, so threads and cache may differ between a run and its continuation.

    >>> part_sizes([nn.Linear(784, 128)] * 45, threads=2)
    [23, 22]
    >>> part_sizes([nn.Linear(4096, 2048, device="meta")] * 12, threads=1)
    [6, 6]
    """
    count = len(networks)
    each = sum(p.numel() * p.element_size() for p in networks[0].parameters())
    largest = min(PART_MAX_MEMBERS, max(PART_MIN_MEMBERS, PART_BYTES // max(each, 1)))
    parts = min(count, -(-count // (largest * threads)) * threads)
    return [count // parts + (k < count % parts) for k in range(parts)]


def is_container(module: nn.Module) -> bool:
    """Return whether a module only calls others and adds: a stack of it is one of it with stacked leaves.

    A class declares it by `only_calls_children = True`, for itself alone: a subclass may do more.

    >>> is_container(nn.Sequential()), is_container(nn.Linear(1, 1))
    (True, False)
    """
    kind = type(module)
    return kind in (nn.Sequential, nn.ModuleList) or bool(vars(kind).get("only_calls_children", False))


def leaf_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that are no containers by name, a shared one under each of its names."""
    leaves: dict[str, nn.Module] = {}
    last = ""
    for name, child in module.named_modules(remove_duplicate=False):
        if name and not is_container(child) and not (last and name.startswith(f"{last}.")):
            leaves[name], last = child, name
    return leaves


def can_stack(modules: Sequence[nn.Module]) -> bool:
    """Return whether networks can be stacked: one structure, known containers, leaves with a counterpart used once.

    >>> can_stack([nn.Sequential(nn.Linear(3, 2), nn.Tanh())] * 2), can_stack([nn.Bilinear(3, 3, 2)] * 2)
    (True, False)
    """
    first = modules[0]
    if not is_container(first):
        return False
    leaves = leaf_modules(first).values()
    owners = [id(leaf) for leaf in leaves if next(leaf.parameters(), None) is not None]
    same = all(str(module) == str(first) for module in modules)
    return same and all(map(has_counterpart, leaves)) and len(set(owners)) == len(owners)


def stack_networks(modules: Sequence[nn.Module]) -> nn.Module:
    """Return one module of the same structure whose leaves hold the parameters of all, [N, …]; see `can_stack`."""
    leaves = [leaf_modules(module) for module in modules]
    # deepcopy takes what is in its memo as already copied, so containers are copied around the new leaves.
    memo = {id(leaf): COUNTERPARTS[type(leaf)]([own[name] for own in leaves]) for name, leaf in leaves[0].items()}
    whole: Any = copy.deepcopy(modules[0], memo)
    if not hasattr(whole, "weight_layers"):
        matrices = [name for name, leaf in leaves[0].items() if getattr(leaf, "weight", torch.empty(0)).dim() >= 2]
        whole.weight_layers = tuple(WeightLayer(name, "unknown", "unknown") for name in matrices)
    return whole


def make_stacked_part(members: Sequence[int], modules: Sequence[nn.Module]) -> Part:
    """Return one part of networks that can be stacked; from now on their weights are the stack's memory."""
    return Part(list(members), stack_networks(modules), list(modules), stacked=True)


def make_plain_part(member: int, module: nn.Module) -> Part:
    """Return one network as a part: it costs what a plain loop costs."""
    return Part([member], module, [module])


def stacking_is_faster(modules: Sequence[nn.Module]) -> bool:
    """Return whether networks are faster as a stack than one by one.

    Dense networks always are, from two on. Convolutions on a CPU are not: grouped, they were 0.9 to 3 times as slow as
    the same ones in turn at 16 channels and more, and their bits depend on the number of groups. Transformers have no
    counterpart: at their default sizes calls are 3 % of a step, and with a stack's products it was 1.1 times as fast.
    """
    device = next(modules[0].parameters()).device
    maps = any(isinstance(leaf, (nn.Conv2d, StackedConv2d)) for leaf in leaf_modules(modules[0]).values())
    return len(modules) > 1 and not (maps and device.type == "cpu")
