"""What a sweep prints before it runs: its groups, the memory that they take and about how long."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from initlab.ensemble import stack
from initlab.experiment.build import build_activation, build_module, load_data, make_plan
from initlab.records import flatten
from initlab.sweep.cells import Cell, group_key
from initlab.sweep.grouping import CostCache
from initlab.sweep.placement import Placement, estimate_seconds
from initlab.sweep.plan_file import Group, PlanFile
from initlab.sweep.results import SweepResults
from initlab.sweep.run import plan_groups, refuse_too_large
from initlab.sweep.screen import config_keys, show_skipped
from initlab.sweep.summary import separating_keys
from initlab.system.device import pick_device
from initlab.system.escape import print, printable
from initlab.system.resources import GIB
from initlab.system.terminal import FILE_WIDTH, SafeConsole, format_duration
from initlab.training.evaluation import member_losses

TIMED_NETWORKS = 8  # networks of a group that are timed to estimate the rest
MIN_TIMED_STEPS, MAX_TIMED_STEPS, STEP_BUDGET = (
    3,
    20,
    0.3,
)  # steps that are timed at least and at most, and seconds for those between
TOTAL_BUDGET = 2.0  # seconds in which the steps of all architectures are timed
MAX_TIMED_BYTES = 2**28  # bytes up to which networks are built to be timed
MAX_TIMED_STEP_SECONDS = 0.2  # seconds that a step may take by arithmetic to be timed


def dry_run(grid: Sequence[Cell], directory: Path, how: Placement) -> pd.DataFrame:
    """Print what would be run, in which groups, with what memory and time; write nothing and return what is there."""
    results, sizes = SweepResults(directory), CostCache()
    refuse_too_large(grid, how, sizes)
    groups, how = plan_groups(PlanFile.read(directory / "plan.json"), results, grid, how, sizes)
    clock = TimeEstimator(sizes, len({group_key(group.cells[0].config) for group in groups}))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("group", "networks", "steps", "memory", "time", "what differs from the other groups"):
        table.add_column(
            column, justify="left" if column in ("group", "what differs from the other groups") else "right"
        )
    total = 0.0
    flats = {cell.number: flatten(cell.config.plain()) for group in groups for cell in group.cells}
    firsts = [flats[group.cells[0].number] for group in groups]
    differing = separating_keys(config_keys(grid), firsts)
    for group in groups:
        size = sizes.of(group.cells[0])
        seconds = clock.seconds(group)
        total += seconds
        flat = flats[group.cells[0].number]
        shared = [k for k in differing if all(flats[cell.number].get(k) == flat.get(k) for cell in group.cells)]
        table.add_row(
            group.id,
            str(len(group.cells)),
            f"{size.steps:,}",
            f"{len(group.cells) * size.bytes / GIB:.2f} GiB",
            f"≈ {format_duration(seconds)}",
            " ".join(printable(f"{k}={flat.get(k)}") for k in shared),
        )
    console = SafeConsole()
    (console if console.is_terminal else SafeConsole(width=FILE_WIDTH)).print(table)
    networks = sum(len(group.cells) for group in groups)
    done = sum(results.finished(cell) is not None for cell in grid)
    told = f"{networks} networks in {len(groups)} groups, about {format_duration(total)} one group after another"
    if how.sharers() > 1:
        told += f" ({how.sharers()} at a time by executor={how.executor})"
    print(f"{told}{f'; {done} are done already' if done else ''}.")
    show_skipped(grid, None)
    print(f"They would go to {printable(directory)}. Nothing was written.")
    return results.frame(list(grid))


@dataclass
class TimeEstimator:
    """Estimates how long groups train: one step of each small architecture is timed, the others are calculated.

    What is calculated is corrected by how the timed ones compare with their calculation on this machine. No network is
    initialized for it, and none is built that is large or takes long.

    Arguments: `architectures`, how many there are, which share the time for timing.
    """

    sizes: CostCache
    architectures: int
    found: dict[tuple[str, int], float | None] = field(default_factory=dict)
    spent: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def seconds(self, group: Group) -> float:
        """Estimate how long a group trains, evaluations and records aside."""
        few = group.cells[:TIMED_NETWORKS]
        calculated = estimate_seconds(group.cells, self.sizes, torch.get_num_threads())
        key = (group_key(few[0].config), len(few))
        if key not in self.found:
            self.found[key] = self.timed(few)
            if self.found[key] is not None:
                self.ratios.append(self.whole(group, key) / calculated)
        if self.found[key] is not None:
            return self.whole(group, key)
        usual = sorted(self.ratios)[len(self.ratios) // 2] if self.ratios else 1.0
        return calculated * usual

    def whole(self, group: Group, key: tuple[str, int]) -> float:
        """Return the seconds of all steps of all networks of a group, from the seconds of one step of a few."""
        return (self.found[key] or 0.0) * self.sizes.of(group.cells[0]).steps * len(group.cells) / key[1]

    def timed(self, few: Sequence[Cell]) -> float | None:
        """Return the seconds of one step, or None where timing it would take too much memory or time."""
        size = self.sizes.of(few[0])
        one = estimate_seconds(few, self.sizes, torch.get_num_threads()) / max(size.steps, 1)
        if len(few) * size.bytes > MAX_TIMED_BYTES or one > MAX_TIMED_STEP_SECONDS or self.spent > TOTAL_BUDGET:
            return None
        started = time.perf_counter()
        try:
            return time_step(few, min(STEP_BUDGET, TOTAL_BUDGET / self.architectures))
        except (Exception, SystemExit):
            # A user's own model may fail, which its run records; the plan is shown all the same.
            return None
        finally:
            self.spent += time.perf_counter() - started


def time_step(few: Sequence[Cell], patience: float, times: int = MAX_TIMED_STEPS) -> float:
    """Time one step of a few networks that train together, for about the given seconds; they are not initialized."""
    config = few[0].config
    device = pick_device(config.device)
    data = load_data(config, device)
    act = build_activation(config)
    plan = make_plan([cell.config for cell in few], data, act)
    networks = [build_module(cell.config, data, act).to(device, plan.dtype) for cell in few]
    ensemble = stack(networks)
    index = torch.arange(min(plan.batch_size, len(data.train_x)), device=device)
    x, y = data.prepare(data.train_x[index], plan.dtype), data.targets(data.train_y[index], plan.dtype)
    found: list[float] = []
    # The fastest of several: on cores that others use, threads wait for each other longer than they compute.
    while len(found) < times and (len(found) < MIN_TIMED_STEPS or sum(found) < patience):
        started = time.perf_counter()
        for part in ensemble.parts:
            losses = member_losses(part.forward(x), y)
            torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True)[0].sum().item()
        found.append(time.perf_counter() - started)
    return min(found)
