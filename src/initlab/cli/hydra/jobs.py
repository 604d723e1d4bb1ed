"""Hydra's jobs: each is composed and checked, and its directory known, before any of them runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from initlab.config import Config
from initlab.config.compose import checked_config, to_config
from initlab.config.fast_compose import Composer
from initlab.config.hydra_errors import translate_hydra_errors
from initlab.config.naming import cell_name

CELL_NAME = "${initlab.cell_name:}"  # default of hydra.sweep.subdir
DEFAULT_OUTPUT_SUBDIR = ".hydra"  # for Hydra's own files; a sweep has none unless the user sets hydra.output_subdir


@dataclass(frozen=True)
class JobSettings:
    """Settings of a job in Hydra's node.

    Attributes:
        output_subdir: where Hydra's own files go, None for nowhere.
        is_plain: whether the job needs no logging, directory or environment of its own.
        is_named: whether the directory has the name that initlab gives it.
        cwd: where the launch was started.
    """

    output_subdir: str | None
    is_plain: bool
    is_named: bool
    cwd: str


@dataclass
class HydraJob:
    """One job of Hydra's: its overrides, initlab's configuration, its directory."""

    overrides: Sequence[str]
    number: int
    config: Config
    directory: Path
    settings: JobSettings
    composer: Composer

    def compose(self) -> DictConfig:
        """Compose Hydra's configuration of this job."""
        composed = self.composer.job(self.overrides, self.number)
        with open_dict(composed):
            composed.hydra.output_subdir = self.settings.output_subdir
        return composed


def read_job_settings(composed: DictConfig, master: DictConfig) -> JobSettings:
    """Return the settings in Hydra's node of a job.

    Args:
        composed: Hydra's configuration of the job.
        master: that of the sweep.
    """
    job, logging = composed.hydra.job, composed.hydra.job_logging
    logs = logging is None or logging.get("root") is not None or composed.hydra.verbose
    files = composed.hydra.output_subdir
    by_user = any(text.lstrip("+").startswith("hydra.output_subdir=") for text in master.hydra.overrides.hydra)
    if files == DEFAULT_OUTPUT_SUBDIR and not by_user:
        files = None
    sweep = OmegaConf.to_container(composed.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    is_plain = not (logs or job.chdir or job.env_set)
    return JobSettings(files, is_plain, sweep["subdir"] == CELL_NAME, str(composed.hydra.runtime.cwd))


def compose_jobs(
    context: HydraContext, master: DictConfig, texts: Iterable[Sequence[str]], first: int
) -> list[HydraJob]:
    """Compose and check the configuration of every job; the first that is wrong raises UserError.

    Args:
        context: Hydra's, with its loader.
        master: Hydra's configuration of the sweep.
        texts: overrides of each job.
        first: number of the first job.
    """
    composer = Composer(context.config_loader, master)
    jobs = []
    known: dict[tuple[str, ...], JobSettings] = {}
    with translate_hydra_errors(), restore_hydra_config():
        sweep: Any = OmegaConf.to_container(master.sweep, resolve=True)
        assert isinstance(sweep, dict)
        for number, overrides in enumerate(texts, start=first):
            jobs.append(compose_job(composer, known, overrides, number, sweep))
    return jobs


def compose_job(
    composer: Composer,
    known: dict[tuple[str, ...], JobSettings],
    overrides: Sequence[str],
    number: int,
    sweep: Mapping[str, Any],
) -> HydraJob:
    """Compose and check one job.

    Args:
        composer: of all jobs of the sweep.
        known: settings of jobs before, by their group choices.
        overrides: of the job.
        number: of the job.
        sweep: `sweep.*` of the whole sweep.
    """
    composed = None
    values = composer.values(overrides)
    if values is None:
        composed = composer.job(overrides, number)
        config, settings = to_config(composed, overrides), read_job_settings(composed, composer.master)
    else:
        plain, choices = values
        config = checked_config(plain, overrides)
        if choices not in known:
            known[choices] = read_job_settings(composer.base(choices), composer.master)
        settings = known[choices]
    if settings.is_named and config.plain()["sweep"] == sweep:
        directory = Path(composer.directory, cell_name(config)).absolute()
    else:
        directory = job_directory(composer.job(overrides, number) if composed is None else composed)
    return HydraJob(list(overrides), number, config, directory, settings, composer)


def job_directory(composed: DictConfig) -> Path:
    """Return the directory of a job: `hydra.sweep.dir` and `hydra.sweep.subdir`, evaluated as Hydra does."""
    HydraConfig.instance().set_config(composed)
    parts = [str(OmegaConf.select(composed, key)) for key in ("hydra.sweep.dir", "hydra.sweep.subdir")]
    return Path(*parts).absolute()


@contextmanager
def restore_hydra_config() -> Iterator[None]:
    """Restore Hydra's process-wide configuration at the end of the block."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def renumber_job(job: HydraJob, number: int) -> HydraJob:
    """Return a job under another number."""
    renumbered = replace(job, number=number)
    if not job.settings.is_named:
        with restore_hydra_config():
            renumbered.directory = job_directory(renumbered.compose())
    return renumbered
