"""The plan of a sweep: which cells train together, fixed in a file so that every launch means the same groups."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from initlab.errors import UserError
from initlab.records.checksums import append_checksum, verify_checksum
from initlab.sweep.cells import Cell, group_key
from initlab.system.files import write_atomically
from initlab.system.safe_reading import (
    MAX_TABLE_BYTES,
    abbreviate,
    error_reason,
    load_bounded_json,
    read_bytes,
    require_mapping,
)

PLAN_FORMAT = 2


@dataclass(frozen=True)
class Group:
    """Cells that train together and are checkpointed as one; `id` names its checkpoint."""

    id: str
    cells: tuple[Cell, ...]

    def halves(self) -> "list[Group]":
        """Divide the group in two, to find out which of its cells is to blame."""
        middle = (len(self.cells) + 1) // 2
        return [Group(self.id + "a", self.cells[:middle]), Group(self.id + "b", self.cells[middle:])]


@dataclass
class PlanFile:
    """`plan.json`: group id -> hashes of its cells, for all that was ever planned under this name.

    A copy lies beside it as `.plan.json`: networks that train in other groups differ by rounding.
    """

    path: Path
    groups: dict[str, list[str]] = field(default_factory=dict)
    damage: str = ""
    lost: bool = False

    @classmethod
    def read(cls, path: Path) -> "PlanFile":
        """Read the file, or its copy where it is damaged; `damage` says so, and `lost` whether the copy is, too.

        Raises:
            UserError: a directory stands in its place.
        """
        for place in (path, backup_path(path)):
            if place.is_dir():
                raise UserError(f"{place} is a directory, where the plan of a sweep is a file: remove it.")
        try:
            return cls(path, read_groups(path))
        except FileNotFoundError as missing:
            reason: Exception = missing
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error
        new = isinstance(reason, FileNotFoundError)
        told = f"{path} is missing" if new else f"{path} cannot be read ({error_reason(reason)})"
        try:
            return cls(path, read_groups(backup_path(path)), f"{told}: its copy {backup_path(path).name} is used")
        except FileNotFoundError:
            return cls(path) if new else cls(path, damage=f"{told}: its groups are planned again", lost=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(path, damage=f"{told}: its groups are planned again", lost=True)

    @staticmethod
    def is_whole(path: Path) -> bool:
        """Are the file and its copy both there, undamaged and the same, so that neither has to be written?"""
        try:
            return read_groups(path) == read_groups(backup_path(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def write(self) -> None:
        """Write the file and its copy, each whole or not at all, durably."""
        data = {"format": PLAN_FORMAT, "groups": self.groups}
        text = append_checksum(json.dumps(data, indent=0).encode())
        for path in (backup_path(self.path), self.path):
            write_atomically(path, text, durable=True)

    def split(self, group: Group) -> list[Group]:
        """Replace a group by its halves, here and in the file."""
        halves = group.halves()
        self.groups.pop(group.id, None)
        self.groups |= {half.id: [cell.hash for cell in half.cells] for half in halves}
        self.write()
        return halves

    def next_id(self) -> str:
        """Return an id that no group has had."""
        numbers = [int(found.group(1)) for name in self.groups if (found := re.match(r"g(\d+)", name))]
        return f"g{max(numbers, default=0) + 1:04d}"


def check_group_id(name: str) -> str:
    """Return the id of a group as a plan gives them; files are called by it.

    Raises:
        ValueError: it is none.

    >>> check_group_id("g0001ab")
    'g0001ab'
    """
    if not re.fullmatch(r"g\d{4,9}[ab]{0,40}", name, re.ASCII):
        raise ValueError(f"{abbreviate(name)} is no group")
    return name


def backup_path(path: Path) -> Path:
    """Return where the copy of a plan lies."""
    return path.with_name(f".{path.name}")


def read_groups(path: Path) -> dict[str, list[str]]:
    """Return the groups of a plan; raises FileNotFoundError, or one of several others where it is damaged."""
    data = read_bytes(path, MAX_TABLE_BYTES)
    found = require_mapping(load_bounded_json(data))
    if found.get("format") != PLAN_FORMAT:
        raise ValueError(f"its format is not {PLAN_FORMAT}")
    return {
        check_group_id(name): [str(h) for h in hashes]
        for name, hashes in verify_checksum(found, data)["groups"].items()
    }


def assign_groups(
    plan: PlanFile,
    cells: Sequence[Cell],
    done: Callable[[Cell], bool],
    divided: Callable[[Sequence[Sequence[Cell]]], Sequence[Sequence[int]]],
) -> list[Group]:
    """Return the groups that are still to be run, in the order of their first cells, and note new ones in the plan.

    A group of the plan whose cells are all wanted is run as it is, all of it, if any of its cells is not done: so it
    can go on from its checkpoint, and ends as if never stopped. What is left is grouped by what may train together, in
    pieces of even size.

    Arguments: `cells` that are wanted, in the order to run them; `done(cell)`; `largest(cells)`, how many of such
    cells may train together.
    """
    by_hash = {cell.hash: cell for cell in cells}
    open_hashes = {cell.hash for cell in cells if not done(cell)}
    groups: list[Group] = []
    for name, hashes in list(plan.groups.items()):
        if not open_hashes.intersection(hashes):
            continue
        if all(h in by_hash for h in hashes):
            groups.append(Group(name, tuple(by_hash[h] for h in hashes)))
            open_hashes.difference_update(hashes)
        else:
            # The grid has shrunk: what is left of this group is not the group that its checkpoint knows.
            plan.groups[name] = [h for h in hashes if h not in open_hashes]
            if not plan.groups[name]:
                del plan.groups[name]
    # Where the plan was lost, what is done helps to find the groups that there were.
    fresh = [cell for cell in cells if cell.hash in open_hashes or plan.lost]
    kinds = cells_by_key(fresh)
    for alike, sizes in zip(kinds, divided(kinds), strict=True):
        rest = iter(alike)
        for size in sizes:
            group = Group(plan.next_id(), tuple(islice(rest, size)))
            plan.groups[group.id] = [cell.hash for cell in group.cells]
            if any(cell.hash in open_hashes for cell in group.cells):
                groups.append(group)
    position = {cell.hash: k for k, cell in enumerate(cells)}
    return sorted(groups, key=lambda group: min(position[cell.hash] for cell in group.cells))


def cells_by_key(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Collect cells that may train together, in the order of their first ones."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(group_key(cell.config), []).append(cell)
    return list(groups.values())
