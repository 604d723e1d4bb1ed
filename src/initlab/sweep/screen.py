"""What a sweep prints when it is over: its table, what failed, what was skipped, where the files are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from initlab.records import flatten
from initlab.records.repair import is_event_file_newer
from initlab.sweep.cells import Cell
from initlab.sweep.results import Outcome
from initlab.sweep.summary import all_keys, summarize_cells, varying_axes
from initlab.system.escape import print, printable
from initlab.system.terminal import SafeConsole, format_duration, show_cells, show_location

MAX_TABLE_ROWS = 40  # on the screen; sweep.csv has them all
MAX_LISTED = 5  # failures and reasons


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
