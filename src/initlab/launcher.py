"""Hydra's launcher and sweeper over `sweep`: compose and check the whole grid, run it, give Hydra its jobs back."""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from initlab.config import Config
from initlab.config.compose import to_config
from initlab.config.composer import Composer
from initlab.config.errors import translated
from initlab.config.grid import expand
from initlab.config.naming import cell_name
from initlab.errors import UserError

OWN_NAME = "${initlab.cell_name:}"  # hydra.sweep.subdir unless the user chose another


@dataclass
class Job:
    """One job of Hydra's: its overrides, its configuration as composed (packed: a tenth of its size) and as ours."""

    overrides: Sequence[str]
    packed: bytes
    config: Config
    directory: Path

    def composed(self) -> DictConfig:
        """Return Hydra's configuration of this job."""
        found: DictConfig = pickle.loads(self.packed)
        return found


class LeanReturn(JobReturn):
    """Hydra's account of a job, whose configurations stay packed until somebody asks: a sweep has thousands."""

    def __init__(self, found: JobReturn, job: Job):
        self.__dict__.update({k: v for k, v in vars(found).items() if k not in ("cfg", "hydra_cfg")})
        self.job = job

    @property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The job's configuration without Hydra's node."""
        found = self.job.composed()
        with open_dict(found):
            del found["hydra"]
        return found

    @property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """Hydra's node of the job's configuration."""
        found = with_output(self.job.composed(), self.job.directory)
        alone: DictConfig = OmegaConf.masked_copy(found, "hydra")
        OmegaConf.set_readonly(alone.hydra, True)
        return alone


class JobFailed(Exception):
    """What Hydra is told of a network that failed; the traceback is in the run's log."""


def sweep(sweeper: Any, arguments: Sequence[str]) -> list[Sequence[JobReturn]]:
    """Expand the arguments into jobs, take out what is excluded, and launch the rest by whichever launcher there is."""
    context, master = sweeper.hydra_context, sweeper.config
    if sweeper.max_batch_size is not None:
        raise UserError("hydra.sweeper.max_batch_size has no use here: sweep.max_group bounds what trains together.")
    setup_globals()
    with translated():
        grids = OmegaConf.to_container(master.sweep.grids, resolve=True)
        assert isinstance(grids, list)
        texts = expand(context.config_loader, arguments, sweeper.params or {}, grids)
        jobs = compose_jobs(context, master, texts, 0)
    from initlab.sweep import wanted

    kept = wanted([job.config for job in jobs], repeats=bool(grids))
    jobs = [renumbered(jobs[old], new) if old != new else jobs[old] for new, old in enumerate(kept)]
    launch_ours = getattr(sweeper.launcher, "launch_jobs", None)
    return [launch_ours(jobs) if launch_ours else launch_elsewhere(sweeper.launcher, master, jobs)]


def compose_jobs(context: HydraContext, master: DictConfig, texts: Iterable[Sequence[str]], first: int) -> list[Job]:
    """Compose and check the configuration of every job.

    Raises UserError for the first that cannot be.
    """
    composer = Composer(context.config_loader, master)
    jobs = []
    with translated(), hydra_config_kept():
        plain = OmegaConf.to_container(master.sweep, resolve=True)
        for number, overrides in enumerate(texts, start=first):
            composed = composer.job(overrides, number)
            config = to_config(composed, overrides)
            packed = pickle.dumps(composed, -1)
            usual = OmegaConf.to_container(composed.hydra.sweep, resolve=False)["subdir"] == OWN_NAME  # type: ignore[index,call-overload]
            if usual and config.plain()["sweep"] == plain:
                directory = Path(composer.directory, cell_name(config)).absolute()
            else:
                directory = job_directory(composed)
            jobs.append(Job(list(overrides), packed, config, directory))
    return jobs


def job_directory(composed: DictConfig) -> Path:
    """Return where Hydra will put a job: `hydra.sweep.dir` and `hydra.sweep.subdir`, evaluated as it does."""
    HydraConfig.instance().set_config(composed)
    parts = [str(OmegaConf.select(composed, key)) for key in ("hydra.sweep.dir", "hydra.sweep.subdir")]
    return Path(*parts).absolute()


@contextmanager
def hydra_config_kept() -> Iterator[None]:
    """Put Hydra's process-wide configuration back as it was."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def renumbered(job: Job, number: int) -> Job:
    """Return a job under another number."""
    composed = job.composed()
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    packed = pickle.dumps(composed, -1)
    with hydra_config_kept():
        return Job(job.overrides, packed, job.config, job_directory(composed))


def launch(context: HydraContext, master: DictConfig, jobs: Sequence[Job], how: Mapping[str, Any]) -> list[JobReturn]:
    """Check the grid, run it, and return Hydra's account of every job, in order.

    Arguments: `how` holds executor, workers and options.

    Raises UserError before anything is written when a cell cannot be; Interrupted after a signal.
    """
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    from initlab.records.files import require_room
    from initlab.sweep import How, checked, dry_run, run_sweep, show_outcome
    from initlab.sweep.race import dry_race

    chosen = How(**how)
    directory = Path(str(master.hydra.sweep.dir)).absolute()
    remark = ""
    if jobs[0].config.race:
        if jobs[0].config.dry_run:
            dry_race([job.config for job in jobs], directory, chosen)
            return []
        jobs, remark = tuned(context, master, jobs, directory, chosen)
    cells = checked([job.config for job in jobs], [job.directory for job in jobs])
    if jobs[0].config.dry_run:
        dry_run(cells, directory, chosen)
        return []
    require_room(directory)
    returns: dict[int, JobReturn] = {}

    def ended(cell: Any, summary: dict[str, Any], fresh: bool) -> None:
        returns[cell.number] = replay(context, master, jobs[cell.number], summary, fresh)

    with env_override(master.hydra.job.env_set):
        outcome = run_sweep(cells, directory, chosen, ended, lambda: save_master(master, directory))
    show_outcome(outcome, directory)
    if remark:
        print(remark)
    if jobs[0].config.log.tensorboard:
        from initlab.report import write_sweep_run

        write_sweep_run(directory, outcome.results.frame())
    return [returns[number] for number in range(len(jobs))]


def tuned(
    context: HydraContext, master: DictConfig, jobs: Sequence[Job], directory: Path, how: Any
) -> tuple[list[Job], str]:
    """Tune the rate of every cell of a race; return its jobs at those rates, and what to say of the tuning.

    Raises UserError before anything is written when the cells cannot race; Interrupted after a signal.
    """
    from initlab.records.files import require_room
    from initlab.sweep.race import entered, final, tune

    configs = [job.config for job in jobs]
    entered(configs, directory)
    require_room(directory)
    with env_override(master.hydra.job.env_set):
        found = tune(configs, directory, how, lambda: save_master(master, directory))
    texts = [
        [text for text in job.overrides if not text.startswith("optim.lr=")] + [f"optim.lr={rate!r}"]
        if rate is not None
        else job.overrides
        for job, rate in zip(jobs, found.rates, strict=True)
    ]
    again = compose_jobs(context, master, texts, 0)
    for job, rate in zip(again, found.rates, strict=True):
        job.config = final(job.config, rate)
    return again, found.said()


def save_master(master: DictConfig, directory: Path) -> None:
    """Write `multirun.yaml` as Hydra's own sweeper does."""
    OmegaConf.save(master, directory / "multirun.yaml")


def replay(
    context: HydraContext, master: DictConfig, job: Job, summary: dict[str, Any], fresh: bool = True
) -> JobReturn:
    """Let Hydra run a job whose result is known: it writes its files and calls back, as for any job.

    Arguments: `fresh`: whether the job ran just now; one that was done before is only accounted for.
    """

    def give_back(_: DictConfig) -> dict[str, Any]:
        if summary["status"] == "failed":
            raise JobFailed(summary.get("error"))
        return summary

    composed = job.composed()
    written = composed.hydra.output_subdir is None or (job.directory / composed.hydra.output_subdir).is_dir()
    if written and not fresh:
        found = JobReturn(overrides=list(composed.hydra.overrides.task), working_dir=str(Path.cwd()))
        found.task_name, found.status = JobRuntime.instance().get("name"), JobStatus.COMPLETED
        found.return_value = summary
    else:
        with quick_copies():
            found = run_job(
                task_function=give_back,
                config=composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=context,
            )
        configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    return LeanReturn(found, job)


@contextmanager
def quick_copies() -> Iterator[None]:
    """Let configurations be copied by pickle for the while: the same copy, node by node in C instead of Python.

    Hydra copies the whole configuration of a job four times; that was a quarter of what a job costs it.
    """
    slow = DictConfig.__deepcopy__

    def quick(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
        # A part of a configuration keeps its parent, which is not copied.
        parent, self.__dict__["_parent"] = self.__dict__["_parent"], None
        try:
            found: DictConfig = pickle.loads(pickle.dumps(self, -1))
        finally:
            self.__dict__["_parent"] = parent
        found.__dict__["_parent"] = parent
        memo[id(self)] = found
        return found

    DictConfig.__deepcopy__ = quick  # type: ignore[method-assign]
    try:
        yield
    finally:
        DictConfig.__deepcopy__ = slow  # type: ignore[method-assign]


def with_output(composed: DictConfig, directory: Path) -> DictConfig:
    """Set the output directory as Hydra does when it runs a job."""
    with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
        composed.hydra.runtime.output_dir = str(directory)
    return composed


def launch_elsewhere(launcher: Any, master: DictConfig, jobs: Sequence[Job]) -> Sequence[JobReturn]:
    """Check the grid, let another launcher of Hydra's run it job by job, and write the table."""
    from initlab.sweep import How, checked, dry_run, tabulated

    if jobs[0].config.race:
        raise UserError("race=true needs initlab's own launcher: leave hydra/launcher as it is.")
    directory = Path(str(master.hydra.sweep.dir)).absolute()
    cells = checked([job.config for job in jobs], [job.directory for job in jobs])
    if jobs[0].config.dry_run:
        dry_run(cells, directory, How())
        return []
    with tabulated(cells, directory):
        save_master(master, directory)
        possible = [job.overrides for job, cell in zip(jobs, cells, strict=True) if cell.reason is None]
        returns: Sequence[JobReturn] = launcher.launch(possible, initial_job_idx=0)
    return returns
