"""Start what process workers need before the grid is known, so that it imports torch while the grid is composed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from initlab.sweep.worker_server import WORKER_SERVER
from initlab.system.fork_server import ProcessLimitReached, can_fork
from initlab.system.startup import fast_imports

MANY_JOBS = 50  # from which `auto` may choose processes
STEPS_PER_EPOCH = 100  # assumed while the data have not been read
LENGTH_KEYS = ("train.steps", "train.epochs", "device", "threads")  # where they are swept, the defaults decide


@contextmanager
def start_processes_early(launcher: Any, master: DictConfig, networks: int) -> Iterator[None]:
    """Start the fork server, or where it cannot be the workers, if the sweep will probably use processes.

    The server imports torch on one core while this process does so on another; where there is one core, it starts when
    it is known to be needed.

    Args:
        launcher: Hydra's launcher, ours or another one.
        master: Hydra's configuration of the sweep.
        networks: number of jobs.
    """
    options = getattr(launcher, "placement", {})
    maybe = options.get("executor") == "process" or (options.get("executor") == "auto" and networks >= MANY_JOBS)
    if not maybe or OmegaConf.select(master, "dry_run"):
        yield
        return
    with env_override(master.hydra.job.env_set), WORKER_SERVER.hold():
        if can_fork() and len(os.sched_getaffinity(0)) > 1:
            with suppress(ProcessLimitReached):  # the sweep reports it
                WORKER_SERVER.get()
        with fast_imports():
            from initlab.sweep.executors.process import start_workers_early, stop_idle_workers
            from initlab.sweep.placement import Placement
        steps, epochs, device, threads = (OmegaConf.select(master, key) for key in LENGTH_KEYS)
        updates = STEPS_PER_EPOCH * epochs if steps is None else steps
        # A value of another type is refused when the jobs are composed.
        early = (
            Placement(**options).prestart(networks, updates, device, threads)
            if isinstance(updates, int | float)
            else None
        )
        if early is None:
            stop_idle_workers()
            yield
            return
        with start_workers_early(early.workers, networks):
            preload_data(master)
            yield


def preload_data(master: DictConfig) -> None:
    """Have the fork server read the data, which its workers then share; where there is no server, do nothing."""
    # What is wrong with the keys is reported when the jobs are composed, a refused process by the sweep.
    with suppress(OmegaConfBaseException, AttributeError, ProcessLimitReached):
        options = {str(key): value for key, value in master.data.items()}
        if can_fork():
            WORKER_SERVER.get().call("initlab.data:preload", **options)
