"""Hydra's launcher and sweeper over `sweep`: compose and check the whole grid, run it, give Hydra its jobs back."""

from initlab.cli.hydra.job_returns import JobFailed, quick_copies
from initlab.cli.hydra.jobs import compose_jobs
from initlab.cli.hydra.launch import launch, sweep

__all__ = ["JobFailed", "compose_jobs", "launch", "quick_copies", "sweep"]
