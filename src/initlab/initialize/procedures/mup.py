"""Maximal update parametrization: laws and rates by which every layer moves as much at every width."""

from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.schemes import SCHEMES

INPUT_ROLES = ("first", "embedding")


def width_ratio(case: ProcedureContext) -> float:
    """Return the width of the stream, which the first layer or the embedding puts out, over `base_width`."""
    first = case.of_role(*INPUT_ROLES)[0].parameter
    width = first.shape[-1] if first.kind == "embedding" else sum(block.shape[0] for block in first.blocks)
    return width / case.parameters["base_width"]


def _mup(case: ProcedureContext) -> None:
    ratio = width_ratio(case)
    for layer in case.of_role("readout"):
        case.fill(layer, SCHEMES["lecun_normal"], ratio**-0.5)


def _rate_factors(case: ProcedureContext, optimizer: str) -> dict[str, float]:
    # Yang et al. 2022, table 3: with a rate that is divided by the gradient's size (Adam's), and without (SGD's).
    ratio, adaptive = width_ratio(case), optimizer != "sgd"
    ends = case.of_role("readout")
    outputs = {p.name for layer in ends for p in (layer.parameter, *layer.biases)}
    matrices = {layer.parameter.name for layer in case.layers if layer.role not in (*INPUT_ROLES, "readout")}
    found = {layer.parameter.name: 1 / ratio for layer in ends}
    for name, _ in case.module.named_parameters():
        if name in outputs:
            continue
        if name in matrices:
            found[name] = 1 / ratio if adaptive else 1.0
        else:
            found[name] = 1.0 if adaptive else ratio
    return found


def _input_layer_refusal(case: ProcedureContext) -> str | None:
    if not case.of_role(*INPUT_ROLES):
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
