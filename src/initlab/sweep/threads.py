"""How many threads a network that trains alone uses: one, unless its training is long enough for more to be faster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from initlab.config import Config
from initlab.sweep.cost import estimate_cost
from initlab.system.device import pick_device

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which the user decides
MIN_STEP_MULTIPLICATIONS = 5e6  # in a forward pass of one batch from which on more threads are faster at all
MIN_RUN_SECONDS = 10.0  # of training by one thread from which on the time that they save is worth waiting threads


@contextmanager
def use_suitable_threads(configs: Sequence[Config]) -> Iterator[None]:
    """Let torch use the threads that suit these networks inside the block.

    `threads=` decides, else the environment variables OMP_NUM_THREADS and MKL_NUM_THREADS. With `threads=auto` several
    networks share all threads, one network for each; a small network alone has one.
    """
    before = torch.get_num_threads()
    wanted = pick_threads(configs, before)
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def pick_threads(configs: Sequence[Config], available: int) -> int:
    """Return the number of threads for networks that train together, of those that torch uses otherwise."""
    first = configs[0]
    if first.threads != "auto":
        return int(first.threads)
    chosen = any(os.environ.get(name) for name in THREAD_VARIABLES)
    if available == 1 or chosen or len(configs) > 1 or pick_device(first.device).type != "cpu":
        return available
    return available if several_threads_are_faster(first) else 1


def several_threads_are_faster(config: Config) -> bool:
    """Return whether one network is large enough, and trained long enough, for more than one thread.

    Two threads took 0.64 to 0.92 of the time of one for a forward and backward pass of 8·10⁶ to 6·10⁷ multiplications
    where both cores were free (`python scripts/bench.py threads`), and 3 to 27 times as long where other programs kept
    the cores busy, for threads wait for each other after every operation. So a short training, of which a second thread
    saves a few seconds at best, has one; a long one has what torch chooses.
    """
    cost = estimate_cost(config, call_own=False)
    return cost.work_per_step >= MIN_STEP_MULTIPLICATIONS and cost.compute_seconds >= MIN_RUN_SECONDS
