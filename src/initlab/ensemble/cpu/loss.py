"""The loss of one network of a lane, and its gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.ensemble.cpu.openblas import dot_call


@dataclass(frozen=True)
class MemberLoss:
    """The loss of one member on labels [B] or values [B, C], and its gradient by the outputs, both of these [C, B].

    >>> delta = torch.empty(2, 1)
    >>> loss = MemberLoss(torch.tensor([1]), classes=2, dtype=torch.float32)(torch.zeros(2, 1), delta)
    >>> round(loss, 4), delta.tolist()
    (0.6931, [[0.5], [-0.5]])
    """

    y: Tensor
    classes: int
    dtype: torch.dtype
    right: Tensor = field(init=False)  # the values, or -1/B at every label: once for all members
    logs: Tensor = field(init=False)  # memory for the logarithms of one member's probabilities
    entropy: Callable[[], float] = field(init=False)  # their cross-entropy, as they are then

    def __post_init__(self) -> None:
        one_hot = None if self.y.is_floating_point() else F.one_hot(self.y, self.classes).to(self.dtype)
        values = self.y if one_hot is None else one_hot / -len(self.y)
        object.__setattr__(self, "right", values.t().contiguous())
        object.__setattr__(self, "logs", torch.empty_like(self.right))
        object.__setattr__(self, "entropy", dot_call(self.logs, self.right))

    def __call__(self, outputs: Tensor, delta: Tensor) -> float:
        """Return mean cross-entropy or mean squared error, and write the gradient to `delta`."""
        if self.y.is_floating_point():
            torch.sub(outputs, self.right, out=delta)
            loss = delta.square().mean().item()
            delta.mul_(2 / delta.numel())
            return loss
        # Not by `torch.ops.aten`, whose calls take twice as long as these kernels.
        torch._log_softmax(outputs, 0, False, out=self.logs)
        torch._log_softmax_backward_data(self.right, self.logs, 0, self.dtype, out=delta)
        loss = self.entropy()
        # Where a class is impossible its logarithm is infinite, and the loss finite all the same unless it is right.
        return F.nll_loss(self.logs.t(), self.y).item() if math.isnan(loss) else loss
