"""Is this module initialized as promised? One row per parameter, with p-values, and what a broken one looks like.

`engine` puts the frame together, `checks` tests one parameter, `duplicates` compares layers, `looks` and `reasons` say
what is wrong, `unchecked` that nothing was checked, `files` and `sources` read values that come without their module,
`show` writes text, JSON and JUnit XML. The room is callable: `initlab.audit(model, "he_normal")`.
"""

import sys
from types import ModuleType

from initlab.audit.engine import COLUMNS, FALSE_ALARM_RATE, audit
from initlab.audit.formats import as_json, as_junit, as_text, passed
from initlab.audit.unchecked import unchecked

__all__ = ["COLUMNS", "FALSE_ALARM_RATE", "as_json", "as_junit", "as_text", "audit", "passed", "unchecked"]


class _Callable(ModuleType):
    # `initlab.audit` is this module as soon as anything has imported it, and the function's name as well.
    __call__ = staticmethod(audit)


sys.modules[__name__].__class__ = _Callable
