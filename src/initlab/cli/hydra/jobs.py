"""Hydra's jobs: each composed and checked before any of them runs, and where it will lie."""

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

CELL_NAME = "${initlab.cell_name:}"  # hydra.sweep.subdir unless the user chose another
DEFAULT_OUTPUT_SUBDIR = ".hydra"  # where Hydra writes what it composed; in a sweep only where the user says so


@dataclass(frozen=True)
class JobSettings:
    """What Hydra's node says of a job: where its own files go (None: nowhere), and whether initlab alone hears of it.

    `cwd` is where the launch was started; `named` is whether the directory has the name that initlab gives it.
    """

    files: str | None
    unheard: bool
    named: bool
    cwd: str


@dataclass
class HydraJob:
    """One job of Hydra's: its overrides, our configuration, its directory; Hydra's is composed when it is needed."""

    overrides: Sequence[str]
    number: int
    config: Config
    directory: Path
    facts: JobSettings
    composer: Composer

    def composed(self) -> DictConfig:
        """Compose Hydra's configuration of this job."""
        found = self.composer.job(self.overrides, self.number)
        with open_dict(found):
            found.hydra.output_subdir = self.facts.files
        return found


def read_job_settings(composed: DictConfig, master: DictConfig) -> JobSettings:
    """Read what has to be known of Hydra's node of a job."""
    job, logging = composed.hydra.job, composed.hydra.job_logging
    silent = logging is not None and logging.get("root") is None and not composed.hydra.verbose
    files = composed.hydra.output_subdir
    if files == DEFAULT_OUTPUT_SUBDIR and not user_set_output_subdir(master):
        files = None
    sweep = OmegaConf.to_container(composed.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    alone = silent and not job.chdir and not job.env_set
    return JobSettings(files, alone, sweep["subdir"] == CELL_NAME, str(composed.hydra.runtime.cwd))


def user_set_output_subdir(master: DictConfig) -> bool:
    """Did the user say where Hydra's own files go?"""
    return any(text.lstrip("+").startswith("hydra.output_subdir=") for text in master.hydra.overrides.hydra)


def compose_jobs(
    context: HydraContext, master: DictConfig, texts: Iterable[Sequence[str]], first: int
) -> list[HydraJob]:
    """Compose and check the configuration of every job.

    Raises UserError for the first that cannot be.
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

    Arguments: `known`, facts by the choices that Hydra composed; `sweep`, what the whole sweep has for `sweep.*`.
    """
    composed = None
    values = composer.values(overrides)
    if values is None:
        composed = composer.job(overrides, number)
        config, facts = to_config(composed, overrides), read_job_settings(composed, composer.master)
    else:
        plain, choices = values
        config = checked_config(plain, overrides)
        if choices not in known:
            known[choices] = read_job_settings(composer.base(choices), composer.master)
        facts = known[choices]
    if facts.named and config.plain()["sweep"] == sweep:
        directory = Path(composer.directory, cell_name(config)).absolute()
    else:
        directory = job_directory(composer.job(overrides, number) if composed is None else composed)
    return HydraJob(list(overrides), number, config, directory, facts, composer)


def job_directory(composed: DictConfig) -> Path:
    """Return where Hydra will put a job: `hydra.sweep.dir` and `hydra.sweep.subdir`, evaluated as it does."""
    HydraConfig.instance().set_config(composed)
    parts = [str(OmegaConf.select(composed, key)) for key in ("hydra.sweep.dir", "hydra.sweep.subdir")]
    return Path(*parts).absolute()


@contextmanager
def restore_hydra_config() -> Iterator[None]:
    """Put Hydra's process-wide configuration back as it was."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def renumber_job(job: HydraJob, number: int) -> HydraJob:
    """Return a job under another number."""
    found = replace(job, number=number)
    if not job.facts.named:
        with restore_hydra_config():
            found.directory = job_directory(found.composed())
    return found
