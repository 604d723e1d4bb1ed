"""A sweep from its checked cells to its table: planned, resumed, run by an executor, tabulated."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from initlab.config.naming import is_incidental
from initlab.errors import Interrupted
from initlab.experiment.checkpoint import existing_checkpoints, previous_checkpoint
from initlab.records import RunWriter, flatten
from initlab.sweep.cells import Cell, cells_by_key
from initlab.sweep.cost import CostCache, require_memory
from initlab.sweep.grouping import every_worker_gets_pair, group_sizes, sort_longest_first
from initlab.sweep.locks import group_lock, sweep_lock
from initlab.sweep.placement import Placement
from initlab.sweep.plan_file import Group, PlanFile, assign_groups, planned_id
from initlab.sweep.progress import SweepProgress, SweepProgressLine
from initlab.sweep.results import OnCellEnd, Outcome, SweepResults
from initlab.sweep.scheduler import Scheduler
from initlab.sweep.summary import all_keys, separating_keys


def cells_in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that can exist in the order to run them: the grid's, or shuffled, always in the same way."""
    possible = [cell for cell in cells if cell.reason is None]
    shuffle = cells[0].config.sweep.order == "shuffle"
    return sorted(possible, key=lambda cell: cell.hash) if shuffle else possible


def refuse_too_large(cells: Sequence[Cell], placement: Placement, costs: CostCache) -> None:
    """Raise UserError if a network that is still to be run cannot fit the memory; nothing is built to find out.

    The memory of other machines is not known here, so that their networks are not judged.
    """
    if placement.is_remote():
        return
    left = [cell for cell in cells if cell.reason is None and not (cell.directory / "summary.json").exists()]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    at_a_time = min(-(-placement.local_workers() // max(gpus, 1)), len(left))
    require_memory(((alike[0].config, costs.of(alike[0])) for alike in cells_by_key(left)), max(at_a_time, 1))


def plan_groups(
    plan: PlanFile, results: SweepResults, cells: Sequence[Cell], placement: Placement, costs: CostCache
) -> tuple[list[Group], Placement]:
    """Return the groups that are still to be run, and where: `auto` is decided by what there is to do.

    Where several are computed at a time, they are cut to share, the longest one first. Only workers that share a
    machine get finer cuts: a job of a cluster waits in its queue and holds what it asked for.
    """
    ordered = cells_in_order(cells)
    undone = {cell.hash for cell in ordered if results.finished(cell) is None}
    # Where the plan was lost, all cells count, as when the groups were planned that are now restored.
    counted = [cell for cell in ordered if plan.lost or cell.hash in undone]
    placement = placement.resolve(counted, costs)
    workers = placement.local_workers()
    # Groups of an earlier plan keep workers busy, too.
    least = 2 if every_worker_gets_pair([len(alike) for alike in cells_by_key(counted)], workers) else 1
    groups = assign_groups(plan, ordered, undone, lambda kinds: group_sizes(kinds, workers, least, costs))
    if placement.is_parallel() and cells[0].config.sweep.order != "shuffle":
        groups = sort_longest_first(groups, costs)
    return groups, placement


def run_sweep(
    cells: Sequence[Cell],
    directory: Path,
    placement: Placement,
    on_end: OnCellEnd = lambda *_: None,
    on_open: Callable[[], None] = lambda: None,
    quiet: bool = False,
    label: str = "sweep",
) -> Outcome:
    """Run what is not done yet of a checked grid and return the outcome.

    Args:
        cells: the grid.
        directory: of the sweep.
        placement: where groups are computed.
        on_end: called for every cell with its summary, and whether it has run just now, in this thread.
        on_open: called once the directory is locked.
        quiet: show no progress.
        label: what the progress is called.

    Raises:
        UserError: another launch runs this sweep, or the disk is full.
        Interrupted: a signal was received, and everything is kept.
    """
    started, costs = time.monotonic(), CostCache()
    refuse_too_large(cells, placement, costs)
    with sweep_lock(directory, [cell.directory for cell in cells]):
        on_open()
        results = SweepResults(directory)
        plan = PlanFile.read(directory / "plan.json")
        line = SweepProgressLine(label, quiet=quiet)
        for damage in filter(None, [plan.damage, *map(results.damage, cells)]):
            line.remark(f"{damage}.")
        record_skipped(cells, results, on_end)
        groups, placement = plan_groups(plan, results, cells, placement, costs)
        plan.write()
        undone = {cell.hash for group in groups for cell in group.cells}
        finished = [cell for cell in cells_in_order(cells) if cell.hash not in undone]
        for cell in finished:
            on_end(cell, results.rows[cell.directory][1], False)
        if finished:
            line.remark(f"{len(finished)} of {len(finished) + len(undone)} networks are done already.")
        state_dir = directory / ".groups"
        clean_group_directory(state_dir, groups)
        if resumable := sum(bool(existing_checkpoints(state_dir / f"{group.id}.pt")) for group in groups):
            line.remark(f"{resumable} of {len(groups)} groups go on from their checkpoints.")
        progress = start_progress(groups, len(finished), line, costs)
        swept = swept_keys(cells) if groups else ()
        try:
            with line:
                Scheduler(groups, plan, results, state_dir, placement, costs, progress, on_end, swept).run()
        except Interrupted as stop:
            for cell in cells:
                if cell.directory not in results.rows and cell.directory.is_dir():
                    results.read(cell)
            results.write()
            done = sum(results.finished(cell) is not None for cell in cells)
            text = f"{done} of {len(cells)} networks are done. {resume_hint(cells[0], directory)}"
            raise Interrupted(stop.signal, text) from stop
        results.write()
        shutil.rmtree(state_dir, ignore_errors=True)
    return Outcome(cells, results, time.monotonic() - started)


def start_progress(groups: Sequence[Group], before: int, line: SweepProgressLine, costs: CostCache) -> SweepProgress:
    """Return the progress of a launch that begins; `before` networks were done already."""
    networks = {group.id: len(group.cells) for group in groups}
    by_id = {group.id: costs.of(group.cells[0]) for group in groups}
    steps = {name: networks[name] * cost.steps for name, cost in by_id.items()}
    step_seconds = {planned_id(name): cost.step_seconds for name, cost in by_id.items()}
    seconds = sum(steps[name] * cost.step_seconds for name, cost in by_id.items())
    return SweepProgress(sum(networks.values()), sum(steps.values()), before, line, step_seconds, seconds)


def swept_keys(cells: Sequence[Cell]) -> list[str]:
    """Return the keys that decide results and whose values differ between the cells of a grid."""
    flats = [flatten(cell.config.plain()) for cell in cells]
    return separating_keys([key for key in all_keys(flats) if not is_incidental(key)], flats)


def record_skipped(cells: Sequence[Cell], results: SweepResults, on_end: OnCellEnd) -> None:
    """Record the cells that cannot exist, each with its reason."""
    for cell in cells:
        if cell.reason is None:
            continue
        row = results.rows.get(cell.directory)
        recorded = row and [row[1].get(key) for key in ("status", "reason", "problem")]
        fresh = recorded != ["skipped", cell.reason, ""]
        if fresh:
            writer = RunWriter(cell.directory, cell.config.plain(), tensorboard=False)
            writer.finish("skipped", reason=cell.reason, hash=cell.hash)
            results.read(cell)
        on_end(cell, results.rows[cell.directory][1], fresh)


def clean_group_directory(state_dir: Path, groups: Sequence[Group]) -> None:
    """Remove what earlier launches left and no group goes on from.

    A worker of an earlier launch may still compute a group that is none any more, now that the grid is another one; its
    cells are in other groups, and two must not write them: it is waited for.
    """
    checkpoints = {Path(f"{group.id}.pt") for group in groups}
    kept = {p.name for path in checkpoints for p in (path, previous_checkpoint(path), path.with_suffix(".lock"))}
    for path in sorted(state_dir.glob("*.lock")):
        if path.name not in kept:
            with group_lock(path, lambda: 0):
                pass
    for path in state_dir.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept or path.is_symlink() or not path.is_file():
            path.unlink(missing_ok=True)


def resume_hint(cell: Cell, directory: Path) -> str:
    """Return how to go on with a sweep that was stopped."""
    sweep = cell.config.sweep
    unnamed = sweep.name is None and directory.parent.resolve() == Path(sweep.root).resolve()
    return f"The same command{f' with sweep.name={directory.name}' if unnamed else ''} goes on from here."


@contextmanager
def lock_and_tabulate(cells: Sequence[Cell], directory: Path) -> Iterator[None]:
    """Hold a sweep's directory while another launcher runs its cells; write and show the table afterwards."""
    from initlab.sweep.screen import show_outcome

    started = time.monotonic()
    with sweep_lock(directory, [cell.directory for cell in cells]):
        record_skipped(cells, SweepResults(directory), lambda *_: None)
        try:
            yield
        finally:
            outcome = Outcome(cells, SweepResults(directory), time.monotonic() - started)
            outcome.results.write()
            show_outcome(outcome, directory)
