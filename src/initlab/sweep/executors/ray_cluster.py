"""`ray`: groups as tasks of a Ray cluster whose nodes share this disk."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from initlab.errors import UserError
from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, RemoteWorker, WorkerDied
from initlab.system.imports import change_to_root
from initlab.system.safe_reading import error_reason

DEFAULT_OPTIONS: dict[str, Any] = {"address": None, "num_cpus": 1, "num_gpus": None}


@dataclass
class RayJob:
    """A group in a task."""

    reference: Any

    def cancel(self) -> bool:
        """Cancel the task."""
        import ray

        ray.cancel(self.reference, force=True)
        return True

    def poll(self) -> GroupResult | None:
        """Return the result if there is one.

        Raises:
            WorkerDied: the task has ended without one.
        """
        import ray
        from ray.exceptions import RayError

        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            answer = ray.get(self.reference)
        except RayError as error:
            raise WorkerDied(error_reason(error)) from error
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer


class RayExecutor:
    """Tasks of a cluster; `started` tells that this launch has started it, and so ends it."""

    def __init__(self, slots: int, remote: Any, started: bool):
        self.slots, self.remote, self.started = slots, remote, started

    def submit(self, task: GroupTask) -> RayJob:
        """Begin a group."""
        return RayJob(self.remote.remote(task))

    def close(self) -> None:
        """End the cluster if this launch has started it."""
        import ray

        if self.started:
            ray.shutdown()


def run_ray_task(task: GroupTask) -> GroupResult | GroupFailure:
    """Compute a group in a task of the cluster."""
    return RemoteWorker(task)()


def connect_to_ray(address: str | None) -> None:
    """Join a cluster, or start one on this machine: in two attempts, because Ray allows a busy machine 30 s.

    Args:
        address: of the cluster; None starts one, unless RAY_ADDRESS is set.

    Raises:
        UserError: the cluster cannot be reached or started.
    """
    import ray

    starts = not (address or os.environ.get("RAY_ADDRESS"))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if starts:
        options["include_dashboard"] = False
    for last in (False, True) if starts else (True,):
        try:
            # From the current directory, its workers would import files of the user's.
            with change_to_root():
                ray.init(address=address, **options)
        except Exception as error:  # Ray has no class for a node that does not start in time
            ray.shutdown()
            if not last:
                continue
            reason, failure = error_reason(error), f"hydra.launcher.options.address={address} cannot be reached"
            remedy = "use address=auto on a node of the cluster"
            if starts:
                failure = "hydra.launcher.executor=ray cannot start a cluster on this machine"
                remedy = "try again, or start one by `ray start --head` and use +hydra.launcher.options.address=auto"
            raise UserError(f"{failure} ({reason}): {remedy}.") from error
        else:
            return


def make_ray_executor(workers: int | str, options: Mapping[str, Any], **_: Any) -> RayExecutor:
    """Return the executor; `auto` is as many groups at a time as the cluster has GPUs, or cores where it has none."""
    import ray

    chosen = {**DEFAULT_OPTIONS, **options}
    started = not ray.is_initialized()
    if started:
        connect_to_ray(chosen["address"])
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    gpus_each = chosen["num_gpus"] if chosen["num_gpus"] is not None else min(gpus, 1)
    slots = (gpus or int(resources.get("CPU", 1) // chosen["num_cpus"])) if workers == "auto" else int(workers)
    # Without Ray's own retries: the launch counts how often a lost group is tried.
    remote = ray.remote(num_cpus=chosen["num_cpus"], num_gpus=gpus_each, max_retries=0)(run_ray_task)
    return RayExecutor(max(slots, 1), remote, started)
