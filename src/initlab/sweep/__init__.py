"""Grids of runs: plan, group, resume, executors. No Hydra here: the launcher is a thin face on it, and so is Python's.

The module itself can be called: `initlab.sweep(init=[...], seed=range(5))`. Its names are imported at first use: a
sweep that has nothing left to do needs no torch.
"""

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from initlab.sweep.api import sweep
    from initlab.sweep.cells import Cell, cell_directories, check_cells, select_cells
    from initlab.sweep.dry_run import dry_run
    from initlab.sweep.placement import Placement
    from initlab.sweep.results import Outcome
    from initlab.sweep.run import lock_and_tabulate, run_sweep
    from initlab.sweep.screen import show_outcome, write_sweep_pictures
    from initlab.sweep.summary import summarize_cells, varying_axes

__all__ = [
    "Cell",
    "Outcome",
    "Placement",
    "cell_directories",
    "check_cells",
    "dry_run",
    "lock_and_tabulate",
    "run_sweep",
    "select_cells",
    "show_outcome",
    "summarize_cells",
    "sweep",
    "varying_axes",
    "write_sweep_pictures",
]
_HOMES = {
    "api": ("sweep",),
    "cells": ("Cell", "cell_directories", "check_cells", "select_cells"),
    "dry_run": ("dry_run",),
    "placement": ("Placement",),
    "results": ("Outcome",),
    "run": ("lock_and_tabulate", "run_sweep"),
    "screen": ("show_outcome", "write_sweep_pictures"),
    "summary": ("summarize_cells", "varying_axes"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


class _Callable(ModuleType):
    """A room that is a function as well: Python puts the module where `initlab.sweep` is looked up."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.sweep)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
