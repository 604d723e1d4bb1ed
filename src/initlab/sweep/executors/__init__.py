"""Where groups are computed: here, in processes of this machine, as SLURM jobs, or as tasks of a Ray cluster.

An executor takes tasks, as many at a time as it has `slots`, and gives jobs; a job is asked until it has an answer.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from initlab.errors import UserError, nearest
from initlab.sweep.work import Done, Task, Watch

HOMES = {
    "inline": "here",
    "process": "process",
    "submitit": "slurm",
    "ray": "cluster",
}


class Job(Protocol):
    """A group that is being computed somewhere."""

    def poll(self) -> Done | None:
        """Return what became of it, or None while it runs.

        Raises WorkerDied, GroupError, Interrupted or UserError instead.
        """


class Executor(Protocol):
    """A place where groups are computed."""

    slots: int

    def submit(self, task: Task) -> Job:
        """Begin a group."""

    def close(self) -> None:
        """Let everything go that was taken."""


def make_executor(
    name: str, workers: int | str, options: Mapping[str, Any], watch: Callable[[Task], Watch], stop: Callable[[], int]
) -> Executor:
    """Return an executor by name.

    Arguments: `workers`, how many groups at a time, or `auto`; `options` of that kind of executor; `watch` and `stop`
    are for what is computed in this very process.

    Raises UserError for an unknown name, or when what it needs is not installed.
    """
    check_executor(name, workers)
    module = import_module(f"initlab.sweep.executors.{HOMES[name]}")
    executor: Executor = module.executor(workers, dict(options), watch, stop)
    return executor


def check_executor(name: str, workers: int | str) -> None:
    """Raise UserError for an executor or a number of workers that cannot be."""
    if name not in HOMES:
        raise UserError(
            f"hydra.launcher.executor={name} is unknown.{nearest(name, HOMES)} Choose one of {', '.join(HOMES)}."
        )
    if workers != "auto" and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise UserError(f"hydra.launcher.workers={workers} must be auto or a whole number of at least 1.")


def refuse_unknown(options: Mapping[str, Any], known: Mapping[str, Any], name: str) -> None:
    """Raise UserError for an option that an executor has not."""
    for option in options:
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"hydra.launcher.options.{option} is unknown to executor={name}: {has}.")
