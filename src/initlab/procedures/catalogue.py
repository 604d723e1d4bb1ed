"""The procedures by name."""

from . import batches, gradients, mup, residual, shaping, transformers
from .record import Procedure

FAMILIES = (batches, gradients, residual, transformers, mup, shaping)

PROCEDURES: dict[str, Procedure] = {row.name: row for family in FAMILIES for row in family.ROWS}
