"""What a worker does, in this process or elsewhere: it trains one group, from its checkpoint if there is one."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from initlab.config import Config
from initlab.config.naming import config_hash
from initlab.errors import Interrupted, UserError
from initlab.experiment.checkpoint import UnusableCheckpoint, remove_checkpoints
from initlab.experiment.run import Checkpointing, OnProgress, run
from initlab.records import read_run
from initlab.sweep.locks import group_lock
from initlab.sweep.results import is_finished
from initlab.sweep.threads import use_suitable_threads
from initlab.system.parent_process import delay_exit, stop_requested
from initlab.system.safe_reading import read_json

MAX_REMARKS = 5  # about one group that are shown
MESSAGE_INTERVAL = 0.5  # seconds between two checks for a request to stop, and between two reports of progress


@dataclass(frozen=True)
class GroupTask:
    """A group for a worker, plain enough to be pickled for another machine that shares the disk.

    Attributes:
        id: of the group.
        configs: of its networks.
        directories: of their runs.
        state_dir: directory of checkpoints, locks and progress.
        checkpoint_every: seconds between checkpoints.
        launch_id: distinguishes this launch's request to stop from an earlier one's.
        swept: the keys that differ between the cells of the grid.
        cwd: where relative paths are looked up.
        sys_path: where the user's own modules are.
    """

    id: str
    configs: Sequence[Config]
    directories: Sequence[Path]
    state_dir: Path
    checkpoint_every: float
    launch_id: str
    swept: Sequence[str] = ()
    cwd: Path = field(default_factory=Path.cwd)
    sys_path: Sequence[str] = field(default_factory=lambda: list(sys.path))

    @property
    def checkpoint(self) -> Path:
        """The file of its checkpoint."""
        return self.state_dir / f"{self.id}.pt"

    @property
    def progress(self) -> Path:
        """The file in which a worker elsewhere reports how far it is."""
        return self.state_dir / f"{self.id}.progress"

    @property
    def stop(self) -> Path:
        """The file whose presence asks every worker of this launch to keep its group and stop."""
        return self.state_dir / f"stop-{self.launch_id}"


@dataclass
class GroupResult:
    """The result of a group: one summary per cell, and remarks for the user."""

    summaries: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


@dataclass
class GroupFailure:
    """What went wrong with a group elsewhere, as text, because exceptions may not pickle.

    Attributes:
        kind: `user`, `interrupted` or `error`.
        text: the message, or the number of the signal.
        trace: the traceback of an `error`.
    """

    kind: str
    text: str
    trace: str = ""

    def throw(self) -> None:
        """Raise the exception in this process.

        Raises:
            UserError: of kind `user`.
            Interrupted: of kind `interrupted`.
            GroupError: of kind `error`.
        """
        if self.kind == "user":
            raise UserError(self.text)
        if self.kind == "interrupted":
            raise Interrupted(int(self.text))
        raise GroupError(self.text, self.trace)


class GroupError(Exception):
    """A group failed as a whole: it is not known which of its networks is to blame."""

    def __init__(self, text: str, trace: str):
        super().__init__(text)
        self.trace = trace


class WorkerDied(Exception):
    """The process that computed a group has ended; the message describes how."""


def run_group(task: GroupTask, watch: OnProgress | None, stop: Callable[[], int]) -> GroupResult:
    """Train a group to its end and return its result; an unusable checkpoint is reported and removed.

    Args:
        task: the group.
        watch: called with progress a few times a second.
        stop: returns a signal's number once one was received, else 0.

    Raises:
        UserError: the disk is full.
        Interrupted: a signal was received, and a checkpoint was written.
        GroupError: any other failure.
    """
    checkpointing = Checkpointing(task.checkpoint, task.checkpoint_every, stop)

    def train() -> list[dict[str, Any]]:
        with use_suitable_threads(task.configs):
            return run(task.configs, task.directories, watch, checkpointing, task.swept)

    with group_lock(task.state_dir / f"{task.id}.lock", stop):
        if finished := finished_by_other_worker(task):
            return GroupResult(finished)
        try:
            try:
                summaries = train()
            except UnusableCheckpoint as reason:
                checkpointing.remarks.append(f"it starts again, because its checkpoint is unusable: {reason}")
                remove_checkpoints(task.checkpoint)
                summaries = train()
        except UserError:
            raise
        # A user's model that exits fails like any other.
        except (Exception, SystemExit) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise GroupError(f"{type(error).__name__}: {first}", traceback.format_exc()) from error
        remove_checkpoints(task.checkpoint)
    notes = checkpointing.remarks[:MAX_REMARKS]
    if more := len(checkpointing.remarks) - len(notes):
        notes.append(f"{more} more remarks are in run.log")
    return GroupResult(summaries, [f"group {task.id}: {note}." for note in notes])


def finished_by_other_worker(task: GroupTask) -> list[dict[str, Any]] | None:
    """Return the results if a worker of an earlier launch finished the group while this one waited for its lock."""
    results = []
    for config, directory in zip(task.configs, task.directories, strict=True):
        if not (directory / "summary.json").exists():
            return None
        results.append(read_run(directory, read_weights=True)[1])
        if not is_finished(results[-1], config_hash(config)):
            return None
    return results


class RemoteWorker:
    """A worker in another process than the launch: they exchange files in a directory that they share.

    Args:
        task: the group.
        parent: pid of the process that started this one, which ends without it; 0 for none.
    """

    def __init__(self, task: GroupTask, parent: int = 0):
        self.task, self.parent = task, parent
        self.last_report = self.last_check = 0.0
        self.received = 0

    def __call__(self) -> GroupResult | GroupFailure:
        """Train the group in this process and return its result, or its failure."""
        os.chdir(self.task.cwd)
        sys.path += [place for place in self.task.sys_path if place not in sys.path]
        self.report({})
        with suppress(ValueError):  # not in the main thread: then the launch alone can stop it
            signal.signal(signal.SIGTERM, self.handle_signal)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launch, which asks to stop by a file
        try:
            with delay_exit():
                return run_group(self.task, self.report, self.stop)
        except Interrupted as stop:
            return GroupFailure("interrupted", str(stop.signal))
        except UserError as error:
            return GroupFailure("user", str(error))
        except GroupError as error:
            return GroupFailure("error", str(error), error.trace)
        finally:
            with suppress(OSError):
                self.task.progress.unlink()

    def handle_signal(self, number: int, _: Any) -> None:
        """Remember a signal."""
        self.received = number

    def stop(self) -> int:
        """Return the number of a signal if one was received, if the launch asks to stop, or if it has ended."""
        if not self.received and time.monotonic() - self.last_check > MESSAGE_INTERVAL:
            self.last_check = time.monotonic()
            if self.task.stop.exists() or stop_requested.is_set() or (self.parent and os.getppid() != self.parent):
                self.received = int(signal.SIGTERM)
        return self.received

    def report(self, progress: dict[str, Any]) -> None:
        """Write how far the group is."""
        if time.monotonic() - self.last_report > MESSAGE_INTERVAL:
            self.last_report = time.monotonic()
            temporary = self.task.progress.with_suffix(".progress.tmp")
            # A report that is lost, on a full disk too, is no reason to stop.
            with suppress(OSError):
                temporary.write_text(json.dumps(progress))
                os.replace(temporary, self.task.progress)


def read_progress(task: GroupTask) -> dict[str, Any] | None:
    """Return what a worker last reported of its group."""
    try:
        return read_json(task.progress) or None
    except (OSError, ValueError):
        return None
