"""Optimizers as rows over lists of tensors: every network of an ensemble is updated by the same calls as a lone one.

The updates equal torch.optim's, whose fused kernels they call: torch.optim itself imports a compiler at first use
(+1.8 s) and keeps its state by parameter. A list may hold the tensors of several networks with the same
hyperparameters; an element's new value depends on nothing but its own old one, gradient and slots.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = list[Tensor]
Slots: TypeAlias = dict[str, Tensors]
Hyper: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """One update rule: its slots (tensors like the parameters, starting at 0), its defaults, where it is from.

    `update(params, grads, slots, hyper, step)` changes `params` and `slots` in place; `step` counts from 1.
    """

    name: str
    slots: tuple[str, ...]
    update: Callable[[Tensors, Tensors, Slots, Hyper, int], None]
    defaults: Mapping[str, float | bool]
    reference: str

    def fresh_slots(self, params: Sequence[Tensor]) -> Slots:
        """Return zeroed slots for these parameters."""
        return {slot: [torch.zeros_like(p, requires_grad=False) for p in params] for slot in self.slots}


def sgd(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """v ← µ v + g + λ w; w ← w − η v (Nesterov: w ← w − η (g + µ v))."""
    torch._fused_sgd_(
        params,
        grads,
        slots["velocity"] if hyper["momentum"] else [],
        weight_decay=hyper["weight_decay"],
        momentum=hyper["momentum"],
        lr=hyper["lr"],
        dampening=0.0,
        nesterov=bool(hyper["nesterov"]),
        maximize=False,
        is_first_step=False,
    )


def adam(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """m ← β₁ m + (1−β₁) (g + λ w); v ← β₂ v + (1−β₂) (g + λ w)²; w ← w − η m̂ / (√v̂ + ε)."""
    call_adam_kernel(torch._fused_adam_, params, grads, slots["mean"], slots["square"], hyper, step)


def adamw(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """w ← (1 − η λ) w, then Adam."""
    call_adam_kernel(torch._fused_adamw_, params, grads, slots["mean"], slots["square"], hyper, step)


def call_adam_kernel(
    kernel: Callable, params: Tensors, grads: Tensors, mean: Tensors, square: Tensors, hyper: Hyper, step: float
) -> None:
    """Call one of torch's kernels of the Adam family."""
    steps = [torch.tensor(float(step), device=params[0].device)] * len(params)
    kernel(
        params,
        grads,
        mean,
        square,
        [],
        steps,
        lr=hyper["lr"],
        beta1=hyper["beta1"],
        beta2=hyper["beta2"],
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
        amsgrad=False,
        maximize=False,
    )


def adagrad(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """s ← s + g²; w ← w − η g / (√s + ε), with λ w joined to g."""
    torch._fused_adagrad_(
        params,
        grads,
        slots["square"],
        [torch.tensor(float(step), device=params[0].device)] * len(params),
        lr=hyper["lr"],
        lr_decay=0.0,
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
        maximize=False,
    )


def rmsprop(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """v ← α v + (1−α) g²; w ← w − η g / (√v + ε), with λ w joined to g and an optional momentum buffer.

    Without momentum it is Adam's rule at β₁ = 0 whose corrections of the start are over: so many steps have passed.
    """
    velocity, square = slots["velocity"], slots["square"]
    if not hyper["momentum"]:
        settled = {**hyper, "beta1": 0.0, "beta2": hyper["alpha"]}
        call_adam_kernel(torch._fused_adam_, params, grads, velocity, square, settled, float("inf"))
        return
    if hyper["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=hyper["weight_decay"]))
    torch._foreach_mul_(square, hyper["alpha"])
    torch._foreach_addcmul_(square, grads, grads, value=1 - hyper["alpha"])
    denominator = list(torch._foreach_sqrt(square))
    torch._foreach_add_(denominator, hyper["eps"])
    torch._foreach_mul_(velocity, hyper["momentum"])
    torch._foreach_addcdiv_(velocity, grads, denominator, value=1.0)
    torch._foreach_add_(params, velocity, alpha=-hyper["lr"])


ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer(
            "sgd", ("velocity",), sgd, {"lr": 0.01, "momentum": 0.9, "nesterov": False}, "Polyak 1964; Nesterov 1983"
        ),
        Optimizer("adam", ("mean", "square"), adam, ADAM, "Kingma & Ba 2015"),
        Optimizer("adamw", ("mean", "square"), adamw, ADAM, "Loshchilov & Hutter 2019"),
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


def gradient_norm(grads: Tensors) -> float:
    """Return the norm of one network's whole gradient, from one pass over it."""
    # A dot product is several times faster than a norm on tensors of this size (numpy's would start its own threads).
    return torch.stack([torch.dot(flat, flat) for flat in (g.reshape(-1) for g in grads)]).sum().sqrt().item()


def stacked_norms(grads: Tensors, networks: Sequence[Tensors]) -> list[float]:
    """Return the same of N networks, from gradients [N, …] and the same memory by network."""
    if not grads[0].is_cpu:
        norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0).tolist()
    # One by one: a sum over all rows of one tensor has another order when there is only one.
    each = torch.stack(torch._foreach_norm([g for own in networks for g in own])).view(len(networks), -1).tolist()
    return [math.sqrt(sum(norm * norm for norm in own)) for own in each]
