"""tanh by numpy where torch's own is slow: it comes from MKL, whose vector functions know Intel's processors alone.

On AMD's it takes as long as the matrix product before it, six to twelve times what numpy's vector code takes; both are
within 1.1e-7 of the true value, relative to it. Every entry is computed alike wherever it lies, so members cannot tell
how many there are.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.ensemble.cpu.openblas import Call, amd_family, fast_cpu_enabled


def numpy_tanh_is_faster() -> bool:
    """Is torch's own slow on this processor, and numpy's allowed?"""
    return torch.backends.mkl.is_available() and amd_family() > 0 and fast_cpu_enabled()


def fast_tanh(x: Tensor) -> Tensor:
    """Return tanh of every entry.

    >>> fast_tanh(torch.tensor([-40.0, 0.0, 0.5]))
    tensor([-1.0000,  0.0000,  0.4621])
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not numpy_tanh_is_faster():
        return torch.tanh(x)
    found: Tensor = NumpyTanh.apply(x)
    return found


def tanh_call(x: Tensor) -> Call:
    """Return the call that puts tanh in the place of every entry; no gradients flow through it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not numpy_tanh_is_faster():
        return x.tanh_
    entries = x.detach().numpy()
    return partial(np.tanh, entries, entries)


class NumpyTanh(torch.autograd.Function):
    """tanh whose forward pass is numpy's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Compute it."""
        y = torch.empty_like(x)
        np.tanh(x.detach().numpy(), out=y.numpy())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        """Return δ (1 − tanh² x)."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(delta, y)
