"""What a sweep prints when it is over: its table, what failed, what was skipped, where everything is."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from initlab.records import flatten
from initlab.records.repair import is_event_file_newer
from initlab.sweep.cells import Cell
from initlab.sweep.results import Outcome
from initlab.sweep.summary import summarize_cells, varying_axes
from initlab.system.escape import print, printable
from initlab.system.terminal import SafeConsole, format_duration, show_cells, show_location

MAX_TABLE_ROWS = 40  # lines of a table on the screen; sweep.csv has them all
MAX_LISTED = 5  # failures and reasons that are listed


def show_outcome(outcome: Outcome, directory: Path) -> None:
    """Print the table of a sweep, what failed and what was skipped, and where everything is."""
    frame = outcome.frame()
    by = varying_axes(frame, config_keys(outcome.cells))
    rows = summarize_cells(frame, by)
    show_cells(rows[:MAX_TABLE_ROWS], by)
    if len(rows) > MAX_TABLE_ROWS:
        print(f"… {len(rows) - MAX_TABLE_ROWS} more in sweep.csv")
    counts = outcome.counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{sum(counts.values())} networks: {told} · {format_duration(outcome.seconds)}")
    failed = frame[frame["status"] == "failed"]
    for path, error in list(zip(failed["path"], failed.get("error", failed["path"]), strict=True))[:MAX_LISTED]:
        print(f"failed: {printable(Path(path).name)}: {printable(error)} (the traceback is in its run.log)")
    if len(failed) > MAX_LISTED:
        print(f"… {len(failed) - MAX_LISTED} more failed")
    show_skipped(outcome.cells)
    viewed = any(cell.config.log.tensorboard for cell in outcome.cells)
    show_location(directory, SafeConsole(), " (sweep.csv: one row per run)", tensorboard=viewed)


def show_skipped(grid: Sequence[Cell], few: int | None = MAX_LISTED) -> None:
    """Say why cells cannot exist, the most frequent reasons first; None for all of them."""
    reasons = Counter(cell.reason for cell in grid if cell.reason)
    for reason, count in reasons.most_common(few):
        print(f"skipped: {count} × {printable(reason)}")
    if few is not None and len(reasons) > few:
        print(f"… {len(reasons) - MAX_LISTED} more reasons in sweep.csv")


def config_keys(grid: Sequence[Cell]) -> list[str]:
    """Return every configuration key that some cell has."""
    return list(dict.fromkeys(key for cell in grid for key in flatten(cell.config.plain())))


def write_sweep_pictures(outcome: Outcome, directory: Path) -> Outcome:
    """Write the sweep's own run for TensorBoard, unless its cells want none, and return the outcome.

    It is left as it is where the table has not changed since it was drawn.
    """
    if any(cell.config.log.tensorboard for cell in outcome.cells) and not is_event_file_newer(
        directory / "sweep.csv", directory / "sweep"
    ):
        from initlab.report.tensorboard import write_sweep_run

        write_sweep_run(directory, outcome.results.frame())
    return outcome
