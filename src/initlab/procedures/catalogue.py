"""The procedures by name."""

from . import batches, residual
from .record import Procedure

PROCEDURES: dict[str, Procedure] = {row.name: row for row in (*batches.ROWS, *residual.ROWS)}
