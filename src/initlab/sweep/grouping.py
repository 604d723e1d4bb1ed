"""How groups share the workers: what an architecture costs, how it is cut, and which group goes first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from initlab.config import Config
from initlab.sweep.cells import Cell, group_key
from initlab.sweep.cost import NetworkCost, estimate_cost
from initlab.sweep.plan_file import Group

FACTORING_DIVISOR = 2  # a group takes at most one part in so many of what is left for every worker
SMALL_STEP = 5e6  # multiplications forward in a step up to which a network gains by training with others
SATURATED_STEP = 1e8  # of them all, from which on it gains no more


@dataclass
class CostCache:
    """What one network of each architecture takes, estimated when first asked for."""

    found: dict[str, NetworkCost] = field(default_factory=dict)

    def of(self, cell: Cell) -> NetworkCost:
        """Return what one network like this takes."""
        return self.of_config(cell.config)

    def of_config(self, config: Config) -> NetworkCost:
        """Return what one network of this configuration takes."""
        key = group_key(config)
        if key not in self.found:
            self.found[key] = estimate_cost(config)
        return self.found[key]


@dataclass(frozen=True)
class Architecture:
    """So many networks of one architecture; the work of one in all its steps and in one; how many fit together."""

    count: int
    work: int
    step: float
    fits: int


def split_evenly(count: int, largest: int) -> list[int]:
    """Cut so many into as few pieces as `largest` allows, of sizes that differ by one at most.

    >>> split_evenly(7, largest=3), split_evenly(0, largest=3)
    ([3, 2, 2], [])
    """
    pieces = -(-count // max(largest, 1))
    size, extra = divmod(count, max(pieces, 1))
    return [size + (k < extra) for k in range(pieces)]


def gpu_group_sizes(kinds: Sequence[Architecture], workers: int, least: int) -> list[list[int]]:
    """Return how many networks train together, by kind: evenly cut where workers would have nothing to do.

    A step of few small networks takes a card about as long as one of many: finer cuts would cost more than they even
    out.

    >>> gpu_group_sizes([Architecture(8, 100, 1e6, fits=8)], workers=2, least=2), gpu_group_sizes([Architecture(5, 1, 1e6, 5)], 4, least=2)
    ([[4, 4]], [[3, 2]])
    """
    share = sum(kind.count * kind.work for kind in kinds) / workers
    found = []
    for kind in kinds:
        pieces = min(-(-kind.count // max(int(share / kind.work), 1)), max(kind.count // least, 1))
        found.append(split_evenly(kind.count, min(kind.fits, -(-kind.count // pieces))))
    return found


def factoring_group_sizes(kinds: Sequence[Architecture], workers: int, least: int) -> list[list[int]]:
    """Return how many networks train together, by kind: ever fewer, so that all workers are done at about one time.

    In every round each worker gets half of its share in what has not been given out, the largest networks first. The
    last groups are short beside the whole, whatever the first ones really took (Hummel, Schonberg and Flynn 1992,
    "Factoring: A Method for Scheduling Parallel Loops").

    Arguments: `least` that a group has, unless there are no more or they do not fit.

    >>> factoring_group_sizes([Architecture(40, 100, 1e7, fits=99)], workers=2, least=2)
    [[10, 10, 5, 5, 2, 2, 3, 3]]
    >>> factoring_group_sizes([Architecture(9, 100, 1e7, fits=3), Architecture(9, 50, 1e6, fits=99)], workers=2, least=2)
    [[3, 3, 3], [5, 4]]
    """
    left = sum(kind.count * kind.work for kind in kinds)
    first = left / (FACTORING_DIVISOR * workers)
    found: list[list[int]] = [[] for _ in kinds]
    for kind, sizes in sorted(zip(kinds, found, strict=True), key=lambda pair: -pair[0].work):
        worth = min(SATURATED_STEP / kind.step, first / kind.work) if kind.step <= SMALL_STEP else least
        floor = max(int(worth), least)
        rest = kind.count
        while rest:
            size = min(max(int(left / (FACTORING_DIVISOR * workers * kind.work)), floor), kind.fits)
            given = min(workers * size, rest)
            given = rest if rest - given < workers * floor else given
            groups = max(min(workers, given // floor), -(-given // min(max(size, least + 1), kind.fits)))
            sizes += split_evenly(given, -(-given // groups))
            rest -= given
            left -= given * kind.work
    return found


def every_worker_gets_pair(networks: Sequence[int], workers: int) -> bool:
    """Can every worker have a group of two or more, of so many networks of each architecture?

    From two on a network's numbers do not depend on its group, so that they are the same however the grid is cut; a
    lone one rounds otherwise.

    >>> every_worker_gets_pair([5, 3], workers=3), every_worker_gets_pair([5, 3], workers=4)
    (True, False)
    """
    return sum(count // 2 for count in networks) >= workers


def sort_longest_first(groups: Sequence[Group], sizes: CostCache) -> list[Group]:
    """Return the groups by falling work, among equals as they were, so that what comes last is soon done.

    Workers that take the longest of what is left are never done later than 4/3 of the best time there is (Graham 1969,
    "Bounds on Multiprocessing Timing Anomalies").
    """
    return sorted(groups, key=lambda group: -len(group.cells) * sizes.of(group.cells[0]).work)
