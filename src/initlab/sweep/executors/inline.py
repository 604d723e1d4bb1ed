"""`inline`: one group after another in this process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from initlab.sweep.executors.process import stop_idle_workers
from initlab.sweep.worker import GroupResult, GroupTask, OnProgress, run_group


@dataclass
class InlineJob:
    """A group that is computed when it is asked for."""

    task: GroupTask
    watch: OnProgress
    stop: Callable[[], int]

    def cancel(self) -> bool:
        """Nothing waits."""
        return False

    def poll(self) -> GroupResult:
        """Compute it."""
        return run_group(self.task, self.watch, self.stop)


@dataclass
class InlineExecutor:
    """The process that asks is the one that works."""

    watch: Callable[[GroupTask], OnProgress]
    stop: Callable[[], int]
    slots: int = 1

    def submit(self, task: GroupTask) -> InlineJob:
        """Begin nothing yet."""
        return InlineJob(task, self.watch(task), self.stop)

    def close(self) -> None:
        """Nothing was taken."""


def executor(
    workers: int | str, options: Mapping[str, Any], watch: Callable[[GroupTask], OnProgress], stop: Callable[[], int]
) -> InlineExecutor:
    """Make the executor; it has one worker whatever is asked for."""
    # A grid that looked large may be small; then nobody needs the processes that were started for it.
    stop_idle_workers()
    return InlineExecutor(watch, stop)
