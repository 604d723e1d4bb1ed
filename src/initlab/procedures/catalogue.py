"""The procedures by name."""

from . import batches, gradients, residual
from .record import Procedure

PROCEDURES: dict[str, Procedure] = {row.name: row for row in (*batches.ROWS, *gradients.ROWS, *residual.ROWS)}
