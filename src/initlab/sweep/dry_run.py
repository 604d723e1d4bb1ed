"""What a sweep prints before it runs: its groups, the memory that they take and about how long."""

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from initlab.config import Config
from initlab.ensemble import stack
from initlab.experiment.build import build_activation, build_module, load_data, make_plan
from initlab.records import flatten
from initlab.sweep.cells import Cell
from initlab.sweep.cost import CostCache, estimate_seconds
from initlab.sweep.placement import Placement
from initlab.sweep.plan_file import Group, PlanFile
from initlab.sweep.race import initial_rates, race_configs, race_key, tuning_cells
from initlab.sweep.results import SweepResults
from initlab.sweep.run import plan_groups, refuse_too_large
from initlab.sweep.screen import show_skipped
from initlab.sweep.summary import all_keys, separating_keys
from initlab.system.device import pick_device
from initlab.system.escape import print, printable
from initlab.system.resources import GIB
from initlab.system.terminal import FILE_WIDTH, SafeConsole, format_duration
from initlab.training.evaluation import member_losses

TIMED_NETWORKS = 8  # of a group that are timed to estimate the rest
MIN_TIMED_STEPS, MAX_TIMED_STEPS = 3, 20
STEP_BUDGET = 0.3  # seconds in which the steps of one architecture are timed
TOTAL_BUDGET = 2.0  # seconds in which the steps of all architectures are timed
MAX_TIMED_BYTES = 2**28  # up to which networks are built to be timed
MAX_TIMED_STEP_SECONDS = 0.2  # that a step may take by arithmetic to be timed
COLUMNS = ("group", "networks", "steps", "memory", "time", "what differs from the other groups")


def dry_run(cells: Sequence[Cell], directory: Path, placement: Placement) -> pd.DataFrame:
    """Print what would be run, in which groups, with what memory and time; write nothing.

    Returns:
        One row per cell that was run before, with the columns of `initlab.load`.
    """
    results, costs = SweepResults(directory), CostCache()
    refuse_too_large(cells, placement, costs)
    groups, placement = plan_groups(PlanFile.read(directory / "plan.json"), results, cells, placement, costs)
    estimator = TimeEstimator(costs, len({group.cells[0].group_key for group in groups}))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in (COLUMNS[0], COLUMNS[-1]) else "right")
    total = 0.0
    by_group = [[flatten(cell.config.plain()) for cell in group.cells] for group in groups]
    keys = separating_keys(all_keys(flat for flats in by_group for flat in flats), [flats[0] for flats in by_group])
    for group, flats in zip(groups, by_group, strict=True):
        cost, first = costs.of(group.cells[0]), flats[0]
        seconds = estimator.seconds(group)
        total += seconds
        shared = [key for key in keys if all(flat.get(key) == first.get(key) for flat in flats)]
        table.add_row(
            group.id,
            str(len(group.cells)),
            f"{cost.steps:,}",
            f"{len(group.cells) * cost.bytes / GIB:.2f} GiB",
            f"≈ {format_duration(seconds)}",
            " ".join(printable(f"{key}={first.get(key)}") for key in shared),
        )
    console = SafeConsole()
    (console if console.is_terminal else SafeConsole(width=FILE_WIDTH)).print(table)
    networks, workers = sum(map(len, by_group)), placement.local_workers()
    done = sum(results.finished(cell) is not None for cell in cells)
    at_a_time = f" ({workers} at a time by executor={placement.executor})" if workers > 1 else ""
    already = f"; {done} are done already" if done else ""
    duration = f"about {format_duration(total)} one group after another"
    counts = f"{networks} network{'s' * (networks != 1)} in {len(groups)} group{'s' * (len(groups) != 1)}"
    print(f"{counts}, {duration}{at_a_time}{already}.")
    show_skipped(cells)
    print(f"They would go to {printable(directory)}. Nothing was written.")
    return results.frame(cells)


def dry_run_race(configs: Sequence[Config], directory: Path, placement: Placement) -> pd.DataFrame:
    """Print the plan of the tuning, and how many networks compare afterwards; write nothing.

    Returns:
        One row per network that tuned before, with the columns of `initlab.load`.
    """
    entrants = race_configs(configs, directory)
    cells = tuning_cells(entrants, {key: initial_rates(config) for key, config in entrants.items()}, directory)
    frame = dry_run(cells, directory, placement)
    fresh = sum(race_key(config) in entrants for config in configs)
    print(
        f"That tunes {len(entrants)} rates, with more where the best one is at the end of those tried; then {fresh} "
        "networks compare on fresh seeds."
    )
    return frame


@dataclass
class TimeEstimator:
    """Estimates how long groups train: one step of each small architecture is timed, the others are calculated.

    What is calculated is corrected by how the timed ones compare with their calculation on this machine. No network is
    initialized for it, and none is built that is large or takes long.

    Attributes:
        costs: of the architectures.
        architectures: how many there are; they share the time for timing.
        timed: seconds of one step of one network, by architecture and number of networks; None where it is not timed.
        spent: seconds of timing.
        ratios: of timed to calculated seconds.
    """

    costs: CostCache
    architectures: int
    timed: dict[tuple[str, int], float | None] = field(default_factory=dict)
    spent: float = 0.0
    ratios: list[float] = field(default_factory=list)

    def seconds(self, group: Group) -> float:
        """Return about how long a group trains, without evaluations and records."""
        few = group.cells[:TIMED_NETWORKS]
        calculated = estimate_seconds(group.cells, self.costs, torch.get_num_threads())
        network_steps = len(group.cells) * self.costs.of(few[0]).steps
        key = (few[0].group_key, len(few))
        if key not in self.timed:
            self.timed[key] = each = self.time_network_step(few)
            self.ratios += [] if each is None else [each * network_steps / calculated]
        each = self.timed[key]
        if each is not None:
            return each * network_steps
        return calculated * (statistics.median_high(self.ratios) if self.ratios else 1.0)

    def time_network_step(self, few: Sequence[Cell]) -> float | None:
        """Return the seconds of one step of one network, None where timing would take too much memory or time."""
        cost = self.costs.of(few[0])
        calculated = estimate_seconds(few, self.costs, torch.get_num_threads()) / max(cost.steps, 1)
        too_large = len(few) * cost.bytes > MAX_TIMED_BYTES or calculated > MAX_TIMED_STEP_SECONDS
        if too_large or self.spent > TOTAL_BUDGET:
            return None
        started, seconds = time.perf_counter(), None
        # A user's own model may fail, which its run records; the plan is shown all the same.
        with suppress(Exception, SystemExit):
            seconds = time_step(few, min(STEP_BUDGET, TOTAL_BUDGET / self.architectures)) / len(few)
        self.spent += time.perf_counter() - started
        return seconds


def time_step(few: Sequence[Cell], seconds: float, times: int = MAX_TIMED_STEPS) -> float:
    """Return the seconds of one step of a few networks that train together; they are not initialized.

    Args:
        few: the networks.
        seconds: to time steps for.
        times: how many steps to time at most.
    """
    config = few[0].config
    device = pick_device(config.device)
    data = load_data(config, device)
    act = build_activation(config)
    plan = make_plan([cell.config for cell in few], data, act)
    ensemble = stack([build_module(cell.config, data, act).to(device, plan.dtype) for cell in few])
    index = torch.arange(min(plan.batch_size, len(data.train_x)), device=device)
    x, y = data.prepare(data.train_x[index], plan.dtype), data.targets(data.train_y[index], plan.dtype)
    durations: list[float] = []
    # The fastest of several: on cores that others use, threads wait for each other longer than they compute.
    while len(durations) < times and (len(durations) < MIN_TIMED_STEPS or sum(durations) < seconds):
        started = time.perf_counter()
        for part in ensemble.parts:
            losses = member_losses(part.forward(x), y)
            torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True)[0].sum().item()
        durations.append(time.perf_counter() - started)
    return min(durations)
