"""What a sweep prints when it is over: its table, what failed, what was skipped, where everything is."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from initlab.records import flatten
from initlab.records.repair import is_event_file_newer
from initlab.sweep.cells import Cell
from initlab.sweep.results import Outcome
from initlab.sweep.summary import axes, by_cell
from initlab.system.escape import print, printable
from initlab.system.terminal import SafeConsole, format_duration, show_cells, show_location

LONGEST = 40  # lines of a table on the screen; sweep.csv has them all
FEW = 5  # failures and reasons that are listed


def show_outcome(outcome: Outcome, directory: Path) -> None:
    """Print the table of a sweep, what failed and what was skipped, and where everything is."""
    frame = outcome.frame()
    by = axes(frame, keys(outcome.cells))
    rows = by_cell(frame, by)
    show_cells(rows[:LONGEST], by)
    if len(rows) > LONGEST:
        print(f"… {len(rows) - LONGEST} more in sweep.csv")
    counts = outcome.counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{sum(counts.values())} networks: {told} · {format_duration(outcome.seconds)}")
    failed = frame[frame["status"] == "failed"]
    for path, error in list(zip(failed["path"], failed.get("error", failed["path"]), strict=True))[:FEW]:
        print(f"failed: {printable(Path(path).name)}: {printable(error)} (the traceback is in its run.log)")
    if len(failed) > FEW:
        print(f"… {len(failed) - FEW} more failed")
    show_skipped(outcome.cells)
    viewed = any(cell.config.log.tensorboard for cell in outcome.cells)
    show_location(directory, SafeConsole(), " (sweep.csv: one row per run)", tensorboard=viewed)


def show_skipped(grid: Sequence[Cell], few: int | None = FEW) -> None:
    """Say why cells cannot exist, the most frequent reasons first; None for all of them."""
    reasons = Counter(cell.reason for cell in grid if cell.reason)
    for reason, count in reasons.most_common(few):
        print(f"skipped: {count} × {printable(reason)}")
    if few is not None and len(reasons) > few:
        print(f"… {len(reasons) - FEW} more reasons in sweep.csv")


def keys(grid: Sequence[Cell]) -> list[str]:
    """Return every configuration key that some cell has."""
    return list(dict.fromkeys(key for cell in grid for key in flatten(cell.config.plain())))


def drawn(outcome: Outcome, directory: Path) -> Outcome:
    """Write the sweep's own run for TensorBoard, unless its cells want none, and return the outcome.

    It is left as it is where the table has not changed since it was drawn.
    """
    if any(cell.config.log.tensorboard for cell in outcome.cells) and not is_event_file_newer(
        directory / "sweep.csv", directory / "sweep"
    ):
        from initlab.report import write_sweep_run

        write_sweep_run(directory, outcome.results.frame())
    return outcome
