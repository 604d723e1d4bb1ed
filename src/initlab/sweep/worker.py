"""What a worker does, here or elsewhere: one group, from its checkpoint if there is one, its progress in a file."""

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
from initlab.experiment import Checkpointing, run
from initlab.experiment.checkpoint import UnusableCheckpoint, remove_checkpoints
from initlab.records import read_run
from initlab.sweep.locks import group_lock
from initlab.sweep.results import is_finished
from initlab.sweep.threads import use_suitable_threads
from initlab.system.parent_process import delay_exit, stop_requested
from initlab.system.safe_reading import read_json

MAX_REMARKS = 5  # about one group that are shown
MESSAGE_INTERVAL = 0.5  # seconds between two looks at what the launch wants, and two words about how far it is
OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class GroupTask:
    """All that a worker has to know about a group; plain enough to travel to another machine that shares the disk."""

    id: str
    configs: Sequence[Config]
    directories: Sequence[Path]
    room: Path  # checkpoints, locks, progress
    every: float
    launch: str  # tells this launch's wish to stop from an earlier one's
    swept: Sequence[str] = ()  # the keys that tell the cells of the grid apart
    home: Path = field(default_factory=Path.cwd)  # where relative paths are looked up
    modules: Sequence[str] = field(default_factory=lambda: list(sys.path))  # where the user's own modules are

    @property
    def checkpoint(self) -> Path:
        """Where the group keeps itself."""
        return self.room / f"{self.id}.pt"

    @property
    def progress(self) -> Path:
        """Where a worker elsewhere says how far it is."""
        return self.room / f"{self.id}.progress"

    @property
    def stop(self) -> Path:
        """The file whose presence asks every worker of this launch to keep its group and stop."""
        return self.room / f"stop-{self.launch}"


@dataclass
class GroupResult:
    """What became of a group: one summary per cell, and what the user should hear about."""

    summaries: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


@dataclass
class GroupFailure:
    """What went wrong with a group elsewhere, in words: an exception need not survive the journey."""

    kind: str  # user, interrupted, error
    text: str
    trace: str = ""

    def throw(self) -> None:
        """Raise it here."""
        if self.kind == "user":
            raise UserError(self.text)
        if self.kind == "interrupted":
            raise Interrupted(int(self.text))
        raise GroupError(self.text, self.trace)


class GroupError(Exception):
    """A group failed as a whole: nothing is known of which of its networks is to blame."""

    def __init__(self, text: str, trace: str):
        super().__init__(text)
        self.trace = trace


class WorkerDied(Exception):
    """The process that computed a group is gone; the message says how."""


def run_group(task: GroupTask, watch: OnProgress | None, stop: Callable[[], int]) -> GroupResult:
    """Train a group to its end and return what became of it; a checkpoint that is no use is said and left behind.

    Raises Interrupted after a checkpoint when `stop()` returned a signal's number; UserError when the disk is full;
    GroupError for all else.
    """
    keeping = Checkpointing(task.checkpoint, task.every, stop)
    with group_lock(task.room / f"{task.id}.lock", stop):
        if found := results_of_other_worker(task):
            return GroupResult(found)
        try:
            try:
                with use_suitable_threads(task.configs):
                    summaries = run(task.configs, task.directories, watch, keeping, task.swept)
            except UnusableCheckpoint as reason:
                keeping.remarks.append(f"it starts again, its checkpoint is no use: {reason}")
                remove_checkpoints(task.checkpoint)
                with use_suitable_threads(task.configs):
                    summaries = run(task.configs, task.directories, watch, keeping, task.swept)
        except UserError:
            raise
        # A model of the user's that wants to leave fails like any other.
        except (Exception, SystemExit) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise GroupError(f"{type(error).__name__}: {first}", traceback.format_exc()) from error
        remove_checkpoints(task.checkpoint)
    return GroupResult(summaries, remark_lines(task, keeping.remarks))


def remark_lines(task: GroupTask, remarks: Sequence[str]) -> list[str]:
    """Return what to say of a group in which something was damaged; the logs of its runs have all of it."""
    more = [f"{len(remarks) - MAX_REMARKS} more remarks are in run.log"] if len(remarks) > MAX_REMARKS else []
    return [f"group {task.id}: {remark}." for remark in [*remarks[:MAX_REMARKS], *more]]


def results_of_other_worker(task: GroupTask) -> list[dict[str, Any]] | None:
    """Return the results if a worker of an earlier launch finished the group while this one waited for its lock."""
    found = []
    for config, directory in zip(task.configs, task.directories, strict=True):
        if not (directory / "summary.json").exists():
            return None
        found.append(read_run(directory, read_weights=True)[1])
        if not is_finished(found[-1], config_hash(config)):
            return None
    return found


class RemoteWorker:
    """A worker's own eyes and mouth where the launch is another process: files in the room they share.

    Arguments: `parent`, the number of the process without which this one ends; 0 where its pipe alone tells.
    """

    def __init__(self, task: GroupTask, parent: int = 0):
        self.task, self.parent = task, parent
        self.said = self.looked = 0.0
        self.received = 0

    def __call__(self) -> GroupResult | GroupFailure:
        """Do the work in this process and return what became of it, whatever that is."""
        os.chdir(self.task.home)
        sys.path += [place for place in self.task.modules if place not in sys.path]
        self.watch({})
        with suppress(ValueError):  # not in the main thread: then the launch alone can stop it
            signal.signal(signal.SIGTERM, self.hear)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launch, which says stop by a file
        try:
            with delay_exit():
                return run_group(self.task, self.watch, self.stop)
        except Interrupted as stop:
            return GroupFailure("interrupted", str(stop.signal))
        except UserError as error:
            return GroupFailure("user", str(error))
        except GroupError as error:
            return GroupFailure("error", str(error), error.trace)
        finally:
            with suppress(OSError):
                self.task.progress.unlink()

    def hear(self, number: int, _: Any) -> None:
        """Remember a signal."""
        self.received = number

    def stop(self) -> int:
        """Return the number of a signal if one came, if the launch wants to stop, or if it is gone."""
        if not self.received and time.monotonic() - self.looked > MESSAGE_INTERVAL:
            self.looked = time.monotonic()
            if self.task.stop.exists() or stop_requested.is_set() or (self.parent and os.getppid() != self.parent):
                self.received = int(signal.SIGTERM)
        return self.received

    def watch(self, now: dict[str, Any]) -> None:
        """Say how far the group is."""
        if time.monotonic() - self.said > MESSAGE_INTERVAL:
            self.said = time.monotonic()
            beside = self.task.progress.with_suffix(".progress.tmp")
            # A word that is lost, on a full disk too, is no reason to stop.
            with suppress(OSError):
                beside.write_text(json.dumps(now))
                os.replace(beside, self.task.progress)


def read_progress(task: GroupTask) -> dict[str, Any] | None:
    """Return what a worker last said of its group."""
    try:
        found = read_json(task.progress)
    except (OSError, ValueError):
        return None
    return found or None
