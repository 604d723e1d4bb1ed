"""Maximal update parametrization: laws and rates by which the updates of every layer do not depend on the width."""

from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.schemes import SCHEMES

INPUT_ROLES = ("first", "embedding")


def width_ratio(context: ProcedureContext) -> float:
    """Return the width of the first layer's or the embedding's output over `base_width`."""
    first = context.layers_of_role(*INPUT_ROLES)[0].parameter
    width = first.shape[-1] if first.kind == "embedding" else sum(block.shape[0] for block in first.blocks)
    return width / context.parameters["base_width"]


def _mup(context: ProcedureContext) -> None:
    ratio = width_ratio(context)
    for layer in context.layers_of_role("readout"):
        context.fill(layer, SCHEMES["lecun_normal"], ratio**-0.5)


def _rate_factors(context: ProcedureContext, optimizer: str) -> dict[str, float]:
    # Yang et al. 2022, table 3: with a rate that is divided by the gradient's size (Adam's), and without (SGD's).
    ratio, adaptive = width_ratio(context), optimizer != "sgd"
    readouts = context.layers_of_role("readout")
    matrices = {layer.parameter.name for layer in context.layers if layer.role not in (*INPUT_ROLES, "readout")}
    factors = {}
    for name, _ in context.module.named_parameters():
        vector, matrix = (1.0, 1 / ratio) if adaptive else (ratio, 1.0)
        factors[name] = matrix if name in matrices else vector
    for layer in readouts:
        for bias in layer.biases:
            factors.pop(bias.name, None)
        factors[layer.parameter.name] = 1 / ratio
    return factors


def _input_layer_refusal(context: ProcedureContext) -> str | None:
    if not context.layers_of_role(*INPUT_ROLES):
        return (
            "must know the layer that the data enter and the module declares none: "
            "name it with roles={'first': 'stem', 'readout': 'head'} or roles={'embedding': 'wte', 'readout': 'head'}"
        )
    return None


ROWS = (
    Procedure(
        "mup",
        "Var 1/n, readout 1/(n·r), r = width/base_width; Adam's rate/r in hidden layers and readout; attention 1/d",
        _mup,
        "Yang et al. 2022, Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
        2022,
        "lecun_normal",
        {"base_width": 64},
        ("structure", "rates", "architecture"),
        {"readout": "head"},
        {"attention_power": 1},
        ("attention_power",),
        _input_layer_refusal,
        multipliers=_rate_factors,
    ),
)
