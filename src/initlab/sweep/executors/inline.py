"""`inline`: one group after another in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from initlab.sweep.executors.process import stop_idle_workers
from initlab.sweep.worker import GroupResult, GroupTask, OnProgress, run_group


@dataclass
class InlineJob:
    """A group that is computed when its result is asked for."""

    task: GroupTask
    watch: OnProgress
    stop: Callable[[], int]

    def cancel(self) -> bool:
        """Return False: nothing waits in a queue."""
        return False

    def poll(self) -> GroupResult:
        """Compute the group and return its result."""
        return run_group(self.task, self.watch, self.stop)


@dataclass
class InlineExecutor:
    """The launch itself computes."""

    watch: Callable[[GroupTask], OnProgress]
    stop: Callable[[], int]
    slots: int = 1

    def submit(self, task: GroupTask) -> InlineJob:
        """Return the job of a group; nothing is computed yet."""
        return InlineJob(task, self.watch(task), self.stop)

    def close(self) -> None:
        """Do nothing: nothing was started."""


def make_inline_executor(*_: Any, watch: Callable[[GroupTask], OnProgress], stop: Callable[[], int]) -> InlineExecutor:
    """Return the executor, whose only slot is this process."""
    # Processes that were started early for a grid that looked larger than it is.
    stop_idle_workers()
    return InlineExecutor(watch, stop)
