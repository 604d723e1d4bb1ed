"""Where groups are computed: here, in processes of this machine, as SLURM jobs, or as tasks of a Ray cluster.

`auto` is here or in processes, whichever is faster; it is decided before anything is made. An executor takes tasks, as
many at a time as it has `slots`, and gives jobs; a job is asked until it has an answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from initlab.errors import UserError, did_you_mean
from initlab.sweep.worker import GroupResult, GroupTask, OnProgress


@dataclass(frozen=True)
class ExecutorKind:
    """A kind of executor: the module it lives in, the options it knows (None: any), what has to be installed."""

    home: str
    options: tuple[str, ...] | None = ()
    package: str = "initlab"
    extra: str = ""


EXECUTORS = {
    "auto": ExecutorKind("inline"),
    "inline": ExecutorKind("inline"),
    "process": ExecutorKind("process"),
    "submitit": ExecutorKind("slurm", None, "submitit", "slurm"),
    "ray": ExecutorKind("ray_cluster", ("address", "num_cpus", "num_gpus"), "ray", "ray"),
}


class GroupJob(Protocol):
    """A group that is being computed somewhere."""

    def cancel(self) -> bool:
        """Take it back if it waits in a queue of its own, before it began; return whether that could be."""

    def poll(self) -> GroupResult | None:
        """Return what became of it, or None while it runs.

        Raises WorkerDied, GroupError, Interrupted or UserError instead.
        """
        ...


class Executor(Protocol):
    """A place where groups are computed."""

    slots: int

    def submit(self, task: GroupTask) -> GroupJob:
        """Begin a group."""

    def close(self) -> None:
        """Let everything go that was taken."""


def make_executor(
    name: str,
    workers: int | str,
    options: Mapping[str, Any],
    watch: Callable[[GroupTask], OnProgress],
    stop: Callable[[], int],
) -> Executor:
    """Return an executor by name.

    Arguments: `workers`, how many groups at a time, or `auto`; `options` of that kind of executor; `watch` and `stop`
    are for what is computed in this very process.

    Raises UserError where it cannot be had.
    """
    module = import_module(f"initlab.sweep.executors.{EXECUTORS[name].home}")
    executor: Executor = module.executor(workers, dict(options), watch, stop)
    return executor


def check_executor(name: str, workers: int | str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an executor, a number of workers or options that cannot be; nothing is started."""
    if name not in EXECUTORS:
        raise UserError(
            f"hydra.launcher.executor={name} is unknown.{did_you_mean(name, EXECUTORS)} Choose one of {', '.join(EXECUTORS)}."
        )
    kind = EXECUTORS[name]
    if find_spec(kind.package) is None:
        raise UserError(f"hydra.launcher.executor={name} needs {kind.package}: pip install 'initlab[{kind.extra}]'.")
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"hydra.launcher.workers={workers} must be auto or a whole number of at least 1.")

    for option in options:
        if kind.options is not None and option not in kind.options:
            has = f"it has {', '.join(kind.options)}" if kind.options else "it has none"
            raise UserError(f"hydra.launcher.options.{option} is unknown to executor={name}: {has}.")
