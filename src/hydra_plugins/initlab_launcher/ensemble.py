"""Where Hydra discovers initlab's launcher and sweeper; no torch here, because every Hydra application imports it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
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
        self.placement = {"executor": executor, "workers": workers, "options": dict(options)}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and configuration."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of another sweeper and return one result for each, in order."""
        from initlab.cli.hydra import compose_jobs

        return self.launch_jobs(compose_jobs(self.hydra_context, self.config, job_overrides, initial_job_idx))

    def launch_jobs(self, jobs: Sequence[Any]) -> Sequence[JobReturn]:
        """Run composed jobs and return one result for each, in order."""
        from initlab.cli.hydra import launch_jobs

        return launch_jobs(self.hydra_context, self.config, jobs, self.placement)


class GridSweeper(Sweeper):
    """Expand a grid; the launcher composes and checks all its jobs before the first one runs."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and configuration, and make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Expand the grid and launch it."""
        from initlab.cli.hydra import launch_grid

        return launch_grid(self, arguments)
