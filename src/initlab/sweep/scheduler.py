"""The scheduler of a launch: hands groups to an executor, retries and splits what fails, and stops on a signal."""

import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from initlab.errors import Interrupted, ProcessLimitReached, UserError
from initlab.experiment.checkpoint import remove_checkpoints
from initlab.experiment.run_recorder import record_failure
from initlab.sweep.cost import CostCache
from initlab.sweep.executors import Executor, GroupJob, make_executor
from initlab.sweep.placement import Placement
from initlab.sweep.plan_file import Group, PlanFile
from initlab.sweep.progress import SweepProgress
from initlab.sweep.results import OnCellEnd, SweepResults
from initlab.sweep.worker import GroupError, GroupResult, GroupTask, WorkerDied, read_progress
from initlab.system.streams import print_stderr

POLL_INTERVAL = 0.05  # seconds between two polls of jobs that run elsewhere


@dataclass
class StopSignals:
    """Remembers SIGINT or SIGTERM; a second signal has its usual effect."""

    received: int = 0
    previous: dict[int, Any] = field(default_factory=dict)

    def __call__(self) -> int:
        """Return the number of the signal, 0 while there was none."""
        return self.received

    def handle(self, number: int, _: FrameType | None) -> None:
        """Remember a signal, and give the next one its usual effect."""
        self.received = number
        self.restore()
        print_stderr("\ninitlab: finishing the step and keeping the results; once more to leave at once.")

    def restore(self) -> None:
        """Install the previous handlers again."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals inside the block; not in a thread, where Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # A shell makes background jobs ignore signals: that stays.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self.handle)
        try:
            yield
        finally:
            self.restore()


@dataclass
class RunningGroup:
    """A group, what its worker was given, and the job that computes it."""

    group: Group
    task: GroupTask
    job: GroupJob

    def withdraw(self) -> bool:
        """Take the group out of the queue of its executor if it has not begun; return whether that was possible."""
        return not self.task.progress.exists() and self.job.cancel()


@dataclass
class Scheduler:
    """Runs the groups of one launch and rewrites the table as their cells end.

    Attributes:
        groups: in the order to run them.
        plan: changed where a group is split.
        results: of the sweep.
        state_dir: directory of checkpoints, locks and progress.
        placement: where groups are computed.
        costs: of the architectures.
        progress: what is shown.
        on_end: called as cells end, in this thread.
        swept: the keys that differ between cells.
        launch_id: distinguishes this launch from earlier ones.
        last_checkpoints: group -> modification time of its checkpoint when its worker died.
        unreported: groups that are done and whose cells are not yet reported.
    """

    groups: list[Group]
    plan: PlanFile
    results: SweepResults
    state_dir: Path
    placement: Placement
    costs: CostCache
    progress: SweepProgress
    on_end: OnCellEnd
    swept: Sequence[str] = ()
    signals: StopSignals = field(default_factory=StopSignals)
    launch_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    last_checkpoints: dict[str, int] = field(default_factory=dict)
    unreported: list[tuple[Group, GroupResult]] = field(default_factory=list)

    def run(self) -> None:
        """Run all groups.

        Raises:
            Interrupted: a signal was received, and everything is kept.
            UserError: the disk is full.
        """
        if self.groups:
            with self.signals.installed():
                self.run_queue(deque(self.groups))

    def run_queue(self, queue: deque[Group]) -> None:
        """Run the groups of a queue; raises as `run`.

        Raises:
            Interrupted: a signal was received, and everything is kept.
        """
        running: list[RunningGroup] = []
        prepared = False
        executor = self.make_executor(self.placement)
        try:
            while (queue and not self.signals.received) or running or self.unreported:
                while queue and len(running) < executor.slots and not self.signals.received:
                    task = self.make_task(queue[0])
                    try:
                        job = executor.submit(task)
                    except ProcessLimitReached as limit:
                        executor = self.reduce_workers(executor, len(running), limit.reason)
                    else:
                        running.append(RunningGroup(queue.popleft(), task, job))
                # After the next groups have begun, so that no worker waits for the reports.
                while self.unreported:
                    self.report(*self.unreported.pop(0))
                if self.signals.received:
                    self.request_stop()
                    running = [each for each in running if not each.withdraw()]
                unfinished = [each for each in running if not self.poll(each, queue)]
                if unfinished and len(unfinished) == len(running):
                    if not (queue or prepared) and len(running) < executor.slots:
                        self.preload_report()
                        prepared = True
                    self.show_progress(unfinished)
                    time.sleep(POLL_INTERVAL)
                running = unfinished
        except BaseException:
            self.request_stop()
            raise
        finally:
            executor.close()
        if self.signals.received:
            raise Interrupted(self.signals.received)

    def make_executor(self, placement: Placement) -> Executor:
        """Return the executor that computes groups."""

        def watch(task: GroupTask) -> Any:
            return lambda report: self.progress.record(task.id, report)

        return make_executor(placement.executor, placement.workers, placement.options, watch, self.signals)

    def preload_report(self) -> None:
        """Import, while a worker is idle, what draws the pictures for TensorBoard: that takes a second."""
        if self.groups[0].cells[0].config.log.tensorboard:
            from initlab.report.tensorboard import write_sweep_run  # noqa: F401

    def reduce_workers(self, executor: Executor, running: int, why: str) -> Executor:
        """Return the executor to go on with where no further process can be started: fewer workers, or this process."""
        limit = f"no further process can be started ({why}; `ulimit -u` shows how many there may be)"
        if running:
            executor.slots = running
            self.progress.line.remark(f"{limit}: the sweep goes on with {running} at a time.")
            return executor
        executor.close()
        self.progress.line.remark(f"{limit}: the sweep goes on in this process.")
        return self.make_executor(Placement("inline"))

    def poll(self, running: RunningGroup, queue: deque[Group]) -> bool:
        """Ask a job for its result and act on it; return whether it has ended."""
        group, task = running.group, running.task
        try:
            result = running.job.poll()
        except Interrupted:
            again = [group]
        except WorkerDied as death:
            again = self.after_death(group, task, str(death))
        except GroupError as error:
            again = self.after_error(group, str(error), error.trace)
        else:
            if result is not None:
                self.unreported.append((group, result))
            return result is not None
        self.progress.forget(group.id)
        queue.extendleft(reversed(again))
        return True

    def report(self, group: Group, result: GroupResult) -> None:
        """Report the cells of a group that is done."""
        for note in result.notes:
            self.progress.line.remark(note)
        steps = self.costs.of(group.cells[0]).steps
        self.progress.finish(group.id, steps, [summary["status"] for summary in result.summaries])
        for cell, summary in zip(group.cells, result.summaries, strict=True):
            self.results.read(cell)
            self.results.write_if_due()
            self.on_end(cell, summary, True)

    def after_death(self, group: Group, task: GroupTask, how: str) -> list[Group]:
        """Return what to run instead of a group whose worker died: itself once more, unless it got no further."""
        reached = task.checkpoint.stat().st_mtime_ns if task.checkpoint.exists() else 0
        if self.last_checkpoints.get(group.id) != reached:
            self.last_checkpoints[group.id] = reached
            self.progress.line.remark(f"the worker of group {group.id} was lost ({how}): the group is tried once more.")
            return [group]
        remove_checkpoints(task.checkpoint)
        return self.after_error(group, f"its worker was lost twice ({how})", "")

    def after_error(self, group: Group, error: str, trace: str) -> list[Group]:
        """Return what to run instead of a group that failed as a whole: its halves, so that one bad cell is found."""
        if len(group.cells) > 1:
            self.progress.line.remark(
                f"group {group.id} of {len(group.cells)} networks failed ({error}): its halves are tried."
            )
            return self.plan.split(group)
        cell = group.cells[0]
        self.report(group, GroupResult([record_failure(cell.config, cell.directory, trace or error)]))
        return []

    def make_task(self, group: Group) -> GroupTask:
        """Return the description of a group for its worker."""
        configs = [cell.config for cell in group.cells]
        directories = [cell.directory for cell in group.cells]
        every = configs[0].sweep.checkpoint_every
        return GroupTask(group.id, configs, directories, self.state_dir, every, self.launch_id, self.swept)

    def show_progress(self, running: Sequence[RunningGroup]) -> None:
        """Show how far workers elsewhere are."""
        for each in running:
            if report := read_progress(each.task):
                self.progress.record(each.group.id, report)

    def request_stop(self) -> None:
        """Ask workers elsewhere to keep their groups and stop."""
        # On a full disk the request cannot be written: then the executor ends them when it closes.
        with suppress(OSError, UserError):
            (self.state_dir / f"stop-{self.launch_id}").touch()
