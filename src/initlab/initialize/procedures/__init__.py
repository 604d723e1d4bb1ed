"""Schemes that look at depth, structure, a batch or gradients: records beside `SCHEMES`, and their engine.

`record` says what a procedure is, `engine` finds a module's roles, checks, applies and undoes; the families are rows.
Adding one is one row and one file `conf/init/<name>.yaml`.
"""

from initlab.initialize.procedures.catalogue import PROCEDURES
from initlab.initialize.procedures.coordinate_check import coordinate_check
from initlab.initialize.procedures.engine import initialize_, is_procedure, procedure, procedure_refusal, rates
from initlab.initialize.procedures.kernel_shaping import shape
from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer

__all__ = [
    "PROCEDURES",
    "Procedure",
    "ProcedureContext",
    "RoleLayer",
    "coordinate_check",
    "initialize_",
    "is_procedure",
    "procedure",
    "procedure_refusal",
    "rates",
    "shape",
]
