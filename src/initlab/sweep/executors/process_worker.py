"""The worker's end of `process`: reads tasks from one pipe and writes their results to another."""

import os
import pickle
from collections.abc import Iterator, Mapping
from typing import IO

import torch

from initlab.sweep.worker import RemoteWorker

THREAD_VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")  # torch reads the first that is set, when it is imported


def work_on_tasks(messages: Iterator[bytes], answers: IO[bytes]) -> None:
    """Work on pickled tasks and write their results.

    Args:
        messages: first the arguments of `apply_settings`, then tasks.
        answers: pipe to the launch.
    """
    parent = os.getppid()
    first = next(messages, None)
    if first is None:
        return  # the launch does not need this worker
    apply_settings(*pickle.loads(first))
    for message in messages:
        result = RemoteWorker(pickle.loads(message), parent)()
        try:
            pickle.dump(result, answers)
            answers.flush()
        except BrokenPipeError:  # the launch has ended; checkpoints are written
            os._exit(0)


def apply_settings(cores: set[int], threads: int, environment: Mapping[str, str]) -> None:
    """Bind this process to cores, and set its threads and environment.

    torch has read the variables when it was imported; where it could not make a number of them, `threads` is set.

    Args:
        cores: numbers of the cores.
        threads: of torch, unless the user's environment sets them.
        environment: all variables of the launch.
    """
    os.environ.clear()
    os.environ.update(environment)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    numbers = (environment.get(name, "").partition(",")[0] for name in THREAD_VARIABLES)
    count = next((int(number) for number in numbers if number.isdecimal() and int(number)), threads)
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
