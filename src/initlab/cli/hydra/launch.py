"""A sweep of Hydra's: expanded, checked, run by `initlab.sweep`, and its jobs given back."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, env_override, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from initlab.cli.hydra.job_returns import replay_job
from initlab.cli.hydra.jobs import HydraJob, compose_jobs, renumber_job
from initlab.config.grid import default_shape, expand_grid
from initlab.config.hydra_errors import translate_hydra_errors
from initlab.errors import UserError
from initlab.system import fork, fork_server
from initlab.system.escape import print
from initlab.system.startup import fast_imports

MANY_JOBS = 50  # jobs from which on it is worth a look whether they will need several processes
STEPS_PER_EPOCH = 100  # updates, while the data have not been read
WORKER_ENTRY = "initlab.sweep.executors.process_worker:serve_tasks"
LENGTH_KEYS = (
    "train.steps",
    "train.epochs",
    "device",
    "threads",
)  # what tells it; where they are swept, their defaults do


def launch_grid(sweeper: Any, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
    """Expand the arguments into jobs, take out what is excluded, and launch the rest by whichever launcher there is."""
    context, master = sweeper.hydra_context, sweeper.config
    if sweeper.max_batch_size is not None:
        raise UserError("hydra.sweeper.max_batch_size has no use here: sweep.max_group bounds what trains together.")
    setup_globals()
    with translate_hydra_errors():
        grids = OmegaConf.to_container(master.sweep.grids, resolve=True)
        assert isinstance(grids, list)
        texts = expand_grid(context.config_loader, arguments, sweeper.params or {}, grids, default_shape(master))
    compose = partial(compose_jobs, context, master, texts, 0)
    if Path(str(master.hydra.sweep.dir)).is_dir():
        # What was run before may be all of it, which needs no torch: the records are looked at first.
        from initlab.sweep.finished import all_have_summaries

        known = select_jobs(compose(), repeats=bool(grids))
        if all_have_summaries([job.directory for job in known]):
            return [run_with_launcher(sweeper, known)]
        with prestart_sweep(sweeper.launcher, master, len(known), lambda: known):
            return [run_with_launcher(sweeper, known)]
    with prestart_sweep(sweeper.launcher, master, len(texts), compose) as composed:
        jobs = composed()
        if jobs:
            jobs[0].composer.adopt(context.config_loader, master)
        return [run_with_launcher(sweeper, select_jobs(jobs, repeats=bool(grids)))]


def select_jobs(jobs: Sequence[HydraJob], repeats: bool) -> list[HydraJob]:
    """Return the jobs that are left when what is excluded and what comes twice is taken out, numbered from 0."""
    from initlab.sweep.cells import select_cells

    kept = select_cells([job.config for job in jobs], repeats)
    return [renumber_job(jobs[old], new) if old != new else jobs[old] for new, old in enumerate(kept)]


def run_with_launcher(sweeper: Any, jobs: Sequence[HydraJob]) -> Sequence[JobReturn]:
    """Let whichever launcher there is run the jobs."""
    ours = getattr(sweeper.launcher, "launch_jobs", None)
    return ours(jobs) if ours else launch_with_other_launcher(sweeper.launcher, sweeper.config, jobs)


@contextmanager
def prestart_sweep(
    launcher: Any, master: DictConfig, networks: int, compose: Callable[[], list[HydraJob]]
) -> Iterator[Callable[[], list[HydraJob]]]:
    """Have what workers come from load torch before the grid is known; yields the call that gives the composed grid.

    Where this process may be copied, a copy composes while this one loads torch, of which the next copy becomes the
    nursery: then torch is loaded once. Elsewhere the nursery loads it beside this process.
    """
    how = getattr(launcher, "how", {})
    maybe = how.get("executor") == "process" or (how.get("executor") == "auto" and networks >= MANY_JOBS)
    if not maybe or OmegaConf.select(master, "dry_run"):
        yield compose
        return
    beside = fork.can_fork() and len(os.sched_getaffinity(0)) > 1
    once = beside and "torch" not in sys.modules and fork.is_single_threaded()
    OmegaConf.select(master, "hydra.sweep.dir")  # before anything is copied: all have the clock of the sweep
    with (
        env_override(master.hydra.job.env_set),
        fork_server.keep_server(),
        fork.run_in_child(compose) if once else nullcontext(compose) as composed,
    ):
        if beside and not once:
            with suppress(fork_server.ProcessLimitReached):  # the sweep will say so
                fork_server.shared_server(WORKER_ENTRY)
        # With threads of its own for numpy this process could be copied no more.
        with env_override({"OPENBLAS_NUM_THREADS": "1"} if once else {}), fast_imports():
            from initlab.sweep.executors.process import prestart_workers, stop_idle_workers
            from initlab.sweep.executors.process_worker import serve_tasks  # noqa: F401
            from initlab.sweep.placement import Placement

        if once:
            # Before anything is computed or a card is looked at: what a card was told does not survive copying.
            with suppress(fork_server.ProcessLimitReached):
                fork_server.shared_server(WORKER_ENTRY, here=True).call(
                    "initlab.sweep.executors.process_worker:use_one_thread"
                )
        steps, epochs, device, threads = (OmegaConf.select(master, key) for key in LENGTH_KEYS)
        each = STEPS_PER_EPOCH * epochs if steps is None else steps
        # What is no number is told when the jobs are composed.
        early = Placement(**how).prestart(networks, each, device, threads) if isinstance(each, int | float) else None
        if early is None:
            stop_idle_workers()
            yield composed
            return
        with prestart_workers(early.workers, networks), read_data_early(master):
            yield composed


@contextmanager
def read_data_early(master: DictConfig) -> Iterator[None]:
    """Read the data meanwhile, here and where workers come from, if they are what they most likely are."""
    from initlab.data import preload

    try:
        given = {str(key): value for key, value in master.data.items()}
    except (OmegaConfBaseException, AttributeError):  # what is wrong is told when the jobs are composed
        yield
        return
    thread = threading.Thread(target=preload, kwargs=given)
    with suppress(RuntimeError):  # the system allows no further thread: they are read when they are needed
        thread.start()
    if fork.can_fork():
        with suppress(fork_server.ProcessLimitReached):
            fork_server.shared_server(WORKER_ENTRY).call("initlab.data:preload", **given)
    try:
        yield
    finally:
        if thread.ident is not None:
            thread.join()


def launch_jobs(
    context: HydraContext, master: DictConfig, jobs: Sequence[HydraJob], how: Mapping[str, Any]
) -> list[JobReturn]:
    """Check the grid, run it, and return Hydra's account of every job, in order.

    Arguments: `how` holds executor, workers and options.

    Raises UserError before anything is written when a cell cannot be; Interrupted after a signal.
    """
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    from initlab.sweep.finished import load_finished_sweep
    from initlab.sweep.screen import show_outcome, write_sweep_pictures

    directory = Path(str(master.hydra.sweep.dir)).absolute()
    returns: dict[int, JobReturn] = {}

    def ended(cell: Any, summary: dict[str, Any], fresh: bool) -> None:
        returns[cell.number] = replay_job(context, master, jobs[cell.number], summary, fresh)

    def opened() -> None:
        save_multirun(master, directory)

    configs, directories = [job.config for job in jobs], [job.directory for job in jobs]
    if outcome := load_finished_sweep(configs, directories, directory, ended, opened):
        show_outcome(outcome, directory)
        write_sweep_pictures(outcome, directory)
        return [returns[number] for number in range(len(jobs))]
    returns.clear()
    with fast_imports():
        from initlab.sweep.cells import check_cells
        from initlab.sweep.dry_run import dry_run, dry_run_race
        from initlab.sweep.placement import Placement
        from initlab.sweep.race import COMPARISON_LABEL
        from initlab.sweep.run import run_sweep
        from initlab.system.files import require_disk_space
    chosen = Placement(**how)
    remark = ""
    if jobs[0].config.race:
        if jobs[0].config.dry_run:
            dry_run_race([job.config for job in jobs], directory, chosen)
            return []
        jobs, remark = tune_jobs(context, master, jobs, directory, chosen)
    cells = check_cells([job.config for job in jobs], [job.directory for job in jobs])
    if jobs[0].config.dry_run:
        dry_run(cells, directory, chosen)
        return []
    require_disk_space(directory)
    with env_override(master.hydra.job.env_set):
        outcome = run_sweep(
            cells, directory, chosen, ended, opened, label=COMPARISON_LABEL if jobs[0].config.race else "sweep"
        )
    show_outcome(outcome, directory)
    if remark:
        print(remark)
    write_sweep_pictures(outcome, directory)
    return [returns[number] for number in range(len(jobs))]


def tune_jobs(
    context: HydraContext, master: DictConfig, jobs: Sequence[HydraJob], directory: Path, how: Any
) -> tuple[list[HydraJob], str]:
    """Tune the rate of every cell of a race; return its jobs at those rates, and what to say of the tuning.

    Raises UserError before anything is written when the cells cannot race; Interrupted after a signal.
    """
    from initlab.sweep.race import final_config, race_configs, tune_rates
    from initlab.system.files import require_disk_space

    configs = [job.config for job in jobs]
    race_configs(configs, directory)
    require_disk_space(directory)
    with env_override(master.hydra.job.env_set):
        found = tune_rates(configs, directory, how, lambda: save_multirun(master, directory))
    texts = [
        [text for text in job.overrides if not text.startswith("optim.lr=")] + [f"optim.lr={rate!r}"]
        if rate is not None
        else job.overrides
        for job, rate in zip(jobs, found.rates, strict=True)
    ]
    again = compose_jobs(context, master, texts, 0)
    for job, rate in zip(again, found.rates, strict=True):
        job.config = final_config(job.config, rate)
    return again, found.summary()


def save_multirun(master: DictConfig, directory: Path) -> None:
    """Write `multirun.yaml` as Hydra's own sweeper does."""
    OmegaConf.save(master, directory / "multirun.yaml")


def launch_with_other_launcher(launcher: Any, master: DictConfig, jobs: Sequence[HydraJob]) -> Sequence[JobReturn]:
    """Check the grid, let another launcher of Hydra's run it job by job, and write the table."""
    from initlab.sweep.cells import check_cells
    from initlab.sweep.cost import CostCache
    from initlab.sweep.dry_run import dry_run
    from initlab.sweep.placement import Placement
    from initlab.sweep.run import lock_and_tabulate, refuse_too_large

    if jobs[0].config.race:
        raise UserError("race=true needs initlab's own launcher: leave hydra/launcher as it is.")
    directory = Path(str(master.hydra.sweep.dir)).absolute()
    cells = check_cells([job.config for job in jobs], [job.directory for job in jobs])
    if jobs[0].config.dry_run:
        dry_run(cells, directory, Placement("inline"))
        return []
    if type(launcher).__module__.startswith("hydra._internal."):  # the basic one: others may use other machines
        refuse_too_large(cells, Placement("inline"), CostCache())
    with lock_and_tabulate(cells, directory):
        save_multirun(master, directory)
        possible = [job.overrides for job, cell in zip(jobs, cells, strict=True) if cell.reason is None]
        returns: Sequence[JobReturn] = launcher.launch(possible, initial_job_idx=0)
    return returns
