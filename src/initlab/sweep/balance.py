"""How groups share the workers: what an architecture costs, how finely it is cut, and which group goes first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from initlab.sweep.cells import Cell, group_key
from initlab.sweep.memory import Size, network_size
from initlab.sweep.plan import Group, by_key

PER_WORKER = 2  # groups that a worker has at least: then none is long beside what all have to do
# A step of few small networks takes a card about as long as one of many: finer cuts would cost more than they even out.
PER_CARD = 1


@dataclass
class Sizes:
    """What one network of each architecture takes, estimated when first asked for."""

    found: dict[str, Size] = field(default_factory=dict)

    def of(self, cell: Cell) -> Size:
        """Return what one network like this takes."""
        key = group_key(cell.config)
        if key not in self.found:
            self.found[key] = network_size(cell.config)
        return self.found[key]

    def work(self, cells: Sequence[Cell]) -> int:
        """Return what these cells take together."""
        return sum(len(alike) * self.of(alike[0]).work for alike in by_key(cells))


def fair_share(work: int, total: int, workers: int, cards: int) -> int:
    """Return how many networks may train together so that several workers have about equally much to do.

    Arguments: `work` of one of them; `total` of all that is to be done; `cards` that the workers use, 0 for none.

    >>> fair_share(work=10, total=1600, workers=2, cards=0), fair_share(work=10, total=1600, workers=2, cards=2)
    (40, 80)
    """
    return max(total // (workers * (PER_CARD if cards else PER_WORKER) * work), 1)


def no_lone_ones(networks: Sequence[int], workers: int) -> bool:
    """Can every worker have a group of two or more, of so many networks of each architecture?

    From two on a network's numbers do not depend on its group, so that they are the same however the grid is cut; a
    lone one rounds otherwise.

    >>> no_lone_ones([5, 3], workers=3), no_lone_ones([5, 3], workers=4)
    (True, False)
    """
    return sum(count // 2 for count in networks) >= workers


def cut(count: int, share: int, least: int) -> int:
    """Return how many of `count` networks train together: at most `share`, unless fewer than `least` would be left.

    >>> cut(8, share=3, least=2), cut(5, share=1, least=2), cut(3, share=2, least=2), cut(3, share=2, least=1)
    (3, 3, 3, 2)
    """
    pieces = min(-(-count // share), max(count // least, 1))
    return -(-count // pieces)


def longest_first(groups: Sequence[Group], sizes: Sizes) -> list[Group]:
    """Return the groups by falling work, among equals as they were, so that what comes last is soon done.

    Workers that take the longest of what is left are never done later than 4/3 of the best time there is (Graham 1969,
    "Bounds on Multiprocessing Timing Anomalies").
    """
    return sorted(groups, key=lambda group: -len(group.cells) * sizes.of(group.cells[0]).work)
