"""Start process workers before the grid is known, so that they import torch while it is composed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import env_override
from omegaconf import DictConfig, OmegaConf

from initlab.system.startup import fast_imports

MANY_JOBS = 50  # from which `auto` may choose processes
STEPS_PER_EPOCH = 100  # assumed while the data have not been read
LENGTH_KEYS = ("train.steps", "train.epochs", "device", "threads")  # where they are swept, the defaults decide


@contextmanager
def start_processes_early(launcher: Any, master: DictConfig, networks: int) -> Iterator[None]:
    """Start the workers if the sweep will probably use processes.

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
    with env_override(master.hydra.job.env_set):
        with fast_imports():
            from initlab.sweep.executors.process import start_workers_early
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
            yield
            return
        with start_workers_early(early.workers, networks):
            yield
