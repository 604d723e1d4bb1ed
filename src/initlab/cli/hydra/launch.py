"""A sweep of Hydra's: its grid is expanded, checked and run by `initlab.sweep`, and its jobs returned to Hydra."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log, env_override, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from initlab.cli.hydra.job_returns import replay_job
from initlab.cli.hydra.jobs import HydraJob, compose_jobs, renumber_job
from initlab.cli.hydra.prestart import start_processes_early
from initlab.config.grid import default_shape, expand_grid
from initlab.config.hydra_errors import translate_hydra_errors
from initlab.errors import UserError
from initlab.system.escape import print
from initlab.system.startup import fast_imports

if TYPE_CHECKING:
    from initlab.sweep.placement import Placement


def launch_grid(sweeper: Any, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
    """Expand the arguments into jobs and run those that are not excluded by the launcher that Hydra has chosen.

    Args:
        sweeper: Hydra's, with its launcher and configuration.
        arguments: overrides with lists and ranges.

    Raises:
        UserError: the sweeper has a batch size.
    """
    context, master = sweeper.hydra_context, sweeper.config
    if sweeper.max_batch_size is not None:
        raise UserError("hydra.sweeper.max_batch_size has no use here: sweep.max_group limits what trains together.")
    setup_globals()
    with translate_hydra_errors():
        grids = OmegaConf.to_container(master.sweep.grids, resolve=True)
        assert isinstance(grids, list)
        texts = expand_grid(context.config_loader, arguments, sweeper.params or {}, grids, default_shape(master))
    compose = partial(compose_jobs, context, master, texts, 0)
    if Path(str(master.hydra.sweep.dir)).is_dir():
        # All of it may be finished, which needs no torch: the records are read first.
        from initlab.sweep.finished import all_have_summaries

        jobs = select_jobs(compose(), repeats=bool(grids))
        if all_have_summaries([job.directory for job in jobs]):
            return [run_with_launcher(sweeper, jobs)]
        with start_processes_early(sweeper.launcher, master, len(jobs)):
            return [run_with_launcher(sweeper, jobs)]
    with start_processes_early(sweeper.launcher, master, len(texts)):
        return [run_with_launcher(sweeper, select_jobs(compose(), repeats=bool(grids)))]


def select_jobs(jobs: Sequence[HydraJob], repeats: bool) -> list[HydraJob]:
    """Return the jobs that are neither excluded nor repeated, numbered from 0.

    Args:
        jobs: of the whole grid.
        repeats: whether jobs may come twice, as in overlapping sub-grids.
    """
    from initlab.sweep.cells import select_cells

    kept = select_cells([job.config for job in jobs], repeats)
    return [renumber_job(jobs[old], new) if old != new else jobs[old] for new, old in enumerate(kept)]


def run_with_launcher(sweeper: Any, jobs: Sequence[HydraJob]) -> Sequence[JobReturn]:
    """Run the jobs by the launcher that Hydra has chosen."""
    ours = getattr(sweeper.launcher, "launch_jobs", None)
    return ours(jobs) if ours else launch_with_other_launcher(sweeper.launcher, sweeper.config, jobs)


def launch_jobs(
    context: HydraContext, master: DictConfig, jobs: Sequence[HydraJob], placement: Mapping[str, Any]
) -> list[JobReturn]:
    """Check the grid, run it, and return Hydra's record of every job, in order.

    Interrupted is raised after a signal.

    Args:
        context: Hydra's, with its callbacks.
        master: Hydra's configuration of the sweep.
        jobs: composed and numbered.
        placement: executor, workers and options, as in `Placement`.
    """
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    from initlab.sweep.finished import load_finished_sweep
    from initlab.sweep.screen import show_outcome, write_sweep_pictures

    directory = sweep_path(master)
    returns: dict[int, JobReturn] = {}
    save = partial(save_multirun, master, directory)

    def ended(cell: Any, summary: dict[str, Any], fresh: bool) -> None:
        returns[cell.number] = replay_job(context, master, jobs[cell.number], summary, fresh)

    configs, directories = [job.config for job in jobs], [job.directory for job in jobs]
    remark = ""
    outcome = load_finished_sweep(configs, directories, directory, ended, save)
    if not outcome:
        returns.clear()
        with fast_imports():
            from initlab.sweep.cells import check_cells
            from initlab.sweep.dry_run import dry_run, dry_run_race
            from initlab.sweep.placement import Placement
            from initlab.sweep.race import COMPARISON_LABEL
            from initlab.sweep.run import run_sweep
            from initlab.system.files import require_disk_space
        where, race = Placement(**placement), configs[0].race
        if race and configs[0].dry_run:
            dry_run_race(configs, directory, where)
            return []
        if race:
            jobs, remark = tune_jobs(context, master, jobs, directory, where)
        cells = check_cells([job.config for job in jobs], [job.directory for job in jobs])
        if configs[0].dry_run:
            dry_run(cells, directory, where)
            return []
        require_disk_space(directory)
        with env_override(master.hydra.job.env_set):
            label = COMPARISON_LABEL if race else "sweep"
            outcome = run_sweep(cells, directory, where, ended, save, label=label)
    show_outcome(outcome, directory)
    if remark:
        print(remark)
    write_sweep_pictures(outcome, directory)
    return [returns[number] for number in range(len(jobs))]


def tune_jobs(
    context: HydraContext, master: DictConfig, jobs: Sequence[HydraJob], directory: Path, placement: "Placement"
) -> tuple[list[HydraJob], str]:
    """Tune the learning rate of every cell of a race; return its jobs at those rates, and a remark about the tuning.

    UserError is raised, before anything is written, where the cells cannot race; Interrupted after a signal.
    """
    from initlab.sweep.race import final_config, race_configs, tune_rates
    from initlab.system.files import require_disk_space

    configs = [job.config for job in jobs]
    race_configs(configs, directory)
    require_disk_space(directory)
    with env_override(master.hydra.job.env_set):
        result = tune_rates(configs, directory, placement, partial(save_multirun, master, directory))
    texts = [
        [text for text in job.overrides if not text.startswith("optim.lr=")] + [f"optim.lr={rate!r}"]
        if rate is not None
        else job.overrides
        for job, rate in zip(jobs, result.rates, strict=True)
    ]
    tuned = compose_jobs(context, master, texts, 0)
    for job, rate in zip(tuned, result.rates, strict=True):
        job.config = final_config(job.config, rate)
    return tuned, result.summary()


def sweep_path(master: DictConfig) -> Path:
    """Return the absolute directory of a sweep."""
    return Path(str(master.hydra.sweep.dir)).absolute()


def save_multirun(master: DictConfig, directory: Path) -> None:
    """Write `multirun.yaml` as Hydra's own sweeper does."""
    OmegaConf.save(master, directory / "multirun.yaml")


def launch_with_other_launcher(launcher: Any, master: DictConfig, jobs: Sequence[HydraJob]) -> Sequence[JobReturn]:
    """Check the grid, run it job by job by a launcher that is not ours, and write the table.

    Raises:
        UserError: the grid is a race, or a network cannot fit this machine's memory.
    """
    from initlab.sweep.cells import check_cells
    from initlab.sweep.cost import CostCache
    from initlab.sweep.dry_run import dry_run
    from initlab.sweep.placement import Placement
    from initlab.sweep.run import lock_and_tabulate, refuse_too_large

    if jobs[0].config.race:
        raise UserError("race=true needs initlab's own launcher: leave hydra/launcher as it is.")
    directory, inline = sweep_path(master), Placement("inline")
    cells = check_cells([job.config for job in jobs], [job.directory for job in jobs])
    if jobs[0].config.dry_run:
        dry_run(cells, directory, inline)
        return []
    if master.hydra.runtime.choices["hydra/launcher"] == "basic":  # others may use other machines
        refuse_too_large(cells, inline, CostCache())
    with lock_and_tabulate(cells, directory):
        save_multirun(master, directory)
        possible = [job.overrides for job, cell in zip(jobs, cells, strict=True) if cell.reason is None]
        returns: Sequence[JobReturn] = launcher.launch(possible, initial_job_idx=0)
    return returns
