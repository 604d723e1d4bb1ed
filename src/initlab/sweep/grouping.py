"""How groups share the workers: how architectures are cut into groups, and which group goes first."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from initlab.sweep.cells import Cell
from initlab.sweep.cost import CostCache, max_group_size
from initlab.sweep.plan_file import Group

FACTORING_DIVISOR = 2  # a group takes at most this part of what every worker still has to do
SMALL_STEP = 5e6  # multiplications in a forward pass up to which a network gains by training with others
SATURATED_STEP = 1e8  # multiplications of all networks of a group from which on more networks gain nothing


@dataclass(frozen=True)
class Architecture:
    """Networks of one architecture that are to be divided into groups.

    Attributes:
        count: how many networks.
        work: multiplications of one in all its steps.
        step: multiplications of one in one step.
        fits: how many fit into the memory together.
    """

    count: int
    work: int
    step: float
    fits: int


def group_sizes(kinds: Sequence[Sequence[Cell]], workers: int, least: int, costs: CostCache) -> list[list[int]]:
    """Return, for each architecture, how many networks each of its groups has.

    Groups fit into the memory, and give all workers something to do.

    Args:
        kinds: cells of each architecture.
        workers: how many groups this machine computes at a time.
        least: how many networks a group should have at least.
        costs: what one network of each architecture takes.
    """
    architectures, on_gpu = [], False
    for cells in kinds:
        config, cost = cells[0].config, costs.of(cells[0])
        gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
        fits = max_group_size(config, cost.bytes, -(-workers // max(gpus, 1)))
        architectures.append(Architecture(len(cells), cost.work, cost.work_per_step, fits))
        on_gpu = on_gpu or gpus > 0
    if workers == 1:
        return [split_evenly(each.count, each.fits) for each in architectures]
    return (gpu_group_sizes if on_gpu else factoring_group_sizes)(architectures, workers, least)


def split_evenly(count: int, largest: int) -> list[int]:
    """Divide a number into as few pieces as `largest` allows, of sizes that differ by one at most.

    >>> split_evenly(7, largest=3), split_evenly(0, largest=3)
    ([3, 2, 2], [])
    """
    pieces = -(-count // largest)
    size, extra = divmod(count, max(pieces, 1))
    return [size + (k < extra) for k in range(pieces)]


def gpu_group_sizes(architectures: Sequence[Architecture], workers: int, least: int) -> list[list[int]]:
    """Return how many networks train together, by architecture: evenly cut where workers would have nothing to do.

    A step of few small networks takes a GPU about as long as one of many: finer cuts would cost more than they even
    out.

    >>> kinds = [Architecture(8, 100, 1e6, fits=8)]
    >>> gpu_group_sizes(kinds, workers=2, least=2), gpu_group_sizes([Architecture(5, 1, 1e6, 5)], 4, least=2)
    ([[4, 4]], [[3, 2]])
    """
    share = sum(kind.count * kind.work for kind in architectures) / workers
    sizes = []
    for kind in architectures:
        pieces = min(-(-kind.count // max(int(share / kind.work), 1)), max(kind.count // least, 1))
        sizes.append(split_evenly(kind.count, min(kind.fits, -(-kind.count // pieces))))
    return sizes


def factoring_group_sizes(architectures: Sequence[Architecture], workers: int, least: int) -> list[list[int]]:
    """Return how many networks train together, by architecture: ever fewer, so that all workers end at about one time.

    In every round each worker gets half of its share in what has not been given out, the largest networks first. The
    last groups are short beside the whole, whatever the first ones really took (Hummel, Schonberg and Flynn 1992,
    "Factoring: A Method for Scheduling Parallel Loops"). A group has at least `least` networks, unless there are no
    more or they do not fit.

    >>> factoring_group_sizes([Architecture(40, 100, 1e7, fits=99)], workers=2, least=2)
    [[10, 10, 5, 5, 2, 2, 3, 3]]
    >>> kinds = [Architecture(9, 100, 1e7, fits=3), Architecture(9, 50, 1e6, fits=99)]
    >>> factoring_group_sizes(kinds, workers=2, least=2)
    [[3, 3, 3], [5, 4]]
    """
    left = sum(kind.count * kind.work for kind in architectures)
    first = left / (FACTORING_DIVISOR * workers)
    by_kind: list[list[int]] = [[] for _ in architectures]
    for kind, sizes in sorted(zip(architectures, by_kind, strict=True), key=lambda pair: -pair[0].work):
        worth = min(SATURATED_STEP / kind.step, first / kind.work) if kind.step <= SMALL_STEP else least
        floor = max(int(worth), least)
        rest = kind.count
        while rest:
            size = min(max(int(left / (FACTORING_DIVISOR * workers * kind.work)), floor), kind.fits)
            part = min(workers * size, rest)
            part = rest if rest - part < workers * floor else part
            groups = max(min(workers, part // floor), -(-part // min(max(size, least + 1), kind.fits)))
            sizes += split_evenly(part, -(-part // groups))
            rest -= part
            left -= part * kind.work
    return by_kind


def every_worker_gets_pair(networks: Sequence[int], workers: int) -> bool:
    """Return whether every worker can have a group of two or more, for these numbers of networks of each architecture.

    From two on a network's numbers do not depend on its group, so that they are the same however the grid is cut; a
    network alone rounds otherwise.

    >>> every_worker_gets_pair([5, 3], workers=3), every_worker_gets_pair([5, 3], workers=4)
    (True, False)
    """
    return sum(count // 2 for count in networks) >= workers


def sort_longest_first(groups: Sequence[Group], costs: CostCache) -> list[Group]:
    """Return the groups by falling work, equal ones in their order, so that the last ones are short.

    Workers that always take the longest group end no later than 4/3 of the best time there is (Graham 1969,
    "Bounds on Multiprocessing Timing Anomalies").
    """
    return sorted(groups, key=lambda group: -len(group.cells) * costs.of(group.cells[0]).work)
