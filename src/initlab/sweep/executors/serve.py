"""The other end of `process`: a worker, which takes tasks from one pipe and writes what became of them into another."""

import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

import torch

from initlab.sweep.work import Remote

SAID = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # how many threads torch takes when it is loaded: the first of them


def own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return standard input, and what was standard output: whatever prints must not end up between two answers."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, out


def serve(inward: IO[bytes], out: IO[bytes]) -> None:
    """Be a worker: read tasks until there are no more, write answers."""
    messages = received(inward)
    first = next(messages, None)
    if first is None:
        return  # the launch has no use for this worker
    parent, *given = first
    settle(*given)
    for task in messages:
        answer = Remote(task, parent)()
        try:
            pickle.dump(answer, out)
            out.flush()
        except BrokenPipeError:
            # The launch is gone; what there is to keep is kept.
            os._exit(0)
        if os.getppid() != parent:
            # Whatever comes would be stopped at once: the launch gives it to another.
            return


def one_thread() -> None:
    """Compute by one thread: copies of a process with more would wait for theirs for ever."""
    torch.set_num_threads(1)


def received(inward: IO[bytes]) -> Iterator[Any]:
    """Yield what comes until the launch closes its end."""
    with suppress(EOFError):
        while True:
            yield pickle.load(inward)


def settle(cores: set[int], threads: int, environment: Mapping[str, str]) -> None:
    """Keep to these cores, use so many threads, and see the environment that the launch has now.

    A copy of the nursery has loaded torch by then, which heeds variables no more: what the user said by them is done.
    """
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    said = (environment.get(name, "").partition(",")[0] for name in SAID)
    wanted = next((int(number) for number in said if number.isdecimal() and int(number)), threads)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
