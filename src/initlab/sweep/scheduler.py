"""The launch: hands groups to an executor, mends what breaks, and stops when asked to."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from initlab.errors import Interrupted, UserError
from initlab.experiment import record_failure, remove_checkpoints
from initlab.sweep.cells import Cell
from initlab.sweep.executors import Executor, GroupJob
from initlab.sweep.plan_file import Group, PlanFile
from initlab.sweep.progress import SweepProgress
from initlab.sweep.worker import GroupError, GroupResult, GroupTask, WorkerDied, read_progress
from initlab.system.fork_server import ProcessLimitReached
from initlab.system.streams import print_stderr

POLL_INTERVAL = 0.05  # seconds between two looks at what runs elsewhere


@dataclass
class StopSignals:
    """SIGINT and SIGTERM, heard and remembered; a second one acts as if nobody listened."""

    received: int = 0
    before: dict[int, Any] = field(default_factory=dict)

    def __call__(self) -> int:
        """Return the number of the signal, 0 while there was none."""
        return self.received

    def hear(self, number: int, _: FrameType | None) -> None:
        """Remember a signal, and give the next one its usual effect."""
        self.received = number
        self.restore()
        print_stderr("\ninitlab: finishing the step and keeping what there is; once more to leave at once.")

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    @contextmanager
    def listening(self) -> Iterator["StopSignals"]:
        """Listen for the while; not in a thread, where Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Whoever started this in the background may have decided that it shall not hear.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.hear)
        try:
            yield self
        finally:
            self.restore()


@dataclass
class Scheduler:
    """One launch of a sweep: what is to be run, where, and who hears about it.

    `ended(cell, summary)` is called as cells end, in this thread; `steps(cell)` is how long a cell trains. `spare()` is
    called once, when a worker has nothing more to do while others have: what comes afterwards may be prepared. `swept`
    are the keys that tell cells apart.
    """

    groups: list[Group]
    plan: PlanFile
    room: Path
    every: float
    name: str
    executor: Callable[["Scheduler"], Executor]
    inline: Callable[["Scheduler"], Executor]  # for where no process can be started
    progress: SweepProgress
    signals: StopSignals
    ended: Callable[[Cell, dict[str, Any]], None]
    steps: Callable[[Cell], int]
    say: Callable[[str], None]
    spare: Callable[[], None] = lambda: None
    swept: Sequence[str] = ()
    deaths: dict[str, int] = field(default_factory=dict)  # group -> what its checkpoint was when its worker died
    untold: list[tuple[Group, GroupResult]] = field(default_factory=list)  # done; what their cells made is not yet told

    def run(self) -> None:
        """Run all groups.

        Raises Interrupted when a signal asked to stop and everything is kept; UserError when the disk is full.
        """
        if not self.groups:
            return
        queue = deque(self.groups)
        running: list[tuple[Group, GroupTask, GroupJob]] = []
        prepared = False
        executor = self.executor(self)
        try:
            while (queue and not self.signals.received) or running or self.untold:
                while queue and len(running) < executor.slots and not self.signals.received:
                    group = queue.popleft()
                    task = self.task(group)
                    try:
                        running.append((group, task, executor.submit(task)))
                    except ProcessLimitReached as limit:
                        queue.appendleft(group)
                        executor = self.with_fewer(executor, len(running), limit.reason)
                # After the next groups have begun: no worker waits until all is told.
                while self.untold:
                    self.finish(*self.untold.pop(0))
                if self.signals.received:
                    self.ask_to_stop()
                    running = [each for each in running if not self.taken_back(*each)]
                going_on = [each for each in running if not self.look(*each, queue)]
                if going_on and len(going_on) == len(running):
                    if not (queue or prepared) and len(running) < executor.slots:
                        self.spare()
                        prepared = True
                    self.tell(going_on)
                    time.sleep(POLL_INTERVAL)
                running = going_on
        except BaseException:
            self.ask_to_stop()
            raise
        finally:
            executor.close()
        if self.signals.received:
            raise Interrupted(self.signals.received)

    def with_fewer(self, executor: Executor, running: int, why: str) -> Executor:
        """Return what goes on where no further process can be started: those that run, or this process."""
        limit = f"no further process can be started ({why}; `ulimit -u` shows how many there may be)"
        if running:
            executor.slots = running
            self.say(f"{limit}: the sweep goes on with {running} at a time.")
            return executor
        executor.close()
        self.say(f"{limit}: the sweep goes on in this process.")
        return self.inline(self)

    def taken_back(self, group: Group, task: GroupTask, job: GroupJob) -> bool:
        """Take a group out of the queue of its executor if it has not begun; return whether that could be."""
        return not task.progress.exists() and job.cancel()

    def look(self, group: Group, task: GroupTask, job: GroupJob, queue: deque[Group]) -> bool:
        """Ask a job for its answer and act on it; return whether it has one."""
        try:
            done = job.poll()
        except Interrupted:
            self.progress.forget(group.id)
            queue.appendleft(group)
        except WorkerDied as death:
            self.progress.forget(group.id)
            queue.extendleft(reversed(self.after_death(group, task, str(death))))
        except GroupError as error:
            self.progress.forget(group.id)
            queue.extendleft(reversed(self.after_error(group, str(error), error.trace)))
        else:
            if done is None:
                return False
            self.untold.append((group, done))
        return True

    def finish(self, group: Group, done: GroupResult) -> None:
        """Tell that a group is done."""
        for note in done.notes:
            self.say(note)
        self.progress.finished(group.id, self.steps(group.cells[0]), [s["status"] for s in done.summaries])
        for cell, summary in zip(group.cells, done.summaries, strict=True):
            self.ended(cell, summary)

    def after_death(self, group: Group, task: GroupTask, how: str) -> list[Group]:
        """Return what to run instead of a group whose worker is gone: itself once more, unless it got no further."""
        reached = task.checkpoint.stat().st_mtime_ns if task.checkpoint.exists() else 0
        if self.deaths.get(group.id) != reached:
            self.deaths[group.id] = reached
            self.say(f"the worker of group {group.id} was lost ({how}): the group is tried once more.")
            return [group]
        remove_checkpoints(task.checkpoint)
        return self.after_error(group, f"its worker was lost twice ({how})", "")

    def after_error(self, group: Group, error: str, trace: str) -> list[Group]:
        """Return what to run instead of a group that failed as a whole: its halves, so that one bad cell is found."""
        if len(group.cells) > 1:
            self.say(f"group {group.id} of {len(group.cells)} networks failed ({error}): its halves are tried.")
            return self.plan.split(group)
        cell = group.cells[0]
        self.finish(group, GroupResult([record_failure(cell.config, cell.directory, trace or error)]))
        return []

    def task(self, group: Group) -> GroupTask:
        """Describe a group for a worker."""
        configs = [cell.config for cell in group.cells]
        directories = [cell.directory for cell in group.cells]
        return GroupTask(group.id, configs, directories, self.room, self.every, self.name, self.swept)

    def tell(self, running: list[tuple[Group, GroupTask, GroupJob]]) -> None:
        """Show what workers elsewhere last said."""
        for group, task, _ in running:
            if now := read_progress(task):
                self.progress.note(group.id, now)

    def ask_to_stop(self) -> None:
        """Ask workers elsewhere to keep their groups and stop."""
        # On a full disk the wish cannot be written: then the executor ends them when it closes.
        with suppress(OSError, UserError):
            (self.room / f"stop-{self.name}").touch()
