"""Grids of runs: plan, group, resume, executors; no Hydra.

The module can be called: `initlab.sweep(init=[...], seed=range(5))`. Nothing is imported before that: a sweep whose
runs are all done needs no torch.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """The module `initlab.sweep`, which is its function `sweep` as well."""

    @property
    def sweep(self) -> Callable[..., Any]:
        from initlab.sweep.api import sweep

        return sweep

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.sweep)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.sweep(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
