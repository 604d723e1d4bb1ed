"""Schemes that look at depth, structure, a batch or gradients: records beside `SCHEMES`, and their engine.

`record` says what a procedure is, `engine` finds a module's roles, checks, applies and undoes; the families are rows.
Adding one is one row and one file `conf/init/<name>.yaml`.
"""

from .catalogue import PROCEDURES
from .coordinate import coordinate_check
from .engine import impossible, initialize_, is_procedure, procedure, rates
from .record import Case, Layer, Procedure
from .shaping import shape

__all__ = [
    "PROCEDURES",
    "Case",
    "Layer",
    "Procedure",
    "coordinate_check",
    "impossible",
    "initialize_",
    "is_procedure",
    "procedure",
    "rates",
    "shape",
]
