"""Activations and their derivatives without autograd, and tanh by numpy where torch's own is slow.

Worth: with autograd for the derivatives of activations, training takes 1.3 (ReLU) to 2 times (tanh) the CPU time; with
torch's tanh 1.25 to 1.35 times (8 perceptrons of width 128 and depth 3 or 10, one thread, AMD EPYC of family 26,
torch 2.14.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.processor import amd_family, fast_cpu_enabled

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class ActivationKernel:
    """One activation φ and its derivative without autograd.

    `forward(z, y, act)` writes φ(z) to y. `backward(delta, saved, act)` multiplies δ by φ'(z) in place; `saved` is z,
    or y where `in_place` is set: there y is z's own memory.
    """

    forward: Callable[[Tensor, Tensor, Any], Any]
    backward: Callable[[Tensor, Tensor, Any], Any]
    in_place: bool = False


def tanh_(z: Tensor) -> None:
    """Replace every entry by its tanh; no gradients flow through it."""
    if numpy_tanh_is_faster(z):
        entries = z.numpy()
        np.tanh(entries, entries)
    else:
        z.tanh_()


ACTIVATION_KERNELS: dict[type[nn.Module], ActivationKernel] = {
    nn.Identity: ActivationKernel(lambda z, y, act: None, lambda delta, y, act: None, in_place=True),
    nn.ReLU: ActivationKernel(
        lambda z, y, act: z.relu_(),
        lambda delta, y, act: aten.threshold_backward.grad_input(delta, y, 0, grad_input=delta),
        in_place=True,
    ),
    nn.Tanh: ActivationKernel(
        lambda z, y, act: tanh_(z),
        lambda delta, y, act: aten.tanh_backward.grad_input(delta, y, grad_input=delta),
        in_place=True,
    ),
    nn.GELU: ActivationKernel(
        lambda z, y, act: aten.gelu.out(z, approximate=act.approximate, out=y),
        lambda delta, z, act: aten.gelu_backward.grad_input(delta, z, approximate=act.approximate, grad_input=delta),
    ),
    nn.SiLU: ActivationKernel(
        lambda z, y, act: aten.silu.out(z, out=y),
        lambda delta, z, act: aten.silu_backward.grad_input(delta, z, grad_input=delta),
    ),
    nn.LeakyReLU: ActivationKernel(
        lambda z, y, act: aten.leaky_relu.out(z, act.negative_slope, out=y),
        lambda delta, z, act: aten.leaky_relu_backward.grad_input(
            delta, z, act.negative_slope, False, grad_input=delta
        ),
    ),
    nn.ELU: ActivationKernel(
        lambda z, y, act: aten.elu.out(z, act.alpha, out=y),
        lambda delta, z, act: aten.elu_backward.grad_input(delta, act.alpha, 1, 1, False, z, grad_input=delta),
    ),
    nn.Softplus: ActivationKernel(
        lambda z, y, act: aten.softplus.out(z, act.beta, act.threshold, out=y),
        lambda delta, z, act: aten.softplus_backward.grad_input(delta, z, act.beta, act.threshold, grad_input=delta),
    ),
}


def fast_activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return an elementwise module, or the same function where torch's is slow on this processor.

    >>> fast_activation(nn.Tanh())(torch.tensor([-40.0, 0.0, 0.5]))
    tensor([-1.0000,  0.0000,  0.4621])
    """
    return tanh if type(module) is nn.Tanh else module


def tanh(x: Tensor) -> Tensor:
    """Return tanh of every entry."""
    found: Tensor = NumpyTanh.apply(x) if numpy_tanh_is_faster(x) else torch.tanh(x)
    return found


def numpy_tanh_is_faster(x: Tensor) -> bool:
    """Return whether numpy computes the tanh of x faster than torch.

    torch takes it from MKL, whose vector functions know Intel's processors alone: on AMD's they take six to twelve
    times as long as numpy's. Both are within 1.1e-7 of the true value, relative to it. numpy computes every entry alike
    wherever it lies, so no result depends on the number of members.
    """
    return x.is_cpu and x.dtype == torch.float32 and amd_family() > 0 and fast_cpu_enabled()


class NumpyTanh(torch.autograd.Function):
    """tanh whose forward pass is numpy's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return tanh x."""
        y = torch.empty_like(x)
        np.tanh(x.detach().numpy(), out=y.numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        """Return δ (1 − tanh² x)."""
        (y,) = ctx.saved_tensors
        return aten.tanh_backward(delta, y)
