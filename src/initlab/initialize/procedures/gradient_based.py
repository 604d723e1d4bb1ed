"""Scales of whole weights learned from gradients before training: metainit, gradinit."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from initlab.initialize.procedures.passes import batch_loss, run_on_batch
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.inspection.batch import call_arguments, clone_tensors
from initlab.inspection.torch_internals import RunningNorm

MIN_SHARE = 0.01
"""Lower bound on a weight's norm (metainit) or scale (gradinit), as a share of its first."""


def gradient_quotient(loss: Tensor, parameters: Sequence[Tensor], eps: float = 1e-5) -> Tensor:
    """Return GQ = mean over parameters of |(g − H g)/(g + ε) − 1|: how far one step of rate 1 changes the gradient.

    ε has the sign of g, so that a vanishing gradient counts 1 and not 0.

    Source: Dauphin & Schoenholz 2019, "MetaInit: Initializing learning by learning to initialize".

    Args:
        loss: a scalar, a twice differentiable function of `parameters`.
        parameters: tensors that require grad.
        eps: size below which a gradient counts as vanished.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> round(gradient_quotient((x**2).sum(), [x]).item(), 3)
    2.0
    """
    grads = _gradients(loss, parameters)
    products = _gradients(sum((g.square().sum() for g in grads), torch.zeros(())) / 2, parameters)
    total = torch.zeros((), dtype=loss.dtype)
    for g, product in zip(grads, products, strict=True):
        sign = torch.where(g.detach() >= 0, eps, -eps)
        total = total + ((g - product) / (g + sign) - 1).abs().sum()
    return total / sum(p.numel() for p in parameters)


def _gradients(value: Tensor, tensors: Sequence[Tensor], create_graph: bool = True) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _metainit(context: ProcedureContext) -> None:
    given = context.parameters
    parameters = [p for p in context.module.parameters() if p.is_floating_point()]
    for p in parameters:
        p.requires_grad_(True)
    weights = [layer.parameter for layer in context.layers]
    tensors = [w.tensor for w in weights]
    first = [float(t.detach().norm()) for t in tensors]
    velocity = [0.0] * len(weights)
    smallest, best = math.inf, [t.detach().clone() for t in tensors]
    for _ in range(given["steps"] + 1):
        with torch.enable_grad():
            quotient = gradient_quotient(batch_loss(context, run_on_batch(context)), parameters)
            grads = _gradients(quotient, tensors, create_graph=False)
        # Steps of one size overshoot at the end: the best weights count, not the last.
        if float(quotient.detach()) < smallest:
            smallest, best = float(quotient.detach()), [t.detach().clone() for t in tensors]
        for k, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            values = weight.tensor.detach()
            norm = float(values.norm())
            if norm == 0:
                continue
            # The step has the sign of the derivative by the norm.
            direction = float(torch.sign((values * grad).sum()))
            velocity[k] = given["momentum"] * velocity[k] - given["lr"] * direction
            context.scale(weight, max(norm + velocity[k], MIN_SHARE * first[k]) / norm)
    for weight, values in zip(weights, best, strict=True):
        context.write(weight, values)


def _gradinit(context: ProcedureContext) -> None:
    given = context.parameters
    adam = given["optimizer"] == "adam"
    names = {id(p): name for name, p in context.module.named_parameters()}
    weights = [layer.parameter for layer in context.layers]
    start = {names[id(w.tensor)]: w.tensor.detach().clone() for w in weights}
    scales = [torch.ones((), dtype=w.tensor.dtype, requires_grad=True) for w in weights]
    mean, square = [0.0] * len(scales), [0.0] * len(scales)
    for step in range(1, given["steps"] + 1):
        with torch.enable_grad():
            # The second batch shares half of its samples with the first: on equal batches the step fits their noise.
            scaled = {name: value * m for (name, value), m in zip(start.items(), scales, strict=True)}
            loss = _slice_loss(context, scaled, 0.0, 2 / 3)
            grads = _gradients(loss, list(scaled.values()))
            norm = torch.stack([g.abs().sum() if adam else g.square().sum() for g in grads]).sum()
            objective = norm if adam else norm.sqrt()
            if float(objective.detach()) <= given["gamma"]:
                moves = [g.sign() for g in grads] if adam else grads
                moved = {n: v - given["eta_step"] * d for (n, v), d in zip(scaled.items(), moves, strict=True)}
                objective = _slice_loss(context, moved, 1 / 3, 1.0)
            slopes = _gradients(objective, scales, create_graph=False)
        for k, slope in enumerate(slopes):  # Adam on Python floats
            g = float(slope)
            mean[k], square[k] = 0.9 * mean[k] + 0.1 * g, 0.999 * square[k] + 0.001 * g * g
            update = mean[k] / (1 - 0.9**step) / ((square[k] / (1 - 0.999**step)) ** 0.5 + 1e-12)
            scales[k].data.sub_(given["lr"] * update).clamp_(min=MIN_SHARE)
    for weight, scale in zip(weights, scales, strict=True):
        context.scale(weight, scale.detach())


def _slice_loss(context: ProcedureContext, weights: dict[str, Tensor], begin: float, end: float) -> Tensor:
    positional, keywords = call_arguments(_slice_batch(clone_tensors(context.inputs), begin, end))
    output = functional_call(context.module, weights, tuple(positional), keywords)
    return batch_loss(replace(context, targets=_slice_batch(context.targets, begin, end)), output)


def _slice_batch(value: Any, begin: float, end: float) -> Any:
    if isinstance(value, Tensor):
        return value[round(begin * len(value)) : max(round(end * len(value)), 1)]
    if isinstance(value, dict):
        return {key: _slice_batch(own, begin, end) for key, own in value.items()}
    return type(value)(_slice_batch(own, begin, end) for own in value) if isinstance(value, (tuple, list)) else value


def _parametrization_refusal(context: ProcedureContext) -> str | None:
    for layer in context.layers:
        if layer.parameter.parametrization is not None:
            return f"scales weights themselves and {layer.name} is parametrized: apply it before the parametrization"
    return None if context.layers else "scales weights, and the module has none"


def _batch_norm_refusal(context: ProcedureContext) -> str | None:
    for name, module in context.module.named_modules():
        if isinstance(module, RunningNorm):
            return (
                f"needs third derivatives, which torch's batch normalization has not ({name}): take norm=layer or none"
            )
    return _parametrization_refusal(context)


_DATA = ("data", "loss")

ROWS = (
    Procedure(
        "metainit",
        "norms of the weights that minimize the gradient quotient mean|(g − Hg)/(g + ε) − 1|, by signed steps",
        _metainit,
        "Dauphin & Schoenholz 2019, MetaInit: Initializing learning by learning to initialize",
        2019,
        "he_normal",
        {"base": "he_normal", "batch": 64, "steps": 100, "lr": 0.1, "momentum": 0.9},
        _DATA,
        possible=_batch_norm_refusal,
    ),
    Procedure(
        "gradinit",
        "a scale for every weight that minimizes the loss after one step of rate eta_step, gradient norm ≤ gamma",
        _gradinit,
        "Zhu et al. 2021, GradInit: Learning to Initialize Neural Networks for Stable and Efficient Training",
        2021,
        "he_normal",
        {
            "base": "he_normal",
            "batch": 192,
            "steps": 100,
            "lr": 0.01,
            "eta_step": 0.1,
            "gamma": 1.0,
            "optimizer": "sgd",
        },
        _DATA,
        possible=_parametrization_refusal,
    ),
)
