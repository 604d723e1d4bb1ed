"""Is this module initialized as promised? One row per parameter, with p-values, and what a broken one looks like.

`engine` makes the frame, `checks` tests one parameter, `duplicates` compares layers, `likeness` and `reasons` describe
what is wrong, `unchecked` why nothing was checked, `weight_files` and `sources` read values without their module,
`formats` writes text, JSON and JUnit XML. The module is callable: `initlab.audit(model, "he_normal")`.
"""

import sys
from types import ModuleType

from initlab.audit.engine import COLUMNS, FALSE_ALARM_RATE, audit
from initlab.audit.formats import as_json, as_junit, as_text, passed
from initlab.audit.unchecked import unchecked

__all__ = ["COLUMNS", "FALSE_ALARM_RATE", "as_json", "as_junit", "as_text", "audit", "passed", "unchecked"]


class _Callable(ModuleType):
    # `initlab.audit` names this module once it is imported, and the function.
    __call__ = staticmethod(audit)


sys.modules[__name__].__class__ = _Callable
