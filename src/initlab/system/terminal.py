"""What the terminal shows: one line that updates in place while training, a small table at the end.

Where the output is not a terminal, the line becomes an ordinary line every few seconds, readable in a file.
"""

import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from initlab.system.escape import printable, printable_lines
from initlab.system.files import short_path
from initlab.system.numbers import format_rounded
from initlab.system.streams import redirect_to_devnull

FILE_WIDTH = 140  # columns of a table that goes to a file or a pipe
PLAIN_INTERVAL = 5.0  # seconds between lines where nothing updates in place
REDRAW_INTERVAL = 0.2  # seconds between drawings of the line that updates in place
MIN_BAR, MAX_BAR = 6, 24  # columns
SPLITS = (("train (last steps)", ""), ("validation", "val_"), ("test", "test_"))
STATUS_STYLE = {"completed": "green", "diverged": "yellow", "failed": "bold red", "skipped": "dim", "unfinished": "dim"}


def text_width(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    >>> text_width("漢字"), text_width("ab")
    (4, 2)
    """
    return cell_len(text)


class SafeConsole(Console):
    """A console for text that may come from anywhere: no markup in it is obeyed, what cannot be seen is spelled out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make rich's text of a plain one, with the width that it will have."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as rich does, `printable_lines` of every text; rich's own control sequences pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


class StderrConsole(SafeConsole):
    """A console on standard error that falls silent when nobody reads it; rich's own would end the program."""

    def on_broken_pipe(self) -> None:
        """Say no more."""
        self.quiet = True
        redirect_to_devnull(sys.stderr)


class ProgressLine:
    """One line about a training that updates in place; `update` takes what `experiment.run` hands its watch."""

    def __init__(self, label: str, console: Console | None = None):
        self.label = label
        self.console = console or StderrConsole(stderr=True)
        self.said = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first steps were seen, and how many they were
        # Drawn from `update` alone: a thread of its own would take time from the training.
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressLine":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, now: Mapping[str, Any]) -> None:
        """Show how far it is, a few times a second on a terminal and every few seconds elsewhere."""
        pause = REDRAW_INTERVAL if self.console.is_terminal else PLAIN_INTERVAL
        if self.first is None and now["step"]:
            self.first = time.monotonic(), now["step"]
        if time.monotonic() - self.said < pause:
            return
        self.said = time.monotonic()
        facts = self.facts(now)
        if self.console.is_terminal:
            self.live.update(
                format_progress(self.label, facts, now["step"] / now["steps"], self.console.width), refresh=True
            )
        else:
            self.console.print(f"{self.label}: step {' · '.join(facts)}", soft_wrap=True, highlight=False, markup=False)

    def facts(self, now: Mapping[str, Any]) -> list[str]:
        """Say where a training stands, the most important first.

        The rate is that since the first steps were seen: loading and building say nothing of it.
        """
        since, before = self.first or (time.monotonic(), now["step"])
        rate = (now["step"] - before) / max(time.monotonic() - since, 1e-9)
        facts = [f"{now['step']}/{now['steps']}"]
        if now.get("loss") is not None:
            facts.append(f"loss {now['loss']:.4g}")
        if now.get("val_accuracy") is not None:
            facts.append(f"val {now['val_accuracy']:.1%}")
        if rate:
            facts += [f"{format_duration((now['steps'] - now['step']) / rate)} left", f"{rate:,.0f} steps/s"]
        return facts


def format_progress(label: str, facts: Sequence[str], done: float, width: int) -> Text:
    """Fit label, bar and facts into one line of a terminal: the last facts go first, then the bar, then the label.

    >>> format_progress("zeros-tanh", ["5/10", "loss 2.303", "7 s left"], 0.5, 41).plain
    'zeros-tanh ━━━━━━───── 5/10 · loss 2.303'
    """
    shown = list(facts)
    while len(shown) > 1 and len(label) + len(" · ".join(shown)) + MIN_BAR + 3 > width:
        shown.pop()
    text = " · ".join(shown)
    bar = min(width - len(label) - len(text) - 3, MAX_BAR)
    if bar < MIN_BAR:
        return Text(f"{label} {text}", no_wrap=True, overflow="ellipsis")
    full = round(bar * min(done, 1.0))
    return Text.assemble(
        (label, "bold"), " ", ("━" * full, "green"), ("─" * (bar - full), "dim"), " ", text, no_wrap=True
    )


def format_duration(seconds: float) -> str:
    """Say a time as people do.

    >>> format_duration(7.4), format_duration(75), format_duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def format_metric(value: float | None, percent: bool = False) -> str:
    """Format a metric for a table; a blank where there is none."""
    if value is None:
        return ""
    return f"{value:.1%}" if percent else f"{value:.4g}"


def run_table(summary: Mapping[str, Any]) -> Table:
    """Build the small table that ends a single run."""
    table = Table(show_edge=False, box=None, pad_edge=False, header_style="bold")
    classes = any(summary.get(f"{prefix}accuracy") is not None for _, prefix in SPLITS)
    for column in ("", "loss", "accuracy") if classes else ("", "loss"):
        table.add_column(column, justify="right" if column else "left")
    for split, prefix in SPLITS:
        if f"{prefix}loss" in summary:
            numbers = [format_metric(summary[f"{prefix}loss"])]
            if classes:
                numbers.append(format_metric(summary.get(f"{prefix}accuracy"), percent=True))
            table.add_row(split, *numbers)
    return table


def show_run(label: str, summary: Mapping[str, Any], console: Console | None = None, tensorboard: bool = True) -> None:
    """Print how a run ended, where its files are and what to type next; `tensorboard` as in `show_location`."""
    console = console or SafeConsole()
    console.print(Text(label, style="bold"), soft_wrap=True)
    status = summary["status"]
    if status != "failed":
        console.print(run_table(summary))
    text = Text(status, style=STATUS_STYLE.get(status, ""))
    if status == "diverged":
        text.append(f" at step {summary['first_bad_step']}, first in {printable(summary['first_bad_layer'])}")
    if status == "failed":
        text.append(f": {printable(summary['error'])}")
    text.append(f" · {summary.get('steps', 0)} steps in {format_duration(summary['seconds'])}", style="default")
    console.print(text, soft_wrap=True)
    show_location(Path(summary["path"]), console, tensorboard=tensorboard)


def show_location(directory: Path, console: Console, note: str = "", tensorboard: bool = True) -> None:
    """Say where the files are and what to type to look at them, with paths as short as they can be.

    Arguments: `tensorboard`: whether the configuration asked for event files; without them a report is what to look at.
    """
    short = short_path(directory)
    # Beside other runs, all of them are of interest; elsewhere the parent may be anything.
    logdir = short.parent if directory.parent.name == "runs" else short
    console.print(f"files        {printable(short)}{note}", soft_wrap=True, highlight=False, markup=False)
    report = f"initlab report {shlex.quote(printable(short))}"
    if tensorboard:
        told = f"look at it   tensorboard --logdir {shlex.quote(printable(logdir))}"
        console.print(told, soft_wrap=True, highlight=False, markup=False)
    told = f"or {report}" if tensorboard else f"look at it   {report}"
    console.print(told, soft_wrap=True, highlight=False, markup=False)


# What a table of cells can do without, first to last, where the terminal is narrow.
OPTIONAL_COLUMNS = ("val accuracy", "loss", "runs", "test accuracy")


def show_cells(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], console: Console | None = None) -> None:
    """Print one line per cell of a sweep, as `sweep.cells` made them: mean ± std over seeds, best first.

    Axes and status are always there; metrics that nothing measured are not, nor those that do not fit.
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
        console.print(f"not enough columns for {', '.join(left_out)}: see sweep.csv", style="dim", highlight=False)


def format_run_count(completed: int, runs: int) -> str:
    """Say how many runs the means of a line are over, and of how many where not all completed.

    >>> format_run_count(5, 5), format_run_count(3, 5)
    ('5', '3 of 5')
    """
    return f"{completed}" if completed == runs else f"{completed} of {runs}"


def shorten_number(text: str) -> str:
    """Write a number of an axis as short as it can be; anything else is left alone.

    >>> shorten_number("1000000000.0"), shorten_number("10"), shorten_number("he_normal"), shorten_number("nan")
    ('1e+09', '10', 'he_normal', 'nan')
    """
    return f"{float(text):g}" if re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text) else text


def natural_width(columns: Mapping[str, Sequence[Text]]) -> int:
    """Return how wide a table of these columns is when nothing in it is cut."""
    return sum(max(len(name), *map(len, cells)) + 2 for name, cells in columns.items()) - 2


def cell_table(columns: Mapping[str, Sequence[Text]], axes: Sequence[str]) -> Table:
    """Lay columns out: words to the left, numbers to the right; what does not fit goes on in a second line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        words = name in axes or name == "status"
        table.add_column(name, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def format_mean_std(row: Mapping[str, Any], metric: str, percent: bool = False) -> str:
    """Format mean ± std over seeds, both with the same number of decimals.

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
    found = [value for value in (mean, std) if value is not None and value == value]
    return " ± ".join(format_rounded(value * factor, digits, kind) for value in found) + unit
