"""`ray`: groups as tasks of a Ray cluster whose nodes share this disk."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from initlab.errors import UserError
from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, OnProgress, RemoteWorker, WorkerDied
from initlab.system.imports import change_to_root

DEFAULT_OPTIONS: dict[str, Any] = {"address": None, "num_cpus": 1, "num_gpus": None}


@dataclass
class RayJob:
    """A group in a task."""

    reference: Any

    def cancel(self) -> bool:
        """Take the task back."""
        import ray

        ray.cancel(self.reference, force=True)
        return True

    def poll(self) -> GroupResult | None:
        """Look whether the task is done."""
        import ray
        from ray.exceptions import RayError

        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            answer = ray.get(self.reference)
        except RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer


class RayExecutor:
    """Tasks of a cluster; one is started on this machine where there is none to join."""

    def __init__(self, slots: int, remote: Any, started: bool):
        self.slots, self.remote, self.started = slots, remote, started

    def submit(self, task: GroupTask) -> RayJob:
        """Hand a group to the cluster."""
        return RayJob(self.remote.remote(task))

    def close(self) -> None:
        """Leave the cluster; the one that was started here ends."""
        import ray

        if self.started:
            ray.shutdown()


def run_ray_task(task: GroupTask) -> GroupResult | GroupFailure:
    """Do the work of a group in a task of the cluster."""
    return RemoteWorker(task)()


def connect_to_ray(address: str | None) -> None:
    """Join a cluster, or start one of this machine: that again if need be, for Ray gives a busy machine 30 s.

    Raises UserError when it cannot be had.
    """
    import ray

    own = not (address or os.environ.get("RAY_ADDRESS"))
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if own:
        how["include_dashboard"] = False
    for last in (False, True) if own else (True,):
        try:
            # Its workers would import from the current directory before all else.
            with change_to_root():
                ray.init(address=address, **how)
        except Exception as error:  # of no kind of its own, where a node does not start in time
            ray.shutdown()
            if not last:
                continue
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if own:
                raise UserError(
                    f"hydra.launcher.executor=ray cannot start a cluster on this machine ({why}): try again, or start "
                    "one by `ray start --head` and say +hydra.launcher.options.address=auto."
                ) from error
            raise UserError(
                f"hydra.launcher.options.address={address} cannot be reached ({why}): "
                "say address=auto on a node of the cluster."
            ) from error
        else:
            return


def executor(
    workers: int | str, options: Mapping[str, Any], watch: Callable[[GroupTask], OnProgress], stop: Callable[[], int]
) -> RayExecutor:
    """Make the executor: by default as many groups at a time as the cluster has cards, or cores where it has none."""
    import ray

    chosen = {**DEFAULT_OPTIONS, **options}
    started = not ray.is_initialized()
    if started:
        connect_to_ray(chosen["address"])
    resources = ray.cluster_resources()
    cards = int(resources.get("GPU", 0))
    gpus = chosen["num_gpus"] if chosen["num_gpus"] is not None else (1 if cards else 0)
    slots = (cards or int(resources.get("CPU", 1) // chosen["num_cpus"])) if workers == "auto" else int(workers)
    # A task that died is tried again by the launch, which knows how often: Ray itself would not stop.
    remote = ray.remote(num_cpus=chosen["num_cpus"], num_gpus=gpus, max_retries=0)(run_ray_task)
    return RayExecutor(max(slots, 1), remote, started)
