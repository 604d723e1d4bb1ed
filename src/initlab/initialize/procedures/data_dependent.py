"""Procedures that adjust layers to a batch: lsuv, weight_norm_init, data_dependent."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.initialize.procedures.passes import adjust_layers, run_on_batch, view_by_unit
from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer, is_homogeneous
from initlab.inspection.loss import main_output

MIN_VARIANCE = 1e-30
"""Variance below which an output counts as constant."""


def _lsuv(context: ProcedureContext) -> None:
    adjust_layers(context, _scale_to_unit_variance)


def _scale_to_unit_variance(context: ProcedureContext, layer: RoleLayer, output: Callable[[], Tensor]) -> None:
    for _ in range(context.parameters["steps"]):
        variance = float(output().double().var(correction=0))
        if not MIN_VARIANCE < variance < math.inf:
            raise UserError(
                f"init=lsuv cannot bring {layer.name} to variance 1: its preactivation has variance {variance:g} on "
                "this batch, whatever the weight's scale; the activation before it is constant there, or the data."
            )
        if abs(variance - 1) < context.parameters["tolerance"]:
            return
        context.scale(layer.parameter, variance**-0.5)


def _standardize_units(context: ProcedureContext) -> None:
    adjust_layers(context, _standardize_layer)


def _standardize_layer(context: ProcedureContext, layer: RoleLayer, output: Callable[[], Tensor]) -> None:
    for bias in layer.biases:
        context.set_constant(bias, 0.0)
    preactivations = view_by_unit(output(), layer).double()
    mean, std = preactivations.mean(0), preactivations.std(0, correction=0)
    varies = std > math.sqrt(MIN_VARIANCE)
    if not bool(varies.any()):
        raise UserError(
            f"init={context.procedure.name} cannot standardize {layer.name}: every unit is constant on this "
            "batch, whatever its weight's scale; the activation before it is, or the data."
        )
    # The batch gives a constant unit no scale: its weights do not change.
    factor = torch.where(varies, 1 / std, torch.ones_like(std))
    scale_units(context, layer, factor)
    if len(layer.biases) == 1:
        context.write(layer.biases[0], (-mean * factor).to(layer.biases[0].tensor))


def scale_units(context: ProcedureContext, layer: RoleLayer, factor: Tensor) -> None:
    """Multiply each unit's incoming weights by its factor.

    Args:
        context: where the weight is written.
        layer: the layer.
        factor: one number per unit, [units].
    """
    values, start = layer.parameter.values().clone(), 0
    for block in layer.parameter.blocks:
        view = block.view(values)
        own = factor[start : start + len(view)].to(view)
        view.mul_(own.view(-1, *[1] * (view.dim() - 1)))
        start += len(view)
    context.write(layer.parameter, values)


def _data_dependent(context: ProcedureContext) -> None:
    _standardize_units(context)
    if context.parameters["equal_rates"] and is_chain(context):
        equalize_rates(context)


def is_chain(context: ProcedureContext) -> bool:
    """Return whether the network is a chain of layers with φ(cx) = c φ(x), so that scale can move between layers."""
    plain = all(layer.fed_by in ("data", "activation") and not layer.branch for layer in context.layers)
    return plain and len(context.layers) > 1 and is_homogeneous(context.act)


def relative_gradients(context: ProcedureContext) -> list[float]:
    """Return ‖∂ℓ/∂W‖/‖W‖ of every layer for ℓ = Σ η·output, η ~ N(0, 1) for every sample and output.

    The expected square of the norm over η is the sum of the samples' squares.
    """
    tensors = [layer.parameter.tensor for layer in context.layers]
    with torch.enable_grad():
        output = main_output(run_on_batch(context))
        assert output is not None
        eta = torch.randn(output.shape, generator=context.generator("change rates")).to(output)
        grads = torch.autograd.grad((eta * output).sum(), tensors)
    return [float(g.norm() / t.detach().norm()) for g, t in zip(grads, tensors, strict=True)]


def equalize_rates(context: ProcedureContext) -> None:
    """Move scale between the layers of a homogeneous chain so that all change at one rate and outputs stay equal.

    With W_k ← s_k W_k, Π s = 1, the output is the same, and layer k's gradient is divided by s_k: its rate by s_k².
    """
    relative = relative_gradients(context)
    if not all(0 < rate < math.inf for rate in relative):
        return
    center = sum(math.log(rate) for rate in relative) / len(relative)
    total = 1.0
    for layer, rate in zip(context.layers, relative, strict=True):
        factor = math.exp((math.log(rate) - center) / 2)
        total *= factor
        context.scale(layer.parameter, factor)
        for bias in layer.biases:
            context.scale(bias, total)


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
    Procedure(
        "data_dependent",
        "every unit mean 0, variance 1 on a batch; then, in chains of homogeneous φ, all layers change at one rate",
        _data_dependent,
        "Krähenbühl, Doersch, Donahue & Darrell 2016, Data-dependent Initializations of Convolutional Neural Networks",
        2016,
        "lecun_normal",
        {"base": "lecun_normal", "equal_rates": True, **_BATCH},
        ("data",),
    ),
    Procedure(
        "weight_norm_init",
        "w = g·v/|v|, g = 1/σ, b = −µ/σ, µ and σ of v·x/|v| on a batch; v Gaussian",
        _standardize_units,
        "Salimans & Kingma 2016, Weight Normalization: A Simple Reparameterization to Accelerate Training",
        2016,
        "naive_normal",
        {"base": "naive_normal", **_BATCH},
        ("data",),
    ),
)
