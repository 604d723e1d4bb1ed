"""`initlab report`: from directories to a page on the disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from initlab.errors import UserError
from initlab.report.page import render_report
from initlab.report.payload import ReportData, collect_report_data
from initlab.system.files import write_atomically


@dataclass(frozen=True)
class WrittenReport:
    """Where the page is, and the frames it rests on."""

    path: Path
    gathered: ReportData


def write_report(paths: Sequence[str | Path], out: str | Path | None = None, title: str | None = None) -> WrittenReport:
    """Write one self-contained page about all runs at or below `paths`, whole or not at all.

    Arguments: `out`: the file, or a directory for its `report.html`; by default `report.html` inside the one path, or
    in the current directory where there are several; `title`: the page's heading, by default the paths' names.

    Raises:
        UserError: a path does not exist, there is no run, or the file cannot be written.
    """
    roots = [Path(path) for path in paths]
    gathered = collect_report_data(roots)
    place = Path(out) if out is not None else (roots[0] if len(roots) == 1 else Path())
    path = place / "report.html" if place.is_dir() or place.suffix.lower() not in (".html", ".htm") else place
    if not path.parent.is_dir():
        raise UserError(f"There is no directory {path.parent} for {path.name}: make it first, or choose another.")
    names = ", ".join(dict.fromkeys(root.resolve().name for root in roots))
    write_atomically(path, render_report(gathered.payload, names if title is None else title))
    return WrittenReport(path, gathered)
