"""Where groups are computed, and how many at a time: as the user chose, or by what there is to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from initlab.sweep.cells import Cell, cells_by_key
from initlab.sweep.cost import CostCache, estimate_seconds
from initlab.sweep.executors import EXECUTORS, check_executor
from initlab.system.device import pick_device
from initlab.system.resources import GIB, MEMORY_SHARE, free_bytes, usable_cores

MIN_PROCESS_SECONDS = 20.0  # of work from which on processes are worth their start
MIN_PROCESS_UPDATES = 20_000  # updates of all networks that probably take as long
BYTES_PER_PROCESS = 1.0 * GIB  # before it trains anything


@dataclass(frozen=True)
class Placement:
    """Where and how many groups are computed at a time: an executor by name, its workers, its own options."""

    executor: str = "auto"
    workers: int | str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_executor(self.executor, self.workers, self.options)

    def is_remote(self) -> bool:
        """Return whether groups are computed by other machines, whose memory is not known here."""
        return not EXECUTORS[self.executor].is_local(self.options)

    def local_workers(self) -> int:
        """Return how many groups this machine computes at a time; they share its memory."""
        kind = EXECUTORS[self.executor]
        if not (kind.several and kind.shares_machine(self.options)):
            return 1
        return (torch.cuda.device_count() or usable_cores()) if self.workers == "auto" else int(self.workers)

    def is_parallel(self) -> bool:
        """Return whether more than one group may be computed at a time, by this machine or others."""
        kind = EXECUTORS[self.executor]
        elsewhere = kind.several and self.workers != 1 and not kind.shares_machine(self.options)
        return self.local_workers() > 1 or elsewhere

    def as_processes(self) -> "Placement":
        """Return `auto` as processes: one for each GPU, or for each core that torch would use."""
        cores = min(usable_cores(), torch.get_num_threads())
        workers = cores if self.workers == "auto" and not torch.cuda.device_count() else self.workers
        return replace(self, executor="process", workers=workers)

    def resolve(self, cells: Sequence[Cell], costs: CostCache) -> "Placement":
        """Return `auto` as `process` where these cells are worth it, else as `inline`; any other executor as it is."""
        if self.executor != "auto":
            return self
        processes = self.as_processes()
        faster = processes_are_faster(cells, costs, processes.local_workers())
        return processes if faster else replace(self, executor="inline")

    def prestart(self, networks: int, updates: float, device: str, threads: int | str) -> "Placement | None":
        """Return the processes that a grid will probably need, None for none, before its cells are known.

        Args:
            networks: how many it has at most.
            updates: of each network.
            device: where they train.
            threads: the key `threads`.
        """
        if self.executor == "process":
            workers = min(self.local_workers(), networks)
            return self if workers * BYTES_PER_PROCESS <= MEMORY_SHARE * free_bytes("cpu") else None
        processes = self.as_processes()
        workers = processes.local_workers()
        large = networks * updates >= MIN_PROCESS_UPDATES and networks >= 2 * workers
        return processes if large and can_use_processes({(device, threads)}, workers) else None


def processes_are_faster(cells: Sequence[Cell], costs: CostCache, workers: int) -> bool:
    """Return whether several processes are faster than threads of this one, which take turns in Python."""
    settings = {(cell.config.device, cell.config.threads) for cell in cells}
    if len(cells) < 2 * workers or not can_use_processes(settings, workers):
        return False
    per_device = -(-workers // max(torch.cuda.device_count(), 1))
    budget = MEMORY_SHARE * free_bytes(cells[0].config.device) / per_device
    if any(costs.of(alike[0]).bytes > budget for alike in cells_by_key(cells)):
        return False
    return estimate_seconds(cells, costs, workers) >= MIN_PROCESS_SECONDS


def can_use_processes(settings: set[tuple[str, int | str]], workers: int) -> bool:
    """Return whether several processes may compute, and there is room to start them.

    Where the user gave a number of threads, or made torch use one, this process keeps to it.

    Args:
        settings: pairs of the keys `device` and `threads`.
        workers: how many processes.
    """
    if workers < 2 or any(threads != "auto" for _, threads in settings):
        return False
    kinds = {pick_device(device).type for device, _ in settings}
    usual = "cuda" if torch.cuda.device_count() else "cpu"
    return kinds == {usual} and workers * BYTES_PER_PROCESS <= MEMORY_SHARE * free_bytes("cpu")
