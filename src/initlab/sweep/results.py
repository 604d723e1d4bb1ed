"""The result of each cell, read from its directory; and the table of all of them, written as cells finish."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.records import read_run, run_directories, tabulate, write_sweep
from initlab.records.repair import rewrite_config
from initlab.sweep.cells import Cell

if TYPE_CHECKING:
    import pandas as pd

OnCellEnd = Callable[[Cell, dict[str, Any], bool], None]  # a cell, its summary, and whether it has run just now
FINISHED_STATUSES = ("completed", "diverged")
TABLE_INTERVAL = 5.0  # seconds between writings of sweep.csv
TABLE_COST_FACTOR = 50  # and at least this many times the seconds that one takes: a sweep may have thousands of rows


class SweepResults:
    """The rows of a sweep's table, (configuration, result) by directory: all that is there, and cells as they end."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.next_write = 0.0
        paths = run_directories(directory) if directory.is_dir() else []
        self.rows = {path: read_run(path, read_weights=True) for path in paths}

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a cell that is done and undamaged, or None."""
        row = self.rows.get(cell.directory)
        return row[1] if row and is_finished(row[1], cell.hash) else None

    def damage(self, cell: Cell) -> str | None:
        """Return what is wrong with a run that seemed done, or None; a damaged configuration alone is written again."""
        row = self.rows.get(cell.directory)
        if row is None or row[1]["status"] == "unfinished" or not row[1]["problem"]:
            return None
        problem, repair = row[1]["problem"], "it is run again"
        config_only = problem.startswith("config.yaml") and row[1]["status"] in FINISHED_STATUSES
        if config_only and rewrite_config(cell.directory):
            self.read(cell)
            repair = "it was written again from summary.json"
        return f"{cell.directory.name}: {problem}, so {repair}"

    def read(self, cell: Cell) -> None:
        """Read a cell's directory again."""
        self.rows[cell.directory] = read_run(cell.directory)

    def write_if_due(self) -> None:
        """Write `sweep.csv` unless that was done a moment ago."""
        if time.monotonic() >= self.next_write:
            self.write()

    def write(self) -> None:
        """Write `sweep.csv`, one row per run that is there."""
        started = time.monotonic()
        write_sweep(self.directory, self.frame())
        seconds = time.monotonic() - started
        self.next_write = time.monotonic() + max(TABLE_INTERVAL, TABLE_COST_FACTOR * seconds)

    def frame(self, cells: Sequence[Cell] | None = None) -> "pd.DataFrame":
        """Return the table of all runs, or of some cells in their order, with the columns of `initlab.load`."""
        paths = sorted(self.rows) if cells is None else [c.directory for c in cells if c.directory in self.rows]
        return tabulate(self.rows[path] for path in paths)


@dataclass
class Outcome:
    """What a launch left.

    Attributes:
        cells: of this grid, each with the reason why it was skipped.
        results: of all that is in the directory.
        seconds: how long the launch took.
    """

    cells: Sequence[Cell]
    results: SweepResults
    seconds: float

    def frame(self) -> "pd.DataFrame":
        """Return one row per cell of this grid, in its order."""
        return self.results.frame(self.cells)


def is_finished(result: Mapping[str, Any], digest: str) -> bool:
    """Return whether a run is done, undamaged, and the one with this hash."""
    return result["status"] in FINISHED_STATUSES and not result["problem"] and result.get("hash") == digest
