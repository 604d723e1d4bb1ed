"""A sweep from its checked cells to its table: planned, resumed, run by an executor, tabulated."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from initlab.config.naming import is_incidental
from initlab.errors import Interrupted
from initlab.experiment.build import planned_steps
from initlab.experiment.checkpoint import existing_checkpoints as kept_checkpoints
from initlab.experiment.checkpoint import previous_checkpoint as before_checkpoint
from initlab.records import RunWriter, flatten
from initlab.sweep.cells import Cell
from initlab.sweep.cost import FLOPS_PER_MULTIPLICATION, max_group_size, require_memory
from initlab.sweep.executors import Executor, make_executor
from initlab.sweep.grouping import (
    Architecture,
    CostCache,
    every_worker_gets_pair,
    factoring_group_sizes,
    gpu_group_sizes,
    sort_longest_first,
    split_evenly,
)
from initlab.sweep.links import refuse_links
from initlab.sweep.locks import group_lock, sweep_lock
from initlab.sweep.placement import SECONDS_PER_STEP, Placement
from initlab.sweep.plan_file import Group, PlanFile, assign_groups, cells_by_key
from initlab.sweep.progress import SweepProgress, SweepProgressLine
from initlab.sweep.results import Outcome, SweepResults
from initlab.sweep.scheduler import Scheduler, StopSignals
from initlab.sweep.summary import separating_keys
from initlab.system.resources import FLOPS_PER_CORE

OnCellEnd = Callable[[Cell, dict[str, Any], bool], None]


def cells_in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that can exist in the order to run them: the grid's, or shuffled, always in the same way."""
    possible = [cell for cell in cells if cell.reason is None]
    shuffle = cells[0].config.sweep.order == "shuffle"
    return sorted(possible, key=lambda cell: cell.hash) if shuffle else possible


def refuse_too_large(cells: Sequence[Cell], how: Placement, sizes: CostCache) -> None:
    """Raise UserError if a network that is still to be run cannot fit the memory; nothing is built to find out.

    What other machines have is not known here, so their networks are not judged.
    """
    if how.elsewhere():
        return
    left = [cell for cell in cells if cell.reason is None and not (cell.directory / "summary.json").exists()]
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    at_a_time = min(-(-how.sharers() // max(cards, 1)), len(left)) if how.executor in ("process", "submitit") else 1
    require_memory((alike[0].config for alike in cells_by_key(left)), sizes.of_config, max(at_a_time, 1))


def plan_groups(
    plan: PlanFile, results: SweepResults, cells: Sequence[Cell], how: Placement, sizes: CostCache | None = None
) -> tuple[list[Group], Placement]:
    """Return the groups that are still to be run, and how: `auto` is decided by what there is to do.

    Where several are at a time, they are cut to share, the longest one first. Only workers that share a machine get
    finer cuts: a job of a cluster waits in its queue and holds what it asked for.
    """
    ordered, sizes = cells_in_order(cells), sizes or CostCache()

    def done(cell: Cell) -> bool:
        return results.finished(cell) is not None

    # Where the plan was lost, all cells count, as when the groups were planned that are now looked for.
    counted = [cell for cell in ordered if plan.lost or not done(cell)]
    how = how.settled(counted, sizes)
    sharers = how.sharers()
    # Groups of an earlier plan keep workers busy, too.
    least = 2 if every_worker_gets_pair([len(alike) for alike in cells_by_key(counted)], sharers) else 1
    groups = assign_groups(plan, ordered, done, lambda kinds: group_sizes(kinds, sharers, least, sizes))
    early_look = cells[0].config.sweep.order == "shuffle"
    return sort_longest_first(groups, sizes) if how.several() and not early_look else groups, how


def group_sizes(kinds: Sequence[Sequence[Cell]], sharers: int, least: int, sizes: CostCache) -> list[list[int]]:
    """Return how many cells of each kind train together: as fit the memory, and as give all sharers something to do."""
    found, on_a_card = [], False
    for alike in kinds:
        config, size = alike[0].config, sizes.of(alike[0])
        cards = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
        fits = max_group_size(config, -(-sharers // max(cards, 1)), size.bytes)
        found.append(Architecture(len(alike), size.work, size.work / max(size.steps, 1), fits))
        on_a_card = on_a_card or cards > 0
    if sharers == 1:
        return [split_evenly(kind.count, kind.fits) for kind in found]
    return (gpu_group_sizes if on_a_card else factoring_group_sizes)(found, sharers, least)


def no_op() -> None:
    """Do nothing."""


def run_sweep(
    cells: Sequence[Cell],
    directory: Path,
    how: Placement,
    ended: OnCellEnd,
    opened: Callable[[], None] = no_op,
    quiet: bool = False,
    label: str = "sweep",
) -> Outcome:
    """Run what is not done yet of a checked grid and return the outcome.

    Arguments: `ended(cell, summary, fresh)` hears of every cell, in this thread: fresh ones have run just now;
    `opened()` is called once the directory is ours; `quiet` shows no progress; `label` names it.

    Raises UserError when another launch runs this sweep, or the disk is full; Interrupted when everything is kept after
    a signal.
    """
    started, sizes = time.monotonic(), CostCache()
    refuse_too_large(cells, how, sizes)
    with sweep_lock(directory):
        refuse_links(cells, directory)
        opened()
        results = SweepResults(directory)
        plan = PlanFile.read(directory / "plan.json")
        line = SweepProgressLine.quiet() if quiet else SweepProgressLine(label)
        for damage in filter(None, [plan.damage, *map(results.damage, cells)]):
            line.say(f"{damage}.")
        record_skipped(cells, results, ended)
        groups, how = plan_groups(plan, results, cells, how, sizes)
        plan.write()
        open_cells = {cell.hash for group in groups for cell in group.cells}
        finished = [cell for cell in cells_in_order(cells) if cell.hash not in open_cells]
        for cell in finished:
            ended(cell, results.rows[cell.directory][1], False)
        if finished:
            line.say(f"{len(finished)} of {len(finished) + len(open_cells)} networks are done already.")
        room = directory / ".groups"
        clean_group_directory(room, groups)
        if kept := sum(bool(kept_checkpoints(room / f"{group.id}.pt")) for group in groups):
            line.say(f"{kept} of {len(groups)} groups go on from their checkpoints.")
        try:
            with line:
                swept = swept_keys(cells) if groups else ()
                run_groups(groups, plan, room, how, line, results, ended, len(finished), sizes, swept)
        except Interrupted as stop:
            for cell in cells:
                if cell.directory not in results.rows and cell.directory.is_dir():
                    results.read(cell)
            results.write()
            done = sum(results.finished(cell) is not None for cell in cells)
            told = f"{done} of {len(cells)} networks are done. {resume_hint(cells[0], directory)}"
            raise Interrupted(stop.signal, told) from stop
        results.write()
        shutil.rmtree(room, ignore_errors=True)
    return Outcome(list(cells), results, time.monotonic() - started)


def run_groups(
    groups: list[Group],
    plan: PlanFile,
    room: Path,
    how: Placement,
    line: SweepProgressLine,
    results: SweepResults,
    ended: OnCellEnd,
    before: int,
    sizes: CostCache,
    swept: Sequence[str] = (),
) -> None:
    """Run the groups, rewriting the table as their cells end."""
    lengths: dict[str, int] = {}

    def steps(cell: Cell) -> int:
        key = str((cell.config.train, cell.config.data))
        if key not in lengths:
            lengths[key] = planned_steps(cell.config)
        return lengths[key]

    def told(cell: Cell, summary: dict[str, Any]) -> None:
        results.read(cell)
        results.write_if_due()
        ended(cell, summary, True)

    def made(name: str, workers: int | str, options: Mapping[str, Any]) -> Executor:
        return make_executor(
            name, workers, options, lambda task: lambda now: progress.note(task.id, now), lambda: signals()
        )

    cells = [cell for group in groups for cell in group.cells]
    costs = {group.id: seconds_per_step(group, sizes) for group in groups}
    progress = SweepProgress(
        len(cells),
        sum(map(steps, cells)),
        before,
        line,
        # The halves of a group that failed have its id and a letter.
        lambda name: costs.get(name, costs.get(name.rstrip("ab"), 1.0)),
        sum(steps(group.cells[0]) * len(group.cells) * costs[group.id] for group in groups),
    )
    with StopSignals().listening() as signals:
        Scheduler(
            groups=groups,
            plan=plan,
            room=room,
            every=cells[0].config.sweep.checkpoint_every if cells else 0.0,
            name=uuid.uuid4().hex[:8],
            executor=lambda it: made(how.executor, how.workers, how.options),
            inline=lambda it: made("inline", "auto", {}),
            progress=progress,
            signals=signals,
            ended=told,
            steps=steps,
            say=line.say,
            swept=swept,
            spare=preload_report if cells and cells[0].config.log.tensorboard else no_op,
        ).run()


def swept_keys(cells: Sequence[Cell]) -> list[str]:
    """Return the keys that tell the cells of a grid apart, whatever they are."""
    flats = [flatten(cell.config.plain()) for cell in cells]
    return separating_keys(
        [key for key in dict.fromkeys(k for flat in flats for k in flat) if not is_incidental(key)], flats
    )


def seconds_per_step(group: Group, sizes: CostCache) -> float:
    """Return about how many seconds one network-step of a group takes."""
    size = sizes.of(group.cells[0])
    return SECONDS_PER_STEP + FLOPS_PER_MULTIPLICATION * size.work / max(size.steps, 1) / FLOPS_PER_CORE


def preload_report() -> None:
    """Load what draws the pictures for TensorBoard, which takes a second."""
    from initlab.report.tensorboard import write_sweep_run  # noqa: F401


def record_skipped(cells: Sequence[Cell], results: SweepResults, ended: OnCellEnd) -> None:
    """Record the cells that cannot exist, each with its reason."""
    for cell in cells:
        if cell.reason is None:
            continue
        row = results.rows.get(cell.directory)
        known = row and [row[1].get(key) for key in ("status", "reason", "problem")]
        fresh = known != ["skipped", cell.reason, ""]
        if fresh:
            writer = RunWriter(cell.directory, cell.config.plain(), tensorboard=False)
            writer.finish("skipped", reason=cell.reason, hash=cell.hash)
            results.read(cell)
        ended(cell, results.rows[cell.directory][1], fresh)


def clean_group_directory(room: Path, groups: Sequence[Group]) -> None:
    """Remove what earlier launches left and no group will go on from.

    A worker that one of them left behind may still compute a group that is none any more, now that the grid is another
    one; its cells are in other groups, and two must not write them: it is waited for.
    """
    checkpoints = {Path(f"{group.id}.pt") for group in groups}
    kept = {path.name for each in checkpoints for path in (each, before_checkpoint(each), each.with_suffix(".lock"))}
    if room.is_dir():
        for path in sorted(room.glob("*.lock")):
            if path.name not in kept:
                with group_lock(path, lambda: 0):
                    pass
        for path in room.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in kept or path.is_symlink() or not path.is_file():
                path.unlink(missing_ok=True)


def resume_hint(cell: Cell, directory: Path) -> str:
    """Say how to go on with a sweep that was stopped."""
    config = cell.config
    if config.sweep.name is None and directory.parent.resolve() == Path(config.sweep.root).resolve():
        return f"The same command with sweep.name={directory.name} goes on from here."
    return "The same command goes on from here."


@contextmanager
def lock_and_tabulate(cells: Sequence[Cell], directory: Path) -> Iterator[None]:
    """Hold a sweep's directory while somebody else runs its cells one by one; write and show the table afterwards."""
    from initlab.sweep.screen import show_outcome

    started = time.monotonic()
    with sweep_lock(directory):
        refuse_links(cells, directory)
        record_skipped(cells, SweepResults(directory), lambda *_: None)
        try:
            yield
        finally:
            outcome = Outcome(list(cells), SweepResults(directory), time.monotonic() - started)
            outcome.results.write()
            show_outcome(outcome, directory)
