"""Grids of runs: plan, group, resume, executors. No Hydra here: the launcher is a thin face on it, and so is Python's.

The module itself can be called: `initlab.sweep(init=[...], seed=range(5))`.
"""

from initlab.sweep.cells import Cell, checked, default_directories, wanted
from initlab.sweep.run import How, Outcome, run_sweep, tabulated
from initlab.sweep.show import dry_run, show_outcome
from initlab.sweep.table import axes, cells, rewrite

__all__ = [
    "Cell",
    "How",
    "Outcome",
    "axes",
    "cells",
    "checked",
    "default_directories",
    "dry_run",
    "rewrite",
    "run_sweep",
    "show_outcome",
    "tabulated",
    "wanted",
]
