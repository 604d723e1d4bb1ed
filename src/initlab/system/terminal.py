"""Show a training on the terminal: one line that updates in place, and a small table at the end.

Where the output is not a terminal, a line is printed every few seconds instead.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from initlab.system.escape import printable, printable_lines
from initlab.system.files import short_path
from initlab.system.streams import redirect_to_devnull

FILE_WIDTH = 140  # columns of a table in a file or a pipe
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
    """A console for text of any origin: markup in it has no effect, characters that are not printable are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the rich text of a plain one, with its width after escaping."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render `printable_lines` of every text, and rich's own control sequences unchanged."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable_lines(segment.text), segment.style)


class StderrConsole(SafeConsole):
    """A console on standard error that stops printing after a closed pipe, where rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        """Print nothing further."""
        self.quiet = True
        redirect_to_devnull(sys.stderr)


class ProgressLine:
    """One line about a training that updates in place.

    Args:
        label: of the run.
        console: standard error by default.
    """

    def __init__(self, label: str, console: Console | None = None):
        self.label = label
        self.console = console or StderrConsole(stderr=True)
        self.shown_at = time.monotonic()
        self.first: tuple[float, int] | None = None  # time and step of the first update with steps
        # Drawn by `update` alone: rich's thread would take time from the training.
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "ProgressLine":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, now: Mapping[str, Any]) -> None:
        """Show the progress, a few times a second on a terminal and every few seconds elsewhere.

        Args:
            now: `step`, `steps`, and if known `loss` and `val_accuracy`, as `experiment.run` gives them.
        """
        pause = REDRAW_INTERVAL if self.console.is_terminal else PLAIN_INTERVAL
        if self.first is None and now["step"]:
            self.first = time.monotonic(), now["step"]
        if time.monotonic() - self.shown_at < pause:
            return
        self.shown_at = time.monotonic()
        facts = self.describe(now)
        if self.console.is_terminal:
            self.live.update(
                format_progress(self.label, facts, now["step"] / now["steps"], self.console.width), refresh=True
            )
        else:
            self.console.print(f"{self.label}: step {' · '.join(facts)}", soft_wrap=True)

    def describe(self, now: Mapping[str, Any]) -> list[str]:
        """Return the progress in words, the most important first; the rate leaves out loading and building."""
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
    """Return label, bar and facts in one line of a terminal; a narrow one leaves out the last facts, then the bar.

    Args:
        label: of the run.
        facts: in words, the most important first.
        done: fraction.
        width: in columns.

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
    """Return a time in its largest units.

    >>> format_duration(7.4), format_duration(75), format_duration(7300)
    ('7 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def format_metric(value: float | None, percent: bool = False) -> str:
    """Return a metric for a table, blank for None."""
    if value is None:
        return ""
    return f"{value:.1%}" if percent else f"{value:.4g}"


def run_table(summary: Mapping[str, Any]) -> Table:
    """Return the small table at the end of a single run."""
    table = Table(show_edge=False, box=None, pad_edge=False, header_style="bold")
    classes = any(summary.get(f"{prefix}accuracy") is not None for _, prefix in SPLITS)
    for column in ("", "loss", "accuracy") if classes else ("", "loss"):
        table.add_column(column, justify="right" if column else "left")
    for split, prefix in SPLITS:
        if f"{prefix}loss" in summary:
            accuracy = [format_metric(summary.get(f"{prefix}accuracy"), percent=True)] if classes else []
            table.add_row(split, format_metric(summary[f"{prefix}loss"]), *accuracy)
    return table


def show_run(label: str, summary: Mapping[str, Any], console: Console | None = None, tensorboard: bool = True) -> None:
    """Print how a run ended, where its files are and how to look at them.

    Args:
        label: of the run.
        summary: of `summary.json`.
        console: standard output by default.
        tensorboard: as in `show_location`.
    """
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
    """Print where the files are and the commands to look at them.

    Args:
        directory: of a run or a sweep.
        console: to print to.
        note: after the directory.
        tensorboard: whether there are event files.
    """
    short = short_path(directory)
    # Beside other runs, TensorBoard shows all of them; elsewhere the parent may be anything.
    logdir = short.parent if directory.parent.name == "runs" else short
    commands = [f"tensorboard --logdir {shlex.quote(printable(logdir))}"] if tensorboard else []
    commands.append(f"initlab report {shlex.quote(printable(short))}")
    console.print(f"files        {printable(short)}{note}", soft_wrap=True)
    console.print(f"look at it   {commands[0]}", soft_wrap=True)
    for command in commands[1:]:
        console.print(f"or {command}", soft_wrap=True)
