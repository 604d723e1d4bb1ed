"""Hydra's launcher and sweeper over `launch_grid`: compose and check the whole grid, run it, give Hydra its jobs back."""

from initlab.cli.hydra.job_returns import JobFailed, fast_config_copies
from initlab.cli.hydra.jobs import compose_jobs
from initlab.cli.hydra.launch import launch_grid, launch_jobs

__all__ = ["JobFailed", "compose_jobs", "fast_config_copies", "launch_grid", "launch_jobs"]
