"""Activations by plain calls bound to memory, and how a gradient passes them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.openblas import Call
from initlab.ensemble.cpu.tanh import tanh_call


@dataclass(frozen=True)
class ActivationKernel:
    """One activation φ: `ahead(z, y, φ)` is the call that writes y = φ(z), `back(δ, kept, φ)` the one that δ passes.

    `kept` is z, or y where `in_place` is set: there y is z's own memory. δ is overwritten by δ φ'(z).
    """

    ahead: Callable[[Tensor, Tensor, Any], Call]
    back: Callable[[Tensor, Tensor, Any], Call]
    in_place: bool = False


def do_nothing() -> None:
    """Leave everything as it is."""


def raw_operator(operator: Any) -> Callable[..., Any]:
    """Return one of torch's operators without the Python around it.

    Products drive that out of the cache; fetching it again would take up to 5 µs a call, as long as the operator.
    """
    found: Callable[..., Any] = getattr(operator, "_op", operator)
    return found


aten: Any = torch.ops.aten
ACTIVATION_KERNELS: dict[type[nn.Module], ActivationKernel] = {
    nn.Identity: ActivationKernel(lambda z, y, phi: do_nothing, lambda delta, y, phi: do_nothing, in_place=True),
    nn.ReLU: ActivationKernel(
        lambda z, y, phi: z.relu_,
        lambda delta, y, phi: partial(raw_operator(aten.threshold_backward.grad_input), delta, y, 0, grad_input=delta),
        in_place=True,
    ),
    nn.Tanh: ActivationKernel(
        lambda z, y, phi: tanh_call(z),
        lambda delta, y, phi: partial(raw_operator(aten.tanh_backward.grad_input), delta, y, grad_input=delta),
        in_place=True,
    ),
    nn.GELU: ActivationKernel(
        lambda z, y, phi: partial(raw_operator(aten.gelu.out), z, approximate=phi.approximate, out=y),
        lambda delta, z, phi: partial(
            raw_operator(aten.gelu_backward.grad_input), delta, z, approximate=phi.approximate, grad_input=delta
        ),
    ),
    nn.SiLU: ActivationKernel(
        lambda z, y, phi: partial(raw_operator(aten.silu.out), z, out=y),
        lambda delta, z, phi: partial(raw_operator(aten.silu_backward.grad_input), delta, z, grad_input=delta),
    ),
    nn.LeakyReLU: ActivationKernel(
        lambda z, y, phi: partial(raw_operator(aten.leaky_relu.out), z, phi.negative_slope, out=y),
        lambda delta, z, phi: partial(
            raw_operator(aten.leaky_relu_backward.grad_input), delta, z, phi.negative_slope, False, grad_input=delta
        ),
    ),
    nn.ELU: ActivationKernel(
        lambda z, y, phi: partial(raw_operator(aten.elu.out), z, phi.alpha, out=y),
        lambda delta, z, phi: partial(
            raw_operator(aten.elu_backward.grad_input), delta, phi.alpha, 1, 1, False, z, grad_input=delta
        ),
    ),
    nn.Softplus: ActivationKernel(
        lambda z, y, phi: partial(raw_operator(aten.softplus.out), z, phi.beta, phi.threshold, out=y),
        lambda delta, z, phi: partial(
            raw_operator(aten.softplus_backward.grad_input), delta, z, phi.beta, phi.threshold, grad_input=delta
        ),
    ),
}
