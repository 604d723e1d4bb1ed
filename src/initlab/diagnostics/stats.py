"""Statistics of one layer as rows of a table: name -> function of a float64 tensor with one leading member axis.

Tensors at samples are [N, S, U]: N networks, S samples (positions of a map count as samples), U units. Tensors of a
weight are [N, …]. Sums run in float64, so that squares of 1e-30 are small numbers and not zeros.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from initlab.diagnostics.units import duplicate_units, effective_rank
from initlab.statistics.histograms import Histogram


@dataclass(frozen=True)
class Stat:
    """One statistic: the tensor it is of, and its function [N, …] -> [N].

    `of` is `preactivation`, `postactivation`, `delta` (the loss gradient at the preactivation), `weight` or `gradient`
    (of the weight). Four more are for a look at one network at one step, not for every record of a training:
    `inputs` [N, B, …], the preactivations by input of the batch; `matrix` [N, G, out, in], the blocks of a weight, and
    `units`, the same with the bias as a further column (training takes `inputs` and `units` at step 0); `spectrum`
    [N, S, k], squared singular values of the Jacobians
    ∂h/∂input of S samples. Adding a statistic is one row of `STATS`.

    `counted` reads the same number off a histogram of the tensor, which training counts anyway, if it can (else None);
    it is asked only where every value is finite. A statistic that only `compares` entries is given the tensor as it is.
    """

    name: str
    of: str
    measure: Callable[[Tensor], Tensor]
    meaning: str
    counted: Callable[[Histogram], float | None] = lambda record: None
    compares: bool = False


def mean_square(x: Tensor) -> Tensor:
    """Second moment over everything but the member axis."""
    return x.flatten(1).square().mean(1)


def standard_deviation(x: Tensor) -> Tensor:
    """Root of the mean square about each member's mean."""
    # A tenth of what Tensor.std takes, whose sums moreover have another order for another number of threads.
    x = x.flatten(1)
    return (x - x.mean(1, keepdim=True)).square_().mean(1).sqrt()


def histogram_std(record: Histogram) -> float | None:
    """Read the standard deviation off the sums of a histogram, unless the mean is so large that digits would be lost.

    >>> import numpy as np
    >>> from initlab.statistics.histograms import histogram
    >>> histogram_std(histogram(np.array([1.0, 3.0]))), histogram_std(histogram(np.array([1e6, 1e6 + 1.0])))
    (1.0, None)
    """
    mean, q = record.sum / record.num, record.sum_squares / record.num
    variance = q - mean * mean
    return math.sqrt(variance) if variance > 1e-6 * q else None


def euclidean_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each member's tensor."""
    return x.flatten(1).square().sum(1).sqrt()


def zero_unit_fraction(x: Tensor) -> Tensor:
    """Fraction of units whose postactivation is exactly 0 on every sample."""
    if x.shape[1] and not (x[:, 0] == 0).any():
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return ((x.amax(1) == 0) & (x.amin(1) == 0)).double().mean(1)


def count_nonfinite(x: Tensor) -> Tensor:
    """Number of NaN and infinite entries."""
    return (~torch.isfinite(x)).flatten(1).sum(1).double()


def input_correlation(x: Tensor) -> Tensor:
    """Mean over pairs of different inputs of h_a·h_b / (‖h_a‖ ‖h_b‖), whole maps as one vector; NaN without pairs.

    Inputs whose preactivations are all 0 have no direction and are left out.

    >>> input_correlation(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]]).double()).round(decimals=6).tolist()
    [0.333333]
    """
    rows = x.flatten(2)
    lengths = rows.norm(dim=2, keepdim=True)
    directions = torch.where(lengths > 0, rows / lengths, torch.zeros(()))
    count = (lengths > 0).sum((1, 2)).double()
    together = directions.sum(1).square().sum(1)
    return (together - count) / (count * (count - 1))


def spectrum_variance(x: Tensor) -> Tensor:
    """Variance of one sample's squared singular values, averaged over samples."""
    return x.var(dim=2, correction=0).mean(1)


# fmt: off
STATS: dict[str, Stat] = {
    s.name: s
    for s in (
        Stat(
            "mean", "preactivation", lambda x: x.flatten(1).mean(1), "mean of the preactivations",
            counted=lambda record: record.sum / record.num,
        ),
        Stat(
            "std", "preactivation", standard_deviation, "their standard deviation",
            counted=histogram_std,
        ),
        Stat(
            "q", "preactivation", mean_square, "their second moment",
            counted=lambda record: record.sum_squares / record.num,
        ),
        Stat(
            "nonfinite", "preactivation", count_nonfinite, "how many of them are NaN or infinite",
            counted=lambda record: float(record.nonfinite),
        ),
        Stat("c", "inputs", input_correlation, "mean cosine between the preactivations of two different inputs"),
        Stat(
            "dead_fraction", "postactivation", zero_unit_fraction, "units silent on every sample",
            counted=lambda record: 0.0 if record.low > 0 or record.high < 0 else None, compares=True,
        ),
        Stat("grad_mean_square", "delta", mean_square, "mean square of the loss gradient at the preactivations"),
        Stat(
            "weight_norm", "weight", euclidean_norm, "Euclidean norm of the weight",
            counted=lambda record: math.sqrt(record.sum_squares),
        ),
        Stat(
            "grad_norm", "gradient", euclidean_norm, "Euclidean norm of the weight's gradient",
            counted=lambda record: math.sqrt(record.sum_squares),
        ),
        Stat("effective_rank", "matrix", effective_rank, "how many directions the weight uses"),
        Stat("duplicate_units", "units", duplicate_units, "units that are copies of another one", compares=True),
        Stat("jacobian_mean", "spectrum", lambda x: x.mean((1, 2)), "mean squared singular value of ∂h/∂input"),
        Stat("jacobian_var", "spectrum", spectrum_variance, "variance of the squared singular values"),
        Stat("jacobian_max", "spectrum", lambda x: x.amax(2).mean(1), "largest squared singular value"),
    )
}


def saturated_fraction(x: Tensor, interval: tuple[float, float]) -> Tensor:
    """Fraction of preactivations outside the interval in which the activation still answers."""
    low, high = interval
    outside = ((x < low) | (x > high)).flatten(1)
    return outside.sum(1).double() / outside.shape[1]


def count_underflow(x: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Number of entries of a raw tensor [N, …] that are not 0 but too small for a precision to hold in full.

    The precision is the tensor's own unless another is given, to judge it by the same signal computed in float64.

    >>> count_underflow(torch.tensor([[0.0, 1e-40, 1.0]]))
    tensor([1.], dtype=torch.float64)
    """
    size = x.abs()
    return ((size > 0) & (size < torch.finfo(precision or x.dtype).tiny)).flatten(1).sum(1).double()
