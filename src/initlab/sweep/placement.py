"""Where groups are computed, and how many at a time: as the user says, or by what there is to do."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from initlab.sweep.cells import Cell
from initlab.sweep.cost import FLOPS_PER_MULTIPLICATION
from initlab.sweep.executors import EXECUTORS, check_executor
from initlab.sweep.grouping import CostCache
from initlab.sweep.plan_file import cells_by_key
from initlab.system.device import pick_device
from initlab.system.resources import FLOPS_PER_CORE, GIB, MEMORY_SHARE, free_bytes, usable_cores

MIN_PROCESS_SECONDS = 20.0  # seconds of work from which on processes are worth their start
MIN_PROCESS_UPDATES = 20_000  # updates of all networks that probably take as long
SECONDS_PER_NETWORK = 0.05  # seconds that a network takes to start, to be recorded and to end
SECONDS_PER_STEP = 2e-5  # seconds that a step of it takes beside its products
BYTES_PER_PROCESS = 1.0 * GIB  # bytes that a process has before it trains anything


@dataclass(frozen=True)
class Placement:
    """Where and how many groups are computed at a time: an executor by name, its workers, its own options."""

    executor: str = "auto"
    workers: int | str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_executor(self.executor, self.workers, self.options)

    def sharers(self) -> int:
        """Return how many groups are computed at a time by one machine, and share its memory."""
        kind = EXECUTORS[self.executor]
        if not (kind.several and kind.shares_machine(self.options)):
            return 1
        return (torch.cuda.device_count() or usable_cores()) if self.workers == "auto" else int(self.workers)

    def elsewhere(self) -> bool:
        """Return whether groups are computed by other machines, whose memory is not known here."""
        return not EXECUTORS[self.executor].is_local(self.options)

    def several(self) -> bool:
        """Return whether more than one group may be computed at a time, by this machine or others."""
        kind = EXECUTORS[self.executor]
        return self.sharers() > 1 or (kind.several and self.workers != 1 and not kind.shares_machine(self.options))

    def processes(self) -> "Placement":
        """Return `auto` as processes: one for each card, or for each core that torch would use."""
        few = min(usable_cores(), torch.get_num_threads())
        workers = few if self.workers == "auto" and not torch.cuda.device_count() else self.workers
        return replace(self, executor="process", workers=workers)

    def settled(self, cells: Sequence[Cell], sizes: CostCache) -> "Placement":
        """Return `auto` as `process` where these cells are worth it, else as `inline`; any other executor as it is."""
        if self.executor != "auto":
            return self
        spread = self.processes()
        return spread if processes_are_faster(cells, sizes, spread.sharers()) else replace(self, executor="inline")

    def early(self, networks: int, updates: float, device: str, threads: int | str) -> "Placement | None":
        """Return the processes that networks of so many updates each will probably need, None for none."""
        if self.executor == "process":
            return (
                self if min(self.sharers(), networks) * BYTES_PER_PROCESS <= MEMORY_SHARE * free_bytes("cpu") else None
            )
        spread = self.processes()
        workers = spread.sharers()
        large = networks * updates >= MIN_PROCESS_UPDATES and networks >= 2 * workers
        return spread if large and can_use_processes({(device, threads)}, workers) else None


def processes_are_faster(cells: Sequence[Cell], sizes: CostCache, workers: int) -> bool:
    """Are several processes faster than threads of this one, which take turns in Python?"""
    if len(cells) < 2 * workers or not can_use_processes(
        {(cell.config.device, cell.config.threads) for cell in cells}, workers
    ):
        return False
    sharing = -(-workers // max(torch.cuda.device_count(), 1))
    room = MEMORY_SHARE * free_bytes(cells[0].config.device) / sharing
    if any(sizes.of(alike[0]).bytes > room for alike in cells_by_key(cells)):
        return False
    return estimate_seconds(cells, sizes, workers) >= MIN_PROCESS_SECONDS


def can_use_processes(wanted: Collection[tuple[str, int | str]], workers: int) -> bool:
    """May so many processes compute on these devices by these numbers of threads, and is there room to start them?

    Where the user gave a number of threads, or made torch use one, this process keeps to it.
    """
    if workers < 2 or any(threads != "auto" for _, threads in wanted):
        return False
    kinds = {pick_device(device).type for device, _ in wanted}
    there = "cuda" if torch.cuda.device_count() else "cpu"
    return kinds == {there} and workers * BYTES_PER_PROCESS <= MEMORY_SHARE * free_bytes("cpu")


def estimate_seconds(cells: Sequence[Cell], sizes: CostCache, cores: int) -> float:
    """Return about how long cells take together on so many cores: their starts and records, steps and products."""
    seconds = 0.0
    for alike in cells_by_key(cells):
        size = sizes.of(alike[0])
        seconds += len(alike) * (
            SECONDS_PER_NETWORK
            + SECONDS_PER_STEP * size.steps
            + FLOPS_PER_MULTIPLICATION * size.work / (FLOPS_PER_CORE * cores)
        )
    return seconds
