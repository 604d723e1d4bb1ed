"""A sweep that has nothing left to do: its records are read and shown, and torch is not loaded for it."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from initlab.config import Config
from initlab.config.naming import config_hash
from initlab.records.serialization import from_json
from initlab.sweep.cells import Cell
from initlab.sweep.links import refuse_links
from initlab.sweep.locks import sweep_lock
from initlab.sweep.plan_file import PlanFile
from initlab.sweep.progress import SweepProgressLine
from initlab.sweep.results import Outcome, SweepResults
from initlab.system.safe_reading import read_bytes

OnCellEnd = Callable[[Cell, dict[str, Any], bool], None]
DECIDING_PACKAGES = ("initlab", "torch")  # packages whose version may decide whether a cell can exist


def all_have_summaries(directories: Sequence[Path]) -> bool:
    """Has every cell a summary, so that it is worth a look whether all are done?"""
    return all((directory / "summary.json").exists() for directory in directories)


def load_finished_sweep(
    configs: Sequence[Config],
    directories: Sequence[Path],
    directory: Path,
    ended: OnCellEnd,
    opened: Callable[[], None],
    quiet: bool = False,
) -> Outcome | None:
    """Return the outcome of a sweep whose cells are all done, or None where anything is left to do or to mend.

    A cell that cannot exist is taken as recorded, as long as the versions are those that decided it.

    Arguments: as of `run_sweep`.

    Raises UserError when another launch runs this sweep.
    """
    started, first = time.monotonic(), configs[0]
    if first.race or first.dry_run or len({*directories}) < len(directories) or not all_have_summaries(directories):
        return None
    with sweep_lock(directory):
        if (directory / ".groups").exists() or not PlanFile.is_whole(directory / "plan.json"):
            return None
        results = SweepResults(directory)
        cells = recorded_cells(configs, directories, results)
        if cells is None:
            return None
        refuse_links(cells, directory)
        opened()
        possible = [cell for cell in cells if cell.reason is None]
        for cell in cells:
            ended(cell, results.rows[cell.directory][1], False)
        line = SweepProgressLine.quiet() if quiet else SweepProgressLine("sweep")
        line.say(f"{len(possible)} of {len(possible)} networks are done already.")
        results.write()
    return Outcome(cells, results, time.monotonic() - started)


def recorded_cells(configs: Sequence[Config], directories: Sequence[Path], results: SweepResults) -> list[Cell] | None:
    """Return the cells as their records say, or None where one of them is not done."""
    cells = []
    for number, (config, directory) in enumerate(zip(configs, directories, strict=True)):
        cell = Cell(number, config, directory, config_hash(config))
        if results.finished(cell) is None:
            _, result = results.rows.get(directory, ({}, {}))
            if not is_current_skip(result, cell):
                return None
            cell = Cell(number, config, directory, cell.hash, str(result["reason"]))
        cells.append(cell)
    reasons = [cell.reason for cell in cells if cell.reason]
    refused = len(reasons) == len(cells) or (reasons and configs[0].sweep.impossible == "error")
    return None if refused else cells


def is_current_skip(result: Mapping[str, Any], cell: Cell) -> bool:
    """Is this cell recorded, undamaged, as one that cannot exist, by the versions that are installed now?"""
    if result.get("status") != "skipped" or result.get("hash") != cell.hash:
        return False
    if result["problem"] or not result.get("reason"):
        return False
    try:
        decided = from_json(read_bytes(cell.directory / "summary.json")).get("environment", {})["versions"]
        return all(decided[name] == version(name) for name in DECIDING_PACKAGES)
    except (OSError, ValueError, KeyError, TypeError, PackageNotFoundError):
        return False
