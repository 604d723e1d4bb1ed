"""Initialize any module by a scheme: every parameter from its own stream, in place, one row each.

`request` resolves what is asked, `plan` decides and checks, `draw` fills, `meta` gives memory, `rows` reports,
`streams` keys the random numbers and identifies values.
"""

from initlab.initialize.fill import initialize_, promised
from initlab.initialize.plan import Plan, Task, impossible, plan
from initlab.initialize.request import DERIVED_GAINS, Request, Roles, Spec, request
from initlab.initialize.rows import COLUMNS, measured
from initlab.initialize.streams import fingerprint, stream

__all__ = [
    "COLUMNS",
    "DERIVED_GAINS",
    "Plan",
    "Request",
    "Roles",
    "Spec",
    "Task",
    "fingerprint",
    "impossible",
    "initialize_",
    "measured",
    "plan",
    "promised",
    "request",
    "stream",
]
