"""Hydra's launcher and sweeper over `sweep`: compose and check the whole grid, run it, return its jobs to Hydra."""

from initlab.cli.hydra.job_returns import JobFailed
from initlab.cli.hydra.jobs import compose_jobs
from initlab.cli.hydra.launch import launch_grid, launch_jobs

__all__ = ["JobFailed", "compose_jobs", "launch_grid", "launch_jobs"]
