"""Optimizers as rows over lists of tensors, so that one update serves one network or N stacked ones.

A hyperparameter is a float for a plain network and a tensor of N values for a stack, where member i of every tensor
[N, …] follows value i. The updates equal torch.optim's, which holds one value for all of a tensor and imports its
compiler at first use (+1.8 s).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Hyper: TypeAlias = float | Tensor
Tensors: TypeAlias = list[Tensor]
State: TypeAlias = dict[str, Tensors]


@dataclass(frozen=True)
class Optimizer:
    """One update rule: its slots (tensors like the parameters, starting at 0), its defaults, where it is from.

    `update(params, grads, state, hyper, step)` changes `params` and `state` in place; `step` counts from 1.
    """

    name: str
    slots: tuple[str, ...]
    update: Callable[[Tensors, Tensors, State, Mapping[str, Hyper], int], None]
    defaults: Mapping[str, float | bool]
    reference: str
    couples_decay: bool = True  # weight decay joins the gradient (L2), not the weight

    def fresh_state(self, params: Sequence[Tensor]) -> State:
        """Return zeroed slots for these parameters."""
        return {slot: [torch.zeros_like(p, requires_grad=False) for p in params] for slot in self.slots}


def spread(value: Hyper, like: Tensor) -> Hyper:
    """Shape N values so that they broadcast over a tensor [N, …]; a float stays a float."""
    return value.view(-1, *[1] * (like.dim() - 1)) if isinstance(value, Tensor) else value


def add_scaled_(params: Tensors, tensors: Tensors, factor: Hyper) -> None:
    """`params += factor · tensors`, in place."""
    if isinstance(factor, Tensor):
        torch._foreach_addcmul_(params, tensors, [spread(factor, p) for p in params])
    else:
        torch._foreach_add_(params, tensors, alpha=factor)


def add_ratio_(params: Tensors, numerators: Tensors, denominators: Tensors, factor: Hyper) -> None:
    """`params += factor · numerators / denominators`, in place."""
    if isinstance(factor, Tensor):
        numerators = [n * spread(factor, n) for n in numerators]
        torch._foreach_addcdiv_(params, numerators, denominators, value=1.0)
    else:
        torch._foreach_addcdiv_(params, numerators, denominators, value=factor)


def scale_(tensors: Tensors, factor: Hyper) -> None:
    """`tensors *= factor`, in place."""
    if isinstance(factor, Tensor):
        torch._foreach_mul_(tensors, [spread(factor, t) for t in tensors])
    else:
        torch._foreach_mul_(tensors, factor)


def nonzero(value: Hyper) -> bool:
    """Does any member have a value other than 0?"""
    return bool(value.any()) if isinstance(value, Tensor) else value != 0


def sgd(params: Tensors, grads: Tensors, state: State, hyper: Mapping[str, Hyper], step: int) -> None:
    """v ← µ v + g; w ← w − η v (Nesterov: w ← w − η (g + µ v))."""
    momentum = hyper["momentum"]
    if nonzero(momentum):
        velocity = state["velocity"]
        scale_(velocity, momentum)
        torch._foreach_add_(velocity, grads)
        if hyper["nesterov"]:
            grads = list(torch._foreach_add(grads, torch._foreach_mul(velocity, momentum)))
        else:
            grads = velocity
    add_scaled_(params, grads, -hyper["lr"])


def adam(params: Tensors, grads: Tensors, state: State, hyper: Mapping[str, Hyper], step: int) -> None:
    """m ← β₁ m + (1−β₁) g; v ← β₂ v + (1−β₂) g²; w ← w − η m̂ / (√v̂ + ε)."""
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    mean, square = state["mean"], state["square"]
    torch._foreach_lerp_(mean, grads, 1 - beta1)
    torch._foreach_mul_(square, beta2)
    torch._foreach_addcmul_(square, grads, grads, value=1 - beta2)
    denominator = list(torch._foreach_sqrt(square))
    torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominator, hyper["eps"])
    add_ratio_(params, mean, denominator, -hyper["lr"] / (1 - beta1**step))


def adamw(params: Tensors, grads: Tensors, state: State, hyper: Mapping[str, Hyper], step: int) -> None:
    """w ← (1 − η λ) w, then Adam."""
    if nonzero(hyper["weight_decay"]):
        scale_(params, 1 - hyper["lr"] * hyper["weight_decay"])
    adam(params, grads, state, hyper, step)


def adagrad(params: Tensors, grads: Tensors, state: State, hyper: Mapping[str, Hyper], step: int) -> None:
    """s ← s + g²; w ← w − η g / (√s + ε)."""
    torch._foreach_addcmul_(state["square"], grads, grads, value=1.0)
    denominator = list(torch._foreach_sqrt(state["square"]))
    torch._foreach_add_(denominator, hyper["eps"])
    add_ratio_(params, grads, denominator, -hyper["lr"])


def rmsprop(params: Tensors, grads: Tensors, state: State, hyper: Mapping[str, Hyper], step: int) -> None:
    """v ← α v + (1−α) g²; w ← w − η g / (√v + ε), with an optional momentum buffer."""
    alpha, square = hyper["alpha"], state["square"]
    torch._foreach_mul_(square, alpha)
    torch._foreach_addcmul_(square, grads, grads, value=1 - alpha)
    denominator = list(torch._foreach_sqrt(square))
    torch._foreach_add_(denominator, hyper["eps"])
    if nonzero(hyper["momentum"]):
        velocity = state["velocity"]
        torch._foreach_mul_(velocity, hyper["momentum"])
        torch._foreach_addcdiv_(velocity, grads, denominator, value=1.0)
        add_scaled_(params, velocity, -hyper["lr"])
    else:
        add_ratio_(params, grads, denominator, -hyper["lr"])


ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer(
            "sgd", ("velocity",), sgd, {"lr": 0.01, "momentum": 0.9, "nesterov": False}, "Polyak 1964; Nesterov 1983"
        ),
        Optimizer("adam", ("mean", "square"), adam, ADAM, "Kingma & Ba 2015"),
        Optimizer("adamw", ("mean", "square"), adamw, ADAM, "Loshchilov & Hutter 2019", couples_decay=False),
        Optimizer("adagrad", ("square",), adagrad, {"lr": 0.01, "eps": 1e-10}, "Duchi, Hazan & Singer 2011"),
        Optimizer(
            "rmsprop",
            ("square", "velocity"),
            rmsprop,
            {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0},
            "Tieleman & Hinton 2012",
        ),
    )
}


def gradient_norms(grads: Sequence[Tensor], stacked: bool) -> Tensor:
    """Return the norm of each network's whole gradient: [N] for stacks [N, …], else [1]."""
    if stacked:
        squares = [g.flatten(1).square().sum(1) for g in grads]
    else:
        # A dot product is several times faster than a norm on tensors of this size.
        squares = [torch.dot(flat, flat).view(1) for flat in (g.reshape(-1) for g in grads)]
    return torch.stack(squares).sum(0).sqrt()


def clip_(grads: Tensors, norms: Tensor, limit: Tensor, stacked: bool) -> None:
    """Scale each network's gradient to norm at most `limit` [N] (infinity: leave it), as torch does."""
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)
    scale_(grads, factor if stacked else float(factor))
