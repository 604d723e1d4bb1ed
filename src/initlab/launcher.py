"""Hydra's launcher and sweeper over `sweep`: compose and check the whole grid, then run it cell by cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from initlab.config import Config
from initlab.config.compose import to_config
from initlab.config.errors import translated
from initlab.errors import UserError


def sweep(sweeper: Any, arguments: list[str]) -> list[Sequence[JobReturn]]:
    """Expand the arguments into jobs and launch them all; nothing is written before all have been checked."""
    context = sweeper.hydra_context
    parser = OverridesParser.create(config_loader=context.config_loader)
    overrides = parser.parse_overrides([*sweeper._parse_config(), *arguments])
    jobs = [job for batch in sweeper.split_arguments(overrides, None) for job in batch]
    if not jobs:
        raise UserError("the grid is empty: a glob or list matched nothing.")
    return [sweeper.launcher.launch(jobs, initial_job_idx=0)]


def launch(
    context: HydraContext, master: DictConfig, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Compose and check every job, then run them; results come in the order of the jobs."""
    setup_globals()
    # Before any job is composed: what ${now:…} gave the master is handed on to every job.
    directory = Path(str(OmegaConf.select(master, "hydra.sweep.dir")))
    with translated():
        composed = [compose_job(context, master, list(o), first + k) for k, o in enumerate(job_overrides)]
    configs = [to_config(c, o) for c, o in zip(composed, job_overrides, strict=True)]
    return run_jobs(context, composed, configs, directory)


def compose_job(context: HydraContext, master: DictConfig, overrides: list[str], number: int) -> DictConfig:
    """Compose one job as Hydra's basic launcher does."""
    composed = context.config_loader.load_sweep_config(master, overrides)
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def run_jobs(
    context: HydraContext, composed: list[DictConfig], configs: list[Config], directory: Path
) -> list[JobReturn]:
    """Run the checked jobs one after another through Hydra's own run_job, which writes its files and calls back."""
    from initlab.sweep import Sweep

    grid = Sweep.planned(configs, directory)
    returns = []
    with grid.watched():
        for number, job in enumerate(composed):
            returns.append(
                run_job(
                    task_function=lambda _, n=number: grid.run(n),
                    config=job,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                    hydra_context=context,
                    configure_logging=False,
                )
            )
    grid.close()
    return returns


__all__ = ["Singleton", "launch", "sweep"]
