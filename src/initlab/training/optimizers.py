"""Optimizers as rows over lists of tensors: every network of an ensemble is updated by the same calls as a lone one.

The updates equal torch.optim's, which keeps its state by parameter. A list may hold the tensors of several networks
with the same hyperparameters; an element's new value depends on nothing but its old one, gradient and slots.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop as torch_rmsprop

from initlab.training.fused_kernels import apply_adaptive, apply_sgd, tensor_norms

Tensors: TypeAlias = list[Tensor]
Slots: TypeAlias = dict[str, Tensors]
Hyper: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """One update rule.

    Attributes:
        name: its name in `OPTIMIZERS`, and of its file in conf/optim.
        slots: names of its buffers: tensors like the parameters, starting at 0.
        update: `update(params, grads, slots, hyper, step)` changes `params` and `slots` in place; `step` counts from 1.
        defaults: its own hyperparameters, the keys `optim.*`.
        reference: where it is from.
        adaptive: whether it divides gradients by their size, so that the size of an update does not depend on theirs.
    """

    name: str
    slots: tuple[str, ...]
    update: Callable[[Tensors, Tensors, Slots, Hyper, int], None]
    defaults: Mapping[str, float | bool]
    reference: str
    adaptive: bool = True

    def allocate_slots(self, params: Sequence[Tensor]) -> Slots:
        """Return zeroed slots for these parameters."""
        return {slot: [torch.zeros_like(p, requires_grad=False) for p in params] for slot in self.slots}


def sgd(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """v ← µ v + g + λ w; w ← w − η v (Nesterov: w ← w − η (g + µ v))."""
    options = {name: hyper[name] for name in ("lr", "momentum", "weight_decay")}
    velocity = slots["velocity"] if hyper["momentum"] else []
    apply_sgd(params, grads, velocity, nesterov=bool(hyper["nesterov"]), **options)


def adam(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: float, name: str = "adam") -> None:
    """m ← β₁ m + (1−β₁) (g + λ w); v ← β₂ v + (1−β₂) (g + λ w)²; w ← w − η m̂ / (√v̂ + ε)."""
    options = {name: hyper[name] for name in ("lr", "beta1", "beta2", "weight_decay", "eps")}
    apply_adaptive(name, params, grads, slots["mean"], slots["square"], [], step=step, amsgrad=False, **options)


def adamw(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """w ← (1 − η λ) w, then Adam."""
    adam(params, grads, slots, hyper, step, name="adamw")


def adagrad(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """s ← s + g²; w ← w − η g / (√s + ε), with λ w joined to g."""
    options = {name: hyper[name] for name in ("lr", "weight_decay", "eps")}
    apply_adaptive("adagrad", params, grads, slots["square"], step=step, lr_decay=0.0, **options)


def rmsprop(params: Tensors, grads: Tensors, slots: Slots, hyper: Hyper, step: int) -> None:
    """v ← α v + (1−α) g²; w ← w − η g / (√v + ε), with λ w joined to g and an optional momentum buffer.

    Without momentum it is Adam's rule at β₁ = 0 after infinitely many steps, where its corrections are 1.
    """
    if not hyper["momentum"]:
        as_adam = {**hyper, "beta1": 0.0, "beta2": hyper["alpha"]}
        adam(params, grads, {"mean": slots["velocity"], "square": slots["square"]}, as_adam, math.inf)
        return
    options = {name: hyper[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum")}
    steps = [torch.tensor(step - 1.0) for _ in params]
    torch_rmsprop(params, grads, slots["square"], [], slots["velocity"], steps, foreach=True, centered=False, **options)


ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SGD = {"lr": 0.01, "momentum": 0.9, "nesterov": False}
RMSPROP = {"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0}
OPTIMIZERS: dict[str, Optimizer] = {
    o.name: o
    for o in (
        Optimizer("sgd", ("velocity",), sgd, SGD, "Polyak 1964; Nesterov 1983", adaptive=False),
        Optimizer("adam", ("mean", "square"), adam, ADAM, "Kingma & Ba 2015"),
        Optimizer("adamw", ("mean", "square"), adamw, ADAM, "Loshchilov & Hutter 2019"),
        Optimizer("adagrad", ("square",), adagrad, {"lr": 0.01, "eps": 1e-10}, "Duchi, Hazan & Singer 2011"),
        Optimizer("rmsprop", ("square", "velocity"), rmsprop, RMSPROP, "Tieleman & Hinton 2012"),
    )
}


def gradient_norms(networks: Sequence[Tensors]) -> list[float]:
    """Return the norm of each network's whole gradient."""
    # Tensor by tensor: a sum over all rows of one tensor has another order when there is only one.
    tensors = [grad for own in networks for grad in own]
    if len(tensors) == 1:
        return [torch.linalg.vector_norm(tensors[0]).item()]
    norms = torch.stack(tensor_norms(tensors))
    return [math.hypot(*own) for own in norms.view(len(networks), -1).tolist()]
