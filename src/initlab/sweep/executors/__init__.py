"""Where groups are computed: in this process, in others of this machine, as SLURM jobs, or as tasks of a Ray cluster.

`auto` is replaced by `inline` or `process`, whichever is faster, before an executor is made. An executor takes as many
tasks at a time as it has `slots`, and returns a job for each; `poll` returns the result of a job.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from initlab.errors import UserError, did_you_mean
from initlab.sweep.executors.inline import make_inline_executor
from initlab.sweep.executors.process import make_process_executor
from initlab.sweep.executors.ray_cluster import DEFAULT_OPTIONS, make_ray_executor
from initlab.sweep.executors.slurm import make_slurm_executor, runs_locally
from initlab.sweep.worker import GroupResult, GroupTask, OnProgress

Watch = Callable[[GroupTask], OnProgress]


class GroupJob(Protocol):
    """A group that is being computed somewhere."""

    def cancel(self) -> bool:
        """Take it out of the executor's queue, unless it has begun; return whether that was possible."""

    def poll(self) -> GroupResult | None:
        """Return the result, or None while it runs.

        Raises:
            WorkerDied: the process that computed it has ended.
            GroupError: the group failed as a whole.
            Interrupted: a signal stopped it.
            UserError: the disk is full, for example.
        """
        ...


class Executor(Protocol):
    """A place where groups are computed."""

    slots: int

    def submit(self, task: GroupTask) -> GroupJob:
        """Begin a group."""

    def close(self) -> None:
        """End what the executor has started."""


@dataclass(frozen=True)
class ExecutorKind:
    """A kind of executor; a new one is a file with a `make` function and a row in `EXECUTORS`.

    Attributes:
        make: given workers and options, and by name `watch` and `stop`, as `make_executor` is, returns an `Executor`.
        options: names of the options it has, None for any.
        package: what has to be installed, and the extra of initlab that installs it.
        several: whether it may compute several groups at a time.
        shares_machine: given its options, whether its groups share one machine, so that a grid is cut to keep all
            workers busy; a job of a batch system waits in a queue and holds what it asked for.
        is_local: given its options, whether that is this machine, whose memory is known.
    """

    make: Callable[..., Executor]
    options: tuple[str, ...] | None = ()
    package: str = "initlab"
    extra: str = ""
    several: bool = True
    shares_machine: Callable[[Mapping[str, Any]], bool] = lambda options: True
    is_local: Callable[[Mapping[str, Any]], bool] = lambda options: True


EXECUTORS = {
    "auto": ExecutorKind(make_inline_executor, several=False),
    "inline": ExecutorKind(make_inline_executor, several=False),
    "process": ExecutorKind(make_process_executor),
    "submitit": ExecutorKind(
        make_slurm_executor, None, "submitit", "slurm", shares_machine=runs_locally, is_local=runs_locally
    ),
    "ray": ExecutorKind(make_ray_executor, tuple(DEFAULT_OPTIONS), "ray", "ray", is_local=lambda options: False),
}


def make_executor(
    name: str, workers: int | str, options: Mapping[str, Any], watch: Watch, stop: Callable[[], int]
) -> Executor:
    """Return an executor by name.

    Args:
        name: a key of `EXECUTORS`.
        workers: how many groups at a time, or `auto`.
        options: of that kind of executor.
        watch: given a task, returns what is called with the progress of a group that this process computes.
        stop: returns the number of a signal that asks this process to stop, or 0.

    Raises:
        UserError: it cannot be had.
    """
    return EXECUTORS[name].make(workers, dict(options), watch=watch, stop=stop)


def check_executor(name: str, workers: int | str, options: Mapping[str, Any]) -> None:
    """Check the name, workers and options of an executor; nothing is started.

    Args:
        name: of the executor.
        workers: how many groups at a time, or `auto`.
        options: of that kind of executor.

    Raises:
        UserError: one of them is wrong, or what the executor needs is not installed.
    """
    if name not in EXECUTORS:
        near = did_you_mean(name, EXECUTORS)
        raise UserError(f"hydra.launcher.executor={name} is unknown.{near} Choose one of {', '.join(EXECUTORS)}.")
    kind = EXECUTORS[name]
    if find_spec(kind.package) is None:
        raise UserError(f"hydra.launcher.executor={name} needs {kind.package}: pip install 'initlab[{kind.extra}]'.")
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"hydra.launcher.workers={workers} must be auto or a whole number of at least 1.")
    for option in options:
        if kind.options is not None and option not in kind.options:
            names = f"it has {', '.join(kind.options)}" if kind.options else "it has none"
            raise UserError(f"hydra.launcher.options.{option} is unknown to executor={name}: {names}.")
