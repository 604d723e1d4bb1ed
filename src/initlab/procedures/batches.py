"""Layers adjusted to a batch: lsuv, weight_norm_init, data_dependent."""

from collections.abc import Callable

from torch import Tensor

from initlab.errors import UserError

from .passes import layerwise
from .record import Case, Layer, Procedure

SMALLEST = 1e-30
"""Variance below which an output counts as constant."""


def _lsuv(case: Case) -> None:
    layerwise(case, _unit_variance)


def _unit_variance(case: Case, layer: Layer, output: Callable[[], Tensor]) -> None:
    tolerance = case.parameters["tolerance"]
    variance = 0.0
    for _ in range(case.parameters["steps"]):
        variance = float(output().double().var(correction=0))
        if not SMALLEST < variance < float("inf"):
            raise UserError(
                f"init=lsuv cannot bring {layer.name} to variance 1: its preactivation has variance {variance:g} on "
                "this batch, whatever the weight's scale; the activation before it puts out a constant, or the data do."
            )
        if abs(variance - 1) < tolerance:
            return
        case.scale(layer.parameter, variance**-0.5)


_BATCH = {"batch": 256}

ROWS = (
    Procedure(
        "lsuv",
        "orthogonal, then layer by layer W /= std(W x) on a batch until |Var − 1| < tolerance",
        _lsuv,
        "Mishkin & Matas 2016, All you need is a good init",
        2016,
        "orthogonal",
        {"base": "orthogonal", "tolerance": 0.01, "steps": 10, **_BATCH},
        ("data",),
    ),
)
