"""The plan of a sweep: which cells train together, fixed in a file so that every launch means the same groups."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from initlab.errors import UserError
from initlab.records.checksums import append_checksum, verify_checksum
from initlab.sweep.cells import Cell, cells_by_key
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
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what a damaged plan may raise


@dataclass(frozen=True)
class Group:
    """Cells that train together and are checkpointed as one; `id` names its checkpoint."""

    id: str
    cells: tuple[Cell, ...]


@dataclass
class PlanFile:
    """`plan.json`: group id -> hashes of its cells, for all that was ever planned under this name.

    A copy lies beside it as `.plan.json`: networks that train in other groups differ by rounding.

    Attributes:
        path: of the file.
        groups: as above.
        damage: what is wrong with the file, empty if it is undamaged or new.
        lost: whether the copy is damaged as well.
    """

    path: Path
    groups: dict[str, list[str]] = field(default_factory=dict)
    damage: str = ""
    lost: bool = False

    @classmethod
    def read(cls, path: Path) -> "PlanFile":
        """Read the file, or its copy where it is damaged.

        Raises:
            UserError: a directory stands in its place.
        """
        backup = backup_path(path)
        for place in (path, backup):
            if place.is_dir():
                raise UserError(f"{place} is a directory, where the plan of a sweep is a file: remove it.")
        try:
            return cls(path, read_groups(path))
        except READ_ERRORS as error:
            missing = isinstance(error, FileNotFoundError)
            damage = f"{path} is missing" if missing else f"{path} cannot be read ({error_reason(error)})"
        try:
            return cls(path, read_groups(backup), f"{damage}: its copy {backup.name} is used")
        except READ_ERRORS as error:
            if missing and isinstance(error, FileNotFoundError):
                return cls(path)
            return cls(path, damage=f"{damage}: its groups are planned again", lost=True)

    @staticmethod
    def is_intact(path: Path) -> bool:
        """Return whether the file and its copy are undamaged and the same, so that neither has to be written."""
        try:
            return read_groups(path) == read_groups(backup_path(path))
        except READ_ERRORS:
            return False

    def write(self) -> None:
        """Write the file and its copy, each whole or not at all, durably."""
        data = {"format": PLAN_FORMAT, "groups": self.groups}
        text = append_checksum(json.dumps(data, indent=0).encode())
        for path in (backup_path(self.path), self.path):
            write_atomically(path, text, durable=True)

    def split(self, group: Group) -> list[Group]:
        """Replace a group by its halves, here and in the file, and return them."""
        middle = (len(group.cells) + 1) // 2
        halves = [Group(group.id + "a", group.cells[:middle]), Group(group.id + "b", group.cells[middle:])]
        self.groups.pop(group.id, None)
        self.groups |= {half.id: [cell.hash for cell in half.cells] for half in halves}
        self.write()
        return halves

    def next_id(self) -> str:
        """Return an id that no group has had."""
        numbers = [int(match[1]) for name in self.groups if (match := re.match(r"g(\d+)", name))]
        return f"g{max(numbers, default=0) + 1:04d}"


def planned_id(group_id: str) -> str:
    """Return the id that a group was planned under before it was split.

    >>> planned_id("g0001ab")
    'g0001'
    """
    return group_id.rstrip("ab")


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
    """Return the groups of a plan; raises one of `READ_ERRORS` where it is missing or damaged.

    Raises:
        ValueError: the file is of another format.
    """
    data = read_bytes(path, MAX_TABLE_BYTES)
    plan = require_mapping(load_bounded_json(data))
    if plan.get("format") != PLAN_FORMAT:
        raise ValueError(f"its format is not {PLAN_FORMAT}")
    groups = verify_checksum(plan, data)["groups"]
    return {check_group_id(name): [str(h) for h in hashes] for name, hashes in groups.items()}


def assign_groups(
    plan: PlanFile,
    cells: Sequence[Cell],
    undone: set[str],
    divide: Callable[[Sequence[Sequence[Cell]]], Sequence[Sequence[int]]],
) -> list[Group]:
    """Return the groups that are still to be run, in the order of their first cells, and note new ones in the plan.

    A group of the plan whose cells are all in the grid is run as it is, all of it, if any of its cells is not done: so
    it goes on from its checkpoint, and ends as if never stopped. The other cells are grouped by what may train
    together.

    Args:
        plan: what earlier launches planned.
        cells: the grid, in the order to run it.
        undone: hashes of the cells that are not done.
        divide: returns, for cells of each architecture, the sizes of their groups.
    """
    by_hash = {cell.hash: cell for cell in cells}
    undone = set(undone)
    groups: list[Group] = []
    for name, hashes in list(plan.groups.items()):
        if undone.isdisjoint(hashes):
            continue
        if all(h in by_hash for h in hashes):
            groups.append(Group(name, tuple(by_hash[h] for h in hashes)))
            undone.difference_update(hashes)
        else:
            # The grid has shrunk: the rest of this group is not the group of its checkpoint.
            plan.groups[name] = [h for h in hashes if h not in undone]
            if not plan.groups[name]:
                del plan.groups[name]
    # Where the plan was lost, cells that are done help to restore the groups that there were.
    kinds = cells_by_key(cell for cell in cells if cell.hash in undone or plan.lost)
    for alike, sizes in zip(kinds, divide(kinds), strict=True):
        rest = iter(alike)
        for size in sizes:
            group = Group(plan.next_id(), tuple(islice(rest, size)))
            plan.groups[group.id] = [cell.hash for cell in group.cells]
            if any(cell.hash in undone for cell in group.cells):
                groups.append(group)
    position = {cell.hash: k for k, cell in enumerate(cells)}
    return sorted(groups, key=lambda group: min(position[cell.hash] for cell in group.cells))
