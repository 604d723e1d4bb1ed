"""Hydra's launcher and sweeper over `sweep`: compose and check the whole grid, run it, give Hydra its jobs back."""

from initlab.launcher.jobs import compose_jobs
from initlab.launcher.launch import launch, sweep
from initlab.launcher.replay import JobFailed, quick_copies

__all__ = ["JobFailed", "compose_jobs", "launch", "quick_copies", "sweep"]
