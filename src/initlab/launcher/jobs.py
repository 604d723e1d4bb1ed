"""Hydra's jobs: each composed and checked before any of them runs, and where it will lie."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from initlab.config import Config
from initlab.config.compose import to_config
from initlab.config.composer import Composer
from initlab.config.errors import translated
from initlab.config.naming import cell_name

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
