"""tanh by oneDNN where torch's own is slow: it comes from MKL, whose vector functions know Intel's processors alone.

On AMD's it took as long as the matrix product before it, nearly five times what oneDNN takes with both copies; both
are within 1e-7 of the true value. Every entry is computed alike wherever it lies, so members cannot tell how many there
are.
"""

from typing import Any

import torch
from torch import Tensor

from initlab.ensemble.products import narrow_library


def quick_tanh(x: Tensor) -> Tensor:
    """Return tanh of every entry.

    >>> quick_tanh(torch.tensor([-40.0, 0.0, 0.5]))
    tensor([-1.0000,  0.0000,  0.4621])
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not narrow_library():
        return torch.tanh(x)
    found: Tensor = Tanh.apply(x)
    return found


class Tanh(torch.autograd.Function):
    """tanh whose forward pass is oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Compute it, in oneDNN's own layout between two copies."""
        y: Tensor = x.to_mkldnn().tanh().to_dense()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:
        """Return δ (1 − tanh² x)."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(delta, y)
