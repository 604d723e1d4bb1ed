"""Initialize any module by a scheme: every parameter from its own random stream, in place, one row each.

`request` resolves what is asked, `plan` decides and checks, `draw` and `fill` write, `meta_device` allocates, `rows`
reports, `streams` keys the random numbers and identifies values; `procedures` holds schemes of whole modules.
"""

from initlab.initialize.fill import fill_
from initlab.initialize.plan import FillTask, plan, scheme_refusal
from initlab.initialize.procedures.engine import initialize_
from initlab.initialize.request import Roles, Spec, request
from initlab.initialize.rows import COLUMNS
from initlab.initialize.streams import fingerprint, stream

__all__ = [
    "COLUMNS",
    "FillTask",
    "Roles",
    "Spec",
    "fill_",
    "fingerprint",
    "initialize_",
    "plan",
    "request",
    "scheme_refusal",
    "stream",
]
