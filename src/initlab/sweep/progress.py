"""How far a whole sweep is: networks done, diverged, failed, network-steps per second, time left."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from initlab.system.escape import printable
from initlab.system.terminal import (
    PLAIN_INTERVAL,
    REDRAW_INTERVAL,
    ProgressLine,
    SafeConsole,
    format_duration,
    format_progress,
)

MIN_MEASURED_SECONDS = 2.0  # seconds of training before the time left is told
MAX_PLAIN_INTERVAL = 60.0  # seconds to which the pause between lines grows where nothing updates in place


class SweepProgressLine(ProgressLine):
    """One line about a whole sweep; in a file it comes ever more seldom."""

    def __init__(self, label: str, console: Console | None = None):
        super().__init__(label, console)
        self.pause = REDRAW_INTERVAL if self.console.is_terminal else PLAIN_INTERVAL

    def update(self, now: Mapping[str, Any]) -> None:
        """Show `now["facts"]` and the share that is done, unless that was done a moment ago."""
        if time.monotonic() - self.shown_at < self.pause:
            return
        self.shown_at = time.monotonic()
        if self.console.is_terminal:
            self.live.update(format_progress(self.label, now["facts"], now["share"], self.console.width), refresh=True)
        else:
            self.pause = min(self.pause * 1.5, MAX_PLAIN_INTERVAL)
            facts = " · ".join(now["facts"])
            self.console.print(f"{self.label}: {facts}", soft_wrap=True, highlight=False, markup=False)

    @classmethod
    def quiet(cls) -> "SweepProgressLine":
        """Return a line that shows nothing."""
        return cls("", SafeConsole(quiet=True, stderr=True))

    def say(self, text: str) -> None:
        """Print a sentence above the line."""
        self.console.print(f"initlab: {printable(text)}", soft_wrap=True, highlight=False, markup=False)


def equal_cost(_: str) -> float:
    """Return what a network-step of a group is worth where all take about as long."""
    return 1.0


@dataclass
class SweepProgress:
    """Counts what has been done and shows it in one line.

    The count is of network-steps, over all groups and workers; networks end many at a time. The time left is told by
    the rate since the first steps were seen: what came before (starting, loading, initializing) says nothing of it.

    Arguments: `total` networks with `steps` network-steps between them are to be run by this launch, `before` were done
    already; `worth(group)` is how long one of its network-steps takes beside those of other groups, and `worth_all` is
    the sum over all network-steps (0: all take about as long).
    """

    total: int
    steps: int
    before: int
    line: SweepProgressLine
    worth: Callable[[str], float] = equal_cost
    worth_all: float = 0.0
    counts: Counter = field(default_factory=Counter)
    steps_done: int = 0
    worth_done: float = 0.0
    running: dict[str, tuple[int, int]] = field(default_factory=dict)  # group -> network-steps done, diverged
    brought: float = 0.0  # worth of the network-steps that checkpoints brought along
    first: tuple[float, float] | None = None  # when the first steps were seen, and the worth of those that were taken

    def note(self, group: str, now: Mapping[str, Any]) -> None:
        """Note how far a group is, as `experiment.run` tells it, and show it."""
        if group not in self.running:
            self.brought += now.get("resumed_at", 0) * now["members"] * self.worth(group)
        self.running[group] = (now["step"] * now["members"], now["diverged"])
        self.show()

    def finished(self, group: str, steps: int, statuses: Sequence[str]) -> None:
        """Count a group that is done; each of its cells was to take so many steps."""
        self.forget(group)
        self.counts.update(statuses)
        self.steps_done += steps * len(statuses)
        self.worth_done += steps * len(statuses) * self.worth(group)
        self.show()

    def forget(self, group: str) -> None:
        """Drop what was noted of a group that begins again."""
        self.running.pop(group, None)

    def show(self) -> None:
        """Show the line."""
        done = sum(self.counts.values())
        now = min(self.steps_done + sum(steps for steps, _ in self.running.values()), self.steps)
        diverged = self.counts["diverged"] + sum(n for _, n in self.running.values())
        share = now / max(self.steps, 1)
        facts = [f"{share:.0%} of {self.steps:,} network-steps"]
        facts += [f"{format_duration(left)} left" for left in self.left() if now < self.steps]
        facts += [f"{self.before + done}/{self.before + self.total} networks"]
        facts += [f"{n} {what}" for n, what in ((diverged, "diverged"), (self.counts["failed"], "failed")) if n]
        self.line.update({"facts": facts, "share": share})

    def left(self) -> list[float]:
        """Return how many seconds are left, in a list that is empty while that is not known."""
        worth = self.worth_done + sum(steps * self.worth(group) for group, (steps, _) in self.running.items())
        taken, clock = worth - self.brought, time.monotonic()
        if self.first is None:
            self.first = (clock, taken) if taken > 0 else None
            return []
        since, before = self.first
        if taken <= before or clock - since < MIN_MEASURED_SECONDS:
            return []
        whole = self.worth_all or float(self.steps)
        return [max(whole - worth, 0.0) * (clock - since) / (taken - before)]
