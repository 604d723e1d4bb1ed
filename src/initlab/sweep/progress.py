"""How far a whole sweep is: networks done, diverged, failed, network-steps per second, time left."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from initlab.sweep.plan_file import planned_id
from initlab.system.escape import printable
from initlab.system.terminal import (
    PLAIN_INTERVAL,
    REDRAW_INTERVAL,
    ProgressLine,
    SafeConsole,
    format_duration,
    format_progress,
)

MIN_MEASURED_SECONDS = 2.0  # of training before the time left is shown
MAX_PLAIN_INTERVAL = 60.0  # seconds to which the pause between lines grows where nothing updates in place


class SweepProgressLine(ProgressLine):
    """One line about a whole sweep; in a file the pauses between lines grow."""

    def __init__(self, label: str, console: Console | None = None, quiet: bool = False):
        super().__init__(label, SafeConsole(quiet=True, stderr=True) if quiet else console)
        self.pause = REDRAW_INTERVAL if self.console.is_terminal else PLAIN_INTERVAL

    def update(self, now: Mapping[str, Any]) -> None:
        """Show `now["facts"]` and the share that is done, unless the line was shown a moment ago."""
        if time.monotonic() - self.shown_at < self.pause:
            return
        self.shown_at = time.monotonic()
        if self.console.is_terminal:
            self.live.update(format_progress(self.label, now["facts"], now["share"], self.console.width), refresh=True)
        else:
            self.pause = min(self.pause * 1.5, MAX_PLAIN_INTERVAL)
            self._print(f"{self.label}: {' · '.join(now['facts'])}")

    def remark(self, text: str) -> None:
        """Print a sentence above the line."""
        self._print(f"initlab: {printable(text)}")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


@dataclass
class SweepProgress:
    """Counts what has been done and shows it in one line.

    The count is of network-steps, over all groups and workers; networks end many at a time. The time left follows from
    the rate since the first steps were seen: starting, loading and initializing, which come before, do not count.

    Attributes:
        total: networks that this launch runs.
        steps: network-steps of all of them.
        before: networks that were done already.
        line: where it is shown.
        step_seconds: about how long one network-step takes, by the id that a group was planned under; 1 where it is not
            known.
        seconds: about how long all network-steps take; 0 where it is not known.
    """

    total: int
    steps: int
    before: int
    line: SweepProgressLine
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    counts: Counter = field(default_factory=Counter)
    steps_done: int = 0
    seconds_done: float = 0.0
    running: dict[str, tuple[int, int]] = field(default_factory=dict)  # group -> network-steps done, diverged
    resumed: float = 0.0  # seconds of the network-steps that checkpoints brought along
    first: tuple[float, float] | None = None  # when the first steps were seen, and the seconds of those taken by then

    def record(self, group: str, report: Mapping[str, Any]) -> None:
        """Record how far a group is, as `experiment.run` reports it, and show it."""
        if group not in self.running:
            self.resumed += report.get("resumed_at", 0) * report["members"] * self.seconds_per_step(group)
        self.running[group] = (report["step"] * report["members"], report["diverged"])
        self.show()

    def finish(self, group: str, steps: int, statuses: Sequence[str]) -> None:
        """Count a group that is done; `steps` is how many each of its networks was to take."""
        self.forget(group)
        self.counts.update(statuses)
        self.steps_done += steps * len(statuses)
        self.seconds_done += steps * len(statuses) * self.seconds_per_step(group)
        self.show()

    def forget(self, group: str) -> None:
        """Drop what was recorded of a group that begins again."""
        self.running.pop(group, None)

    def show(self) -> None:
        """Show the line."""
        done = sum(self.counts.values())
        now = min(self.steps_done + sum(steps for steps, _ in self.running.values()), self.steps)
        diverged = self.counts["diverged"] + sum(n for _, n in self.running.values())
        share = now / max(self.steps, 1)
        left = self.seconds_left()
        facts = [f"{share:.0%} of {self.steps:,} network-steps"]
        facts += [f"{format_duration(left)} left"] if left is not None and now < self.steps else []
        facts += [f"{self.before + done}/{self.before + self.total} networks"]
        facts += [f"{n} {status}" for n, status in ((diverged, "diverged"), (self.counts["failed"], "failed")) if n]
        self.line.update({"facts": facts, "share": share})

    def seconds_per_step(self, group: str) -> float:
        """Return about how long one network-step of a group takes."""
        return self.step_seconds.get(planned_id(group), 1.0)

    def seconds_left(self) -> float | None:
        """Return how long the rest takes, None while that is not known."""
        running = sum(steps * self.seconds_per_step(group) for group, (steps, _) in self.running.items())
        done, clock = self.seconds_done + running, time.monotonic()
        taken = done - self.resumed
        if self.first is None:
            self.first = (clock, taken) if taken > 0 else None
            return None
        since, before = self.first
        if taken <= before or clock - since < MIN_MEASURED_SECONDS:
            return None
        return max((self.seconds or float(self.steps)) - done, 0.0) * (clock - since) / (taken - before)
