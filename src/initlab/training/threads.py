"""Threads that share the parts of an ensemble, each computing whole parts on one core."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

from initlab.ensemble.cpu.allocator import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def use_one_core() -> None:
    """Set torch's operations in this thread to use one core."""
    # At the first question in a thread, torch sets the number of the process; only then does a thread's own hold.
    torch.get_num_threads()
    torch.set_num_threads(1)


class ThreadTeam:
    """Do the same to every part, on as many cores as torch was given.

    A lone network on a CPU has all cores for each of its operations. Of several, each is computed by one thread from
    start to end: threads need not wait for each other after every operation, and sums have one order, whatever the
    number of threads. torch releases Python's lock while it computes.
    """

    def __init__(self, networks: int, device: torch.device):
        self.threads = torch.get_num_threads()
        if device.type == "cpu":
            keep_freed_memory()
        single = networks == 1 or device.type != "cpu" or self.threads == 1
        self.pool = None if single else ThreadPoolExecutor(self.threads, "initlab", initializer=use_one_core)

    def __enter__(self) -> "ThreadTeam":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return `function(item)` for every item, in their order; an exception is raised when all have ended."""
        if self.pool is None:
            return [function(item) for item in items]
        futures: list[Future[Any]] = [self.pool.submit(function, item) for item in items]
        # A new thread's number of cores is the last one set anywhere: set the process's own again.
        torch.set_num_threads(self.threads)
        wait(futures)
        return [future.result() for future in futures]
