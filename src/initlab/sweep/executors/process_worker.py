"""The other end of `process`: a worker, which takes tasks from one pipe and writes what became of them into another."""

import os
import pickle
from collections.abc import Iterator, Mapping
from typing import IO

import torch

from initlab.sweep.worker import RemoteWorker
from initlab.system.parent_process import messages

THREAD_VARIABLES = (
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
)  # how many threads torch takes when it is loaded: the first of them


def serve_tasks(inward: IO[bytes], out: IO[bytes]) -> None:
    """Be a worker that reads from one pipe and writes into another."""
    answer(messages(inward), out)


def answer(heard: Iterator[bytes], out: IO[bytes]) -> None:
    """Take tasks until there are no more, and write answers; the first message holds settings."""
    first = next(heard, None)
    if first is None:
        return  # the launch has no use for this worker
    parent, *given = pickle.loads(first)
    apply_settings(*given)
    for message in heard:
        done = RemoteWorker(pickle.loads(message), parent)()
        try:
            pickle.dump(done, out)
            out.flush()
        except BrokenPipeError:
            # The launch is gone; what there is to keep is kept.
            os._exit(0)
        if parent and os.getppid() != parent:
            # A further task would be stopped at once: the launch gives it to another worker.
            return


def use_one_thread() -> None:
    """Compute by one thread: copies of a process with more would wait for theirs for ever."""
    torch.set_num_threads(1)


def apply_settings(cores: set[int], threads: int, environment: Mapping[str, str]) -> None:
    """Keep to these cores, use so many threads, and see the environment that the launch has now.

    A copy of the nursery has loaded torch by then, which heeds variables no more: what the user said by them is done.
    """
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    said = (environment.get(name, "").partition(",")[0] for name in THREAD_VARIABLES)
    wanted = next((int(number) for number in said if number.isdecimal() and int(number)), threads)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
