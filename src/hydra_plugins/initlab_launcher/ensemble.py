"""The shim by which Hydra discovers initlab's launcher and sweeper: no torch here, for every Hydra app imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class EnsembleLauncherConf:
    """`hydra/launcher=ensemble`."""

    _target_: str = "hydra_plugins.initlab_launcher.ensemble.EnsembleLauncher"
    executor: str = "auto"  # or inline, process, submitit, ray
    workers: Any = "auto"  # groups at a time
    options: dict[str, Any] = field(default_factory=dict)  # of the executor: slurm_partition, address, …


@dataclass
class GridSweeperConf:
    """`hydra/sweeper=grid`."""

    _target_: str = "hydra_plugins.initlab_launcher.ensemble.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


STORE = ConfigStore.instance()
STORE.store(group="hydra/launcher", name="ensemble", node=EnsembleLauncherConf, provider="initlab")
STORE.store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="initlab")


class EnsembleLauncher(Launcher):
    """Hand all jobs of a sweep to `initlab.cli.hydra`, which checks the whole grid before it trains."""

    def __init__(self, executor: str, workers: int | str, options: Mapping[str, Any]) -> None:
        self.how = {"executor": executor, "workers": workers, "options": dict(options)}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of a sweeper that is not ours and return one result for each, in order."""
        from initlab.cli.hydra import compose_jobs

        return self.launch_jobs(compose_jobs(self.hydra_context, self.config, job_overrides, initial_job_idx))

    def launch_jobs(self, jobs: Sequence[Any]) -> Sequence[JobReturn]:
        """Run jobs that are composed already and return one result for each, in order."""
        from initlab.cli.hydra import launch_jobs

        return launch_jobs(self.hydra_context, self.config, jobs, self.how)


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper without its second composition of every job: the launcher composes and checks them all."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Leave the checks to the launcher, which runs none of the jobs before all have passed."""

    def sweep(self, arguments: list[str]) -> Any:
        """Expand the grid and launch it."""
        from initlab.cli.hydra import launch_grid

        return launch_grid(self, arguments)
