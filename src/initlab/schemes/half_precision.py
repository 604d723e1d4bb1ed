"""The 16-bit number formats: which real numbers round to a stored value. It gives rounded draws an exact law."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
"""Formats so coarse that rounding is visible in a large tensor: elements are tested against the rounded law."""

MAX_FINITE_BITS = 0x7FFF


@dataclass(frozen=True)
class RoundingIntervals:
    """Bounds of the real numbers that round to each value of a format, in ascending order of the values.

    `lower` and `upper` are indexed by `index(tensor)`; they are nan for what is not a finite number.
    """

    lower: np.ndarray
    upper: np.ndarray

    @staticmethod
    def index(tensor: Tensor) -> np.ndarray:
        """Return the place of each element of a 16-bit tensor in the ascending order of all values of its dtype."""
        bits = tensor.detach().cpu().contiguous().view(torch.int16).numpy().astype(np.int32)
        return np.where(bits >= 0, bits, -(bits & MAX_FINITE_BITS)) + MAX_FINITE_BITS


@cache
def rounding_intervals(dtype: torch.dtype) -> RoundingIntervals:
    """Return the cells of bfloat16 or float16.

    >>> intervals = rounding_intervals(torch.bfloat16)
    >>> one = RoundingIntervals.index(torch.ones(1, dtype=torch.bfloat16))
    >>> float(intervals.lower[one][0]), float(intervals.upper[one][0])
    (0.998046875, 1.00390625)
    """
    bits = torch.arange(MAX_FINITE_BITS + 1, dtype=torch.int32, device="cpu").to(torch.int16)
    values = bits.view(dtype).double().numpy()
    finite = values[np.isfinite(values)]
    step = finite[-1] - finite[-2]
    upper = np.full(MAX_FINITE_BITS + 1, np.nan)
    upper[: finite.size] = np.append((finite[1:] + finite[:-1]) / 2, finite[-1] + step / 2)
    lower = np.append(-upper[0], upper[:-1])
    return RoundingIntervals(np.concatenate([-upper[:0:-1], lower]), np.concatenate([-lower[:0:-1], upper]))
