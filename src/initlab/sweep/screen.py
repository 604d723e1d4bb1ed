"""What a sweep prints when it is over: its table, what failed, what was skipped, where the files are."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from initlab.records import flatten
from initlab.records.repair import is_event_file_newer
from initlab.sweep.cells import Cell
from initlab.sweep.results import Outcome
from initlab.sweep.summary import all_keys, summarize_cells, varying_axes
from initlab.system.escape import print, printable
from initlab.system.numbers import format_rounded
from initlab.system.terminal import FILE_WIDTH, STATUS_STYLE, SafeConsole, format_duration, show_location

MAX_TABLE_ROWS = 40  # on the screen; sweep.csv has them all
MAX_LISTED = 5  # failures and reasons
# Left out of a table of cells, first to last, where the terminal is narrow.
OPTIONAL_COLUMNS = ("val accuracy", "loss", "runs", "test accuracy")


def show_outcome(outcome: Outcome, directory: Path) -> None:
    """Print the table of a sweep, what failed and what was skipped, and where the files are."""
    frame = outcome.frame()
    by = varying_axes(frame, all_keys(flatten(cell.config.plain()) for cell in outcome.cells))
    rows = summarize_cells(frame, by)
    show_cells(rows[:MAX_TABLE_ROWS], by)
    if len(rows) > MAX_TABLE_ROWS:
        print(f"… {len(rows) - MAX_TABLE_ROWS} more in sweep.csv")
    statuses = ", ".join(f"{count} {status}" for status, count in Counter(frame["status"]).most_common())
    print(f"{len(frame)} networks: {statuses} · {format_duration(outcome.seconds)}")
    failed = frame[frame["status"] == "failed"]
    for path, error in list(zip(failed["path"], failed.get("error", failed["path"]), strict=True))[:MAX_LISTED]:
        print(f"failed: {printable(Path(path).name)}: {printable(error)} (the traceback is in its run.log)")
    if len(failed) > MAX_LISTED:
        print(f"… {len(failed) - MAX_LISTED} more failed")
    show_skipped(outcome.cells, MAX_LISTED)
    tensorboard = any(cell.config.log.tensorboard for cell in outcome.cells)
    show_location(directory, SafeConsole(), " (sweep.csv: one row per run)", tensorboard=tensorboard)


def show_skipped(cells: Sequence[Cell], most: int | None = None) -> None:
    """Print why cells cannot exist, the most frequent reasons first, at most `most` of them."""
    reasons = Counter(cell.reason for cell in cells if cell.reason)
    for reason, count in reasons.most_common(most):
        print(f"skipped: {count} × {printable(reason)}")
    if most is not None and len(reasons) > most:
        print(f"… {len(reasons) - most} more reasons in sweep.csv")


def write_sweep_pictures(outcome: Outcome, directory: Path) -> None:
    """Write the sweep's own run for TensorBoard, unless its cells want none or it shows this table already."""
    wanted = any(cell.config.log.tensorboard for cell in outcome.cells)
    if wanted and not is_event_file_newer(directory / "sweep.csv", directory / "sweep"):
        from initlab.report.tensorboard import write_sweep_run

        write_sweep_run(directory, outcome.results.frame())


def show_cells(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], console: Console | None = None) -> None:
    """Print one line per cell of a sweep: mean ± std over seeds.

    Metrics that were not measured are left out, and those that do not fit; axes and status are not.

    Args:
        rows: one per cell, as `sweep.summary` makes them.
        axes: the columns that tell cells apart.
        console: standard output by default.
    """
    console = console or SafeConsole()
    if not console.is_terminal:
        console = SafeConsole(width=FILE_WIDTH)
    columns = {
        **{axis: [Text(printable(shorten_number(str(row[axis])))) for row in rows] for axis in axes},
        "runs": [Text(format_run_count(row.get("completed", row["runs"]), row["runs"])) for row in rows],
        "test accuracy": [Text(format_mean_std(row, "test_accuracy", percent=True)) for row in rows],
        "val accuracy": [Text(format_mean_std(row, "val_accuracy", percent=True)) for row in rows],
        "loss": [Text(format_mean_std(row, "loss")) for row in rows],
        "status": [Text(row["status"], style=STATUS_STYLE.get(row["status"].split(" ")[-1], "")) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if name not in OPTIONAL_COLUMNS or any(map(len, cells))}
    left_out = []
    for name in OPTIONAL_COLUMNS:
        if natural_width(columns) > console.width and name in columns:
            del columns[name]
            left_out.append(name)
    console.print(cell_table(columns, axes))
    if left_out:
        console.print(f"not enough columns for {', '.join(left_out)}: see sweep.csv", style="dim")


def format_run_count(completed: int, runs: int) -> str:
    """Return how many runs the means of a line are over, and of how many where not all completed.

    >>> format_run_count(5, 5), format_run_count(3, 5)
    ('5', '3 of 5')
    """
    return f"{completed}" if completed == runs else f"{completed} of {runs}"


def shorten_number(text: str) -> str:
    """Return a number of an axis in its shortest form, and any other text unchanged.

    >>> shorten_number("1000000000.0"), shorten_number("10"), shorten_number("he_normal"), shorten_number("nan")
    ('1e+09', '10', 'he_normal', 'nan')
    """
    return f"{float(text):g}" if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text) else text


def natural_width(columns: Mapping[str, Sequence[Text]]) -> int:
    """Return the width of a table in which nothing is cut."""
    return sum(max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()) - 2


def cell_table(columns: Mapping[str, Sequence[Text]], axes: Sequence[str]) -> Table:
    """Return a table with words to the left and numbers to the right; axes wrap where they do not fit."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        words = name in axes or name == "status"
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def format_mean_std(row: Mapping[str, Any], metric: str, percent: bool = False) -> str:
    """Return mean ± std over seeds, both with the same number of decimals.

    >>> format_mean_std({"loss_mean": 0.51234, "loss_std": 0.0123}, "loss")
    '0.512 ± 0.012'
    >>> format_mean_std({"val_accuracy_mean": 0.8451, "val_accuracy_std": float("nan")}, "val_accuracy", percent=True)
    '84.5 %'
    >>> format_mean_std({"val_accuracy_mean": 0.7585, "val_accuracy_std": None}, "val_accuracy", percent=True)
    '75.9 %'
    """
    mean, std = row.get(f"{metric}_mean"), row.get(f"{metric}_std")
    if mean is None or mean != mean:
        return ""
    factor, unit = (100, " %") if percent else (1, "")
    digits, kind = (1, "f") if percent else (3, "f") if abs(mean) < 1000 else (3, "g")
    known = [value for value in (mean, std) if value is not None and value == value]
    return " ± ".join(format_rounded(value * factor, digits, kind) for value in known) + unit
