"""What the terminal shows: one line that updates in place while training, a small table at the end.

Where the output is not a terminal, the line becomes an ordinary line every few seconds, readable in a file.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

WIDE = 140  # columns of a table that goes to a file or a pipe
PLAIN_EVERY = 5.0  # seconds between lines where nothing updates in place
STATUS_STYLE = {"completed": "green", "diverged": "yellow", "failed": "bold red", "skipped": "dim", "unfinished": "dim"}


class ProgressLine:
    """One line about a training that updates in place; `update` takes what `experiment.run` hands its watch."""

    def __init__(self, label: str, console: Console | None = None):
        self.label = label
        self.console = console or Console(stderr=True)
        self.started = time.monotonic()
        self.said = self.started
        self.live = Live(console=self.console, refresh_per_second=8, transient=True)

    def __enter__(self) -> "ProgressLine":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.console.is_terminal:
            self.live.stop()

    def update(self, now: Mapping[str, Any]) -> None:
        """Show how far it is."""
        seconds = time.monotonic() - self.started
        rate = now["step"] / seconds if seconds > 0 else 0.0
        left = (now["steps"] - now["step"]) / rate if rate else None
        facts = [f"step {now['step']}/{now['steps']}"]
        if now.get("loss") is not None:
            facts.append(f"loss {now['loss']:.4g}")
        if now.get("val_accuracy") is not None:
            facts.append(f"val {now['val_accuracy']:.1%}")
        facts.append(f"{rate:,.0f} steps/s")
        if left is not None:
            facts.append(f"{duration(left)} left")
        if self.console.is_terminal:
            grid = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=now["steps"], completed=now["step"], width=24)
            grid.add_row(Text(self.label, style="bold"), bar, " · ".join(facts))
            self.live.update(grid)
        elif time.monotonic() - self.said > PLAIN_EVERY:
            self.said = time.monotonic()
            self.console.print(f"{self.label}: {' · '.join(facts)}", soft_wrap=True, highlight=False)


def duration(seconds: float) -> str:
    """Say a time as people do.

    >>> duration(7.4), duration(75), duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def number(value: float | None, percent: bool = False) -> str:
    """Format a metric for a table; a blank where there is none."""
    if value is None:
        return ""
    return f"{value:.1%}" if percent else f"{value:.4g}"


def run_table(label: str, summary: Mapping[str, Any]) -> Table:
    """Build the small table that ends a single run."""
    table = Table(title=Text(label, style="bold"), title_justify="left", show_edge=False, box=None, pad_edge=False)
    table.add_column("")
    table.add_column("loss", justify="right")
    table.add_column("accuracy", justify="right")
    for split, prefix in (("train", ""), ("validation", "val_"), ("test", "test_")):
        if f"{prefix}loss" in summary:
            table.add_row(
                split, number(summary.get(f"{prefix}loss")), number(summary.get(f"{prefix}accuracy"), percent=True)
            )
    return table


def show_run(label: str, summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print how a run ended, where its files are and what to type next."""
    console = console or Console()
    console.print(run_table(label, summary))
    status = summary["status"]
    text = Text(status, style=STATUS_STYLE.get(status, ""))
    if status == "diverged":
        text.append(f" at step {summary['first_bad_step']}, first in {summary['first_bad_layer']}")
    if status == "failed":
        text.append(f": {summary['error']} (the traceback is in {summary['path']}/run.log)")
    text.append(f" · {summary.get('steps', 0)} steps in {duration(summary['seconds'])}", style="")
    console.print(text)
    show_where(Path(summary["path"]), console)


def show_where(directory: Path, console: Console, note: str = "") -> None:
    """Say where the files are and what to type to look at them, with paths as short as they can be."""
    short = Path(os.path.relpath(directory)) if directory.is_relative_to(Path.cwd()) else directory
    logdir = short if note else short.parent
    console.print(f"files        {short}{note}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"look at it   tensorboard --logdir {logdir}", soft_wrap=True, highlight=False, markup=False)


def show_cells(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], console: Console | None = None) -> None:
    """Print one line per cell of a sweep, as `sweep.cells` made them: mean ± std over seeds, best first."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for axis in axes:
        table.add_column(axis, no_wrap=True)
    for column in ("runs", "test accuracy", "val accuracy", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status")
    for row in rows:
        table.add_row(
            *(Text(str(row[axis])) for axis in axes),
            str(row["runs"]),
            spread(row, "test_accuracy", percent=True),
            spread(row, "val_accuracy", percent=True),
            spread(row, "loss"),
            Text(row["status"], style=STATUS_STYLE.get(row["status"].split(" ")[-1], "")),
        )
    console.print(table)


def spread(row: Mapping[str, Any], metric: str, percent: bool = False) -> str:
    """Format mean ± std over seeds, both with the same number of decimals.

    >>> spread({"loss_mean": 0.51234, "loss_std": 0.0123}, "loss")
    '0.512 ± 0.012'
    >>> spread({"val_accuracy_mean": 0.8451, "val_accuracy_std": float("nan")}, "val_accuracy", percent=True)
    '84.5 %'
    """
    mean, std = row.get(f"{metric}_mean"), row.get(f"{metric}_std")
    if mean is None or mean != mean:
        return ""
    factor, unit = (100, " %") if percent else (1, "")
    digits = ".1f" if percent else ".3f" if abs(mean) < 1000 else ".3g"
    return f"{mean * factor:{digits}}{'' if std is None or std != std else f' ± {std * factor:{digits}}'}{unit}"
