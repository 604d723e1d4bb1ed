"""Initialize any module by a scheme: every parameter from its own stream, in place, one row each.

`request` resolves what is asked, `plan` decides and checks, `draw` fills, `meta` gives memory, `rows` reports,
`streams` keys the random numbers and identifies values.
"""

from initlab.initialize.fill import fill_, promised
from initlab.initialize.plan import FillPlan, FillTask, plan, scheme_refusal
from initlab.initialize.request import DERIVED_GAINS, Request, Roles, Spec, request
from initlab.initialize.rows import COLUMNS, mean_and_std
from initlab.initialize.streams import fingerprint, stream

__all__ = [
    "COLUMNS",
    "DERIVED_GAINS",
    "FillPlan",
    "FillTask",
    "Request",
    "Roles",
    "Spec",
    "fill_",
    "fingerprint",
    "mean_and_std",
    "plan",
    "promised",
    "request",
    "scheme_refusal",
    "stream",
]
