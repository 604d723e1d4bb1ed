"""The procedures by name."""

from initlab.initialize.procedures import data_dependent, gradient_based, kernel_shaping, mup, residual, transformers
from initlab.initialize.procedures.record import Procedure

FAMILIES = (data_dependent, gradient_based, residual, transformers, mup, kernel_shaping)

PROCEDURES: dict[str, Procedure] = {row.name: row for family in FAMILIES for row in family.ROWS}
