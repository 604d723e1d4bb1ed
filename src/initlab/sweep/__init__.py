"""Grids of runs: plan, group, resume, executors. No Hydra here: the launcher is a thin face on it, and so is Python's.

The module itself can be called: `initlab.sweep(init=[...], seed=range(5))`.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from initlab.sweep.cells import Cell, checked, default_directories, wanted
from initlab.sweep.face import sweep
from initlab.sweep.how import How
from initlab.sweep.run import Outcome, drawn, run_sweep, tabulated
from initlab.sweep.show import dry_run, show_outcome
from initlab.sweep.table import axes, by_cell

__all__ = [
    "Cell",
    "How",
    "Outcome",
    "axes",
    "by_cell",
    "checked",
    "default_directories",
    "drawn",
    "dry_run",
    "run_sweep",
    "show_outcome",
    "sweep",
    "tabulated",
    "wanted",
]


class _Callable(ModuleType):
    """A room that is a function as well: Python puts the module where `initlab.sweep` is looked up."""

    __signature__ = inspect.signature(sweep)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
