"""What a sweep prints: its plan before, its table after."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from initlab.display import WIDE, Screen, duration, show_cells, show_where
from initlab.ensemble import stack
from initlab.experiment.build import load_data, make_network, make_plan, pick_activation, pick_device, planned_steps
from initlab.records import flatten
from initlab.sweep.cells import Cell
from initlab.sweep.how import How
from initlab.sweep.machine import GIB
from initlab.sweep.memory import network_bytes
from initlab.sweep.plan import Group, PlanFile
from initlab.sweep.results import Results
from initlab.sweep.run import Outcome, plan_groups
from initlab.sweep.table import axes, by_cell, telling
from initlab.training.evaluation import member_losses
from initlab.visible import print, visible

LONGEST = 40  # lines of a table on the screen; sweep.csv has them all
FEW = 5  # failures and reasons that are listed
TIMED = 8  # networks of a group that are timed to estimate the rest
LEAST, TIMES, PATIENCE = 3, 20, 0.3  # steps that are timed at least and at most, and seconds for those between


def show_outcome(outcome: Outcome, directory: Path) -> None:
    """Print the table of a sweep, what failed and what was skipped, and where everything is."""
    frame = outcome.frame()
    by = axes(frame, keys(outcome.cells))
    rows = by_cell(frame, by)
    show_cells(rows[:LONGEST], by)
    if len(rows) > LONGEST:
        print(f"… {len(rows) - LONGEST} more in sweep.csv")
    counts = outcome.counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{sum(counts.values())} networks: {told} · {duration(outcome.seconds)}")
    failed = frame[frame["status"] == "failed"]
    for path, error in list(zip(failed["path"], failed.get("error", failed["path"]), strict=True))[:FEW]:
        print(f"failed: {visible(Path(path).name)}: {visible(error)} (the traceback is in its run.log)")
    if len(failed) > FEW:
        print(f"… {len(failed) - FEW} more failed")
    show_skipped(outcome.cells)
    viewed = any(cell.config.log.tensorboard for cell in outcome.cells)
    show_where(directory, Screen(), " (sweep.csv: one row per run)", tensorboard=viewed)


def show_skipped(grid: Sequence[Cell], few: int | None = FEW) -> None:
    """Say why cells cannot exist, the most frequent reasons first; None for all of them."""
    reasons = Counter(cell.reason for cell in grid if cell.reason)
    for reason, count in reasons.most_common(few):
        print(f"skipped: {count} × {visible(reason)}")
    if few is not None and len(reasons) > few:
        print(f"… {len(reasons) - FEW} more reasons in sweep.csv")


def keys(grid: Sequence[Cell]) -> list[str]:
    """Return every configuration key that some cell has."""
    return list(dict.fromkeys(key for cell in grid for key in flatten(cell.config.plain())))


def dry_run(grid: Sequence[Cell], directory: Path, how: How) -> pd.DataFrame:
    """Print what would be run, in which groups, with what memory and time; write nothing and return what is there."""
    results = Results(directory)
    groups, how = plan_groups(PlanFile.read(directory / "plan.json"), results, grid, how)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("group", "networks", "steps", "memory", "time", "what differs from the other groups"):
        table.add_column(
            column, justify="left" if column in ("group", "what differs from the other groups") else "right"
        )
    total = 0.0
    flats = {cell.number: flatten(cell.config.plain()) for group in groups for cell in group.cells}
    firsts = [flats[group.cells[0].number] for group in groups]
    differing = telling(keys(grid), firsts)
    for group in groups:
        config = group.cells[0].config
        seconds = estimated_seconds(group)
        total += seconds
        flat = flats[group.cells[0].number]
        shared = [k for k in differing if all(flats[cell.number].get(k) == flat.get(k) for cell in group.cells)]
        table.add_row(
            group.id,
            str(len(group.cells)),
            f"{planned_steps(config):,}",
            f"{len(group.cells) * network_bytes(config) / GIB:.2f} GiB",
            f"≈ {duration(seconds)}",
            " ".join(visible(f"{k}={flat.get(k)}") for k in shared),
        )
    console = Screen()
    (console if console.is_terminal else Screen(width=WIDE)).print(table)
    networks = sum(len(group.cells) for group in groups)
    done = sum(results.finished(cell) is not None for cell in grid)
    told = f"{networks} networks in {len(groups)} groups, about {duration(total)} one group after another"
    if how.sharers() > 1:
        told += f" ({how.sharers()} at a time by executor={how.executor})"
    print(f"{told}{f'; {done} are done already' if done else ''}.")
    show_skipped(grid, None)
    print(f"They would go to {visible(directory)}. Nothing was written.")
    return results.frame(list(grid))


def estimated_seconds(group: Group) -> float:
    """Estimate how long a group trains, from one step of a few of its networks, evaluations and records aside."""
    few = group.cells[:TIMED]
    config = few[0].config
    device = pick_device(config.device)
    data = load_data(config, device)
    act = pick_activation(config)
    plan = make_plan([cell.config for cell in few], data, act)
    ensemble = stack([make_network(cell.config, data, act, device)[0] for cell in few])
    index = torch.arange(min(plan.batch_size, len(data.train_x)), device=device)
    x, y = data.prepare(data.train_x[index], plan.dtype), data.targets(data.train_y[index], plan.dtype)
    times: list[float] = []
    # The fastest of several: on cores that others use, threads wait for each other longer than they compute.
    while len(times) < TIMES and (len(times) < LEAST or sum(times) < PATIENCE):
        started = time.perf_counter()
        for part in ensemble.parts:
            losses = member_losses(part.forward(x), y)
            torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True)[0].sum().item()
        times.append(time.perf_counter() - started)
    return min(times) * plan.steps * len(group.cells) / len(few)
