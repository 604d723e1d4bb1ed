"""Threads that share the parts of an ensemble, each computing whole parts on one core."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from initlab.ensemble import Part

Item = TypeVar("Item")
Result = TypeVar("Result")
Cached = TypeVar("Cached")


def use_one_core() -> None:
    """Let torch's operations in this thread use one core."""
    # Asked for the first time in a thread, torch sets the number of the process; only then does a thread's own hold.
    torch.get_num_threads()
    torch.set_num_threads(1)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep memory that is freed, where it has a word for that: each step wants the same again.

    glibc gives the free end of its memory back to the system after every step: taking it anew was up to a fifth of the
    time of a deep ensemble.
    """
    settings = {"M_TRIM_THRESHOLD": (-1, 2**29), "M_TOP_PAD": (-2, 2**26), "M_MMAP_THRESHOLD": (-3, 2**25)}
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for number, value in settings.values():
            library.mallopt(number, value)


class ThreadTeam:
    """Do the same to every part, on as many cores as torch was given.

    A lone network on a CPU has all cores for each of its operations. Of several, each is computed by one thread from
    start to end: threads need not wait for each other after every operation, and sums have one order, whatever the
    number of threads. Torch releases Python's lock while it computes.
    """

    def __init__(self, networks: int, device: torch.device):
        threads = torch.get_num_threads()
        if device.type == "cpu":
            keep_freed_memory()
        alone = networks == 1 or device.type != "cpu" or threads == 1
        self.pool = None if alone else ThreadPoolExecutor(threads, "initlab", initializer=use_one_core)
        self.threads = threads
        self.own = threading.local()

    def __enter__(self) -> "ThreadTeam":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Item], Result], parts: Iterable[Item]) -> list[Result]:
        """Return `work(part)` for every part, in their order; an exception is raised when all have ended."""
        if self.pool is None:
            return [work(part) for part in parts]
        started: list[Future[Any]] = [self.pool.submit(work, part) for part in parts]
        # A new thread's number of cores is the last one set anywhere: leave the process its own.
        torch.set_num_threads(self.threads)
        wait(started)
        return [future.result() for future in started]

    def sinks(self, part: Part) -> list[Tensor]:
        """Return this thread's memory for the gradients of a stacked part: one part after another writes there."""
        count, held = len(part.members), getattr(self.own, "sinks", None)
        if held is None or len(held[0]) < count:
            held = self.own.sinks = part.sinks()
        return [rows[:count] for rows in held]

    def made_of(self, part: Part, make: Callable[[], Cached]) -> Cached:
        """Return what this thread has made of a part, made anew when members have left it; what is stale is let go."""
        held: dict[int, tuple[Part, list[int], Any]] = vars(self.own).get("made", {})
        self.own.made = made = {key: kept for key, kept in held.items() if kept[0].members == kept[1]}
        if id(part) not in made:
            made[id(part)] = part, list(part.members), make()
        found: Cached = made[id(part)][2]
        return found
