"""The loss of one member and its gradient, without autograd, whose way takes 1.06 to 1.2 times the time of training."""

import torch
from torch import Tensor
from torch.nn import functional as F


def member_loss(outputs: Tensor, y: Tensor, delta: Tensor) -> float:
    """Return mean cross-entropy or mean squared error of one member, and write its gradient to `delta`.

    Args:
        outputs: [C, B]: classes or values in rows, samples in columns.
        y: labels [B], int64, or values [B, C].
        delta: memory for the gradient by the outputs [C, B].

    >>> delta = torch.empty(2, 1)
    >>> round(member_loss(torch.zeros(2, 1), torch.tensor([1]), delta), 4), delta.tolist()
    (0.6931, [[0.5], [-0.5]])
    """
    if y.is_floating_point():
        torch.sub(outputs, y.t(), out=delta)
        loss = delta.square().mean().item()
        delta.mul_(2 / delta.numel())
        return loss
    logs = F.log_softmax(outputs, 0)
    torch.exp(logs, out=delta).scatter_add_(0, y[None], delta.new_full((1, len(y)), -1.0)).div_(len(y))
    return F.nll_loss(logs.t(), y).item()
