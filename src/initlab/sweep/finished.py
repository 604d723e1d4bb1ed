"""A sweep whose runs are all done: its records are read and shown, and torch is not imported for it."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from initlab.config import Config
from initlab.config.naming import config_hash
from initlab.records.serialization import from_json
from initlab.sweep.cells import Cell
from initlab.sweep.locks import sweep_lock
from initlab.sweep.plan_file import PlanFile
from initlab.sweep.progress import SweepProgressLine
from initlab.sweep.results import OnCellEnd, Outcome, SweepResults
from initlab.system.safe_reading import read_bytes

DECIDING_PACKAGES = ("initlab", "torch")  # whose version may decide whether a cell can exist


def all_have_summaries(directories: Sequence[Path]) -> bool:
    """Return whether every cell has a summary, so that all may be done."""
    return all((directory / "summary.json").exists() for directory in directories)


def load_finished_sweep(
    configs: Sequence[Config],
    directories: Sequence[Path],
    directory: Path,
    on_end: OnCellEnd,
    on_open: Callable[[], None],
) -> Outcome | None:
    """Return the outcome of a sweep whose cells are all done, or None where anything is left to run or to repair.

    A cell that cannot exist is taken as recorded, as long as the versions are those that decided it.

    Args:
        configs: the grid.
        directories: of its cells.
        directory: of the sweep.
        on_end: as of `run_sweep`.
        on_open: as of `run_sweep`.

    Raises:
        UserError: another launch runs this sweep.
    """
    started, first = time.monotonic(), configs[0]
    if first.race or first.dry_run or len({*directories}) < len(directories) or not all_have_summaries(directories):
        return None
    with sweep_lock(directory, directories):
        if (directory / ".groups").exists() or not PlanFile.is_intact(directory / "plan.json"):
            return None
        results = SweepResults(directory)
        cells = recorded_cells(configs, directories, results)
        if cells is None:
            return None
        on_open()
        for cell in cells:
            on_end(cell, results.rows[cell.directory][1], False)
        possible = sum(cell.reason is None for cell in cells)
        SweepProgressLine("sweep").remark(f"{possible} of {possible} networks are done already.")
        results.write()
    return Outcome(cells, results, time.monotonic() - started)


def recorded_cells(configs: Sequence[Config], directories: Sequence[Path], results: SweepResults) -> list[Cell] | None:
    """Return the cells with the reasons that their records give, or None where one of them is not done."""
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
    """Return whether a cell is recorded, undamaged, as one that cannot exist, by the versions installed now."""
    same = result.get("status") == "skipped" and result.get("hash") == cell.hash
    if not same or result["problem"] or not result.get("reason"):
        return False
    try:
        decided = from_json(read_bytes(cell.directory / "summary.json")).get("environment", {})["versions"]
        return all(decided[name] == version(name) for name in DECIDING_PACKAGES)
    except (OSError, ValueError, KeyError, TypeError, PackageNotFoundError):
        return False
