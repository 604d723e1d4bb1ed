"""Initialize any module by a scheme: every parameter from its own stream, in place, one row each.

`plan` decides and checks, `fill` writes, `streams` draws and identifies.
"""

from .fill import COLUMNS, initialize_, promised
from .plan import DERIVED_GAINS, Request, Task, impossible, plan, request
from .streams import fingerprint, stream

__all__ = [
    "COLUMNS",
    "DERIVED_GAINS",
    "Request",
    "Task",
    "fingerprint",
    "impossible",
    "initialize_",
    "plan",
    "promised",
    "request",
    "stream",
]
