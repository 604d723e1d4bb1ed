"""How far a whole sweep is: networks done, diverged, failed, network-steps per second, time left."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from initlab.display import PLAIN_EVERY, REDRAW_EVERY, ProgressLine, Screen, duration, one_line
from initlab.visible import visible

PLAIN_SELDOM = 60.0  # seconds to which the pause between lines grows where nothing updates in place


class SweepLine(ProgressLine):
    """One line about a whole sweep; in a file it comes ever more seldom."""

    def __init__(self, label: str, console: Console | None = None):
        super().__init__(label, console)
        self.pause = REDRAW_EVERY if self.console.is_terminal else PLAIN_EVERY

    def update(self, now: Mapping[str, Any]) -> None:
        """Show `now["facts"]` and the share that is done, unless that was done a moment ago."""
        if time.monotonic() - self.said < self.pause:
            return
        self.said = time.monotonic()
        if self.console.is_terminal:
            self.live.update(one_line(self.label, now["facts"], now["share"], self.console.width), refresh=True)
        else:
            self.pause = min(self.pause * 1.5, PLAIN_SELDOM)
            facts = " · ".join(now["facts"])
            self.console.print(f"{self.label}: {facts}", soft_wrap=True, highlight=False, markup=False)

    @classmethod
    def quiet(cls) -> "SweepLine":
        """Return a line that shows nothing."""
        return cls("", Screen(quiet=True, stderr=True))

    def say(self, text: str) -> None:
        """Print a sentence above the line."""
        self.console.print(f"initlab: {visible(text)}", soft_wrap=True, highlight=False, markup=False)


@dataclass
class Progress:
    """Counts what has been done and shows it in one line.

    `total` networks with `steps` network-steps between them are to be run by this launch; `before` were done already.
    """

    total: int
    steps: int
    before: int
    line: SweepLine
    counts: Counter = field(default_factory=Counter)
    steps_done: int = 0
    running: dict[str, tuple[int, int]] = field(default_factory=dict)  # group -> network-steps done, diverged
    started: float = field(default_factory=time.monotonic)
    head_start: int = 0  # network-steps that checkpoints brought along

    def note(self, group: str, now: Mapping[str, Any]) -> None:
        """Note how far a group is, as `experiment.run` tells it, and show it."""
        done = now["step"] * now["members"]
        if group not in self.running:
            self.head_start += done
        self.running[group] = (done, now["diverged"])
        self.show()

    def finished(self, group: str, steps: int, statuses: Sequence[str]) -> None:
        """Count a group that is done; each of its cells was to take so many steps."""
        self.forget(group)
        self.counts.update(statuses)
        self.steps_done += steps * len(statuses)
        self.show()

    def forget(self, group: str) -> None:
        """Drop what was noted of a group that begins again."""
        self.running.pop(group, None)

    def show(self) -> None:
        """Show the line."""
        done = sum(self.counts.values())
        now = min(self.steps_done + sum(steps for steps, _ in self.running.values()), self.steps)
        diverged = self.counts["diverged"] + sum(n for _, n in self.running.values())
        rate = max(now - self.head_start, 0) / max(time.monotonic() - self.started, 1e-9)
        facts = [f"{self.before + done}/{self.before + self.total} networks"]
        facts += [f"{n} {what}" for n, what in ((diverged, "diverged"), (self.counts["failed"], "failed")) if n]
        if rate:
            facts += [f"{duration((self.steps - now) / rate)} left", f"{rate:,.0f} network-steps/s"]
        self.line.update({"facts": facts, "share": now / max(self.steps, 1)})
