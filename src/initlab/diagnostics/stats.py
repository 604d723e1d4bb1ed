"""Statistics of one layer as rows of a table: name -> function of a float64 tensor with one leading member axis.

Tensors at samples are [N, S, U]: N networks, S samples (positions of a map count as samples), U units. Tensors of a
weight are [N, …]. Sums run in float64, so that squares of 1e-30 are small numbers and not zeros.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from initlab.diagnostics.units import duplicate_units, effective_rank
from initlab.statistics.histograms import Histogram
from initlab.system.numbers import format_number, format_percent


@dataclass(frozen=True)
class Stat:
    """One statistic of a layer; one row of `STATS` adds it to runs, `diagnose` and the report.

    Attributes:
        name: its name in rows.
        of: kind of the tensor that it is of. Runs and `diagnose` measure `preactivation`; `outside`, whether each
            preactivation is outside the interval in which its activation is not saturated; `postactivation`; `delta`,
            the gradient of the loss at the preactivations; `weight`; `gradient`, that of the weight. Runs measure
            `inputs` [N, B, …], the preactivations by input of the batch, and `units` [N, G, out, in + 1], the blocks of
            a weight with the bias as a further column, at step 0 alone. Only `diagnose` measures `matrix`
            [N, G, out, in], the blocks of a weight, and `spectrum` [N, S, k], squared singular values of the Jacobians
            ∂h/∂input of S samples.
        measure: its function [N, …] -> [N].
        meaning: what it is, in a few words.
        counted: reads it from a histogram of the tensor, all of whose values are finite; None where it cannot.
        compares: it only compares entries, and is given the tensor in its own precision.
        column: its heading in the table of `initlab diagnose`; not shown there if empty.
        show: writes a value in that table.
    """

    name: str
    of: str
    measure: Callable[[Tensor], Tensor]
    meaning: str
    counted: Callable[[Histogram], float | None] = lambda histogram: None
    compares: bool = False
    column: str = ""
    show: Callable[[float], str] = format_number


def member_mean(x: Tensor) -> Tensor:
    """Return the mean over everything but the member axis."""
    return x.flatten(1).mean(1)


def mean_square(x: Tensor) -> Tensor:
    """Return the second moment over everything but the member axis."""
    return x.flatten(1).square().mean(1)


def standard_deviation(x: Tensor) -> Tensor:
    """Return the root of the mean square about each member's mean."""
    # Ten times faster than Tensor.std, whose order of summation depends on the number of threads.
    x = x.flatten(1)
    return (x - x.mean(1, keepdim=True)).square_().mean(1).sqrt()


def histogram_std(histogram: Histogram) -> float | None:
    """Return the standard deviation from the sums of a histogram, None where the mean is so large that digits are lost.

    >>> import numpy as np
    >>> from initlab.statistics.histograms import histogram
    >>> histogram_std(histogram(np.array([1.0, 3.0]))), histogram_std(histogram(np.array([1e6, 1e6 + 1.0])))
    (1.0, None)
    """
    average, q = histogram.sum / histogram.num, histogram.sum_squares / histogram.num
    variance = q - average * average
    return math.sqrt(variance) if variance > 1e-6 * q else None


def histogram_norm(histogram: Histogram) -> float:
    """Return the Euclidean norm from the sums of a histogram."""
    return math.sqrt(histogram.sum_squares)


def euclidean_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each member's tensor."""
    return x.flatten(1).square().sum(1).sqrt()


def zero_unit_fraction(x: Tensor) -> Tensor:
    """Return the fraction of units whose postactivation is exactly 0 on every sample."""
    if x.shape[1] and not (x[:, 0] == 0).any():
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return ((x.amax(1) == 0) & (x.amin(1) == 0)).double().mean(1)


def count_nonfinite(x: Tensor) -> Tensor:
    """Return the number of NaN and infinite entries."""
    return (~torch.isfinite(x)).flatten(1).sum(1).double()


def input_correlation(x: Tensor) -> Tensor:
    """Return the mean of h_a·h_b / (‖h_a‖ ‖h_b‖) over pairs of different inputs, whole maps as one vector.

    Inputs whose preactivations are all 0 have no direction and are left out; NaN without pairs.

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
    """Return the variance of one sample's squared singular values, averaged over samples."""
    return x.var(dim=2, correction=0).mean(1)


# fmt: off
STATS: dict[str, Stat] = {
    s.name: s
    for s in (
        Stat("mean", "preactivation", member_mean, "mean of the preactivations", lambda h: h.sum / h.num),
        Stat("std", "preactivation", standard_deviation, "their standard deviation", histogram_std),
        Stat("q", "preactivation", mean_square, "their second moment", lambda h: h.sum_squares / h.num, column="q"),
        Stat("nonfinite", "preactivation", count_nonfinite, "number of NaN and infinite preactivations",
             lambda h: float(h.nonfinite)),
        Stat("c", "inputs", input_correlation, "mean cosine between the preactivations of two different inputs",
             column="c", show=lambda value: f"{value:.3f}"),
        Stat("grad_mean_square", "delta", mean_square, "mean square of the loss gradient at the preactivations",
             column="grad", show=lambda value: format_number(math.sqrt(value)) if value >= 0 else ""),
        Stat("saturated_fraction", "outside", member_mean, "preactivations where the activation is saturated",
             column="sat", show=format_percent),
        Stat("dead_fraction", "postactivation", zero_unit_fraction, "units silent on every sample",
             lambda h: 0.0 if h.low > 0 or h.high < 0 else None, compares=True, column="dead", show=format_percent),
        Stat("weight_norm", "weight", euclidean_norm, "Euclidean norm of the weight", histogram_norm),
        Stat("grad_norm", "gradient", euclidean_norm, "Euclidean norm of the weight's gradient", histogram_norm),
        Stat("effective_rank", "matrix", effective_rank, "number of directions that the weight uses",
             column="rank", show=partial(format_number, digits=4)),
        Stat("duplicate_units", "units", duplicate_units, "units that are copies of another one", compares=True),
        Stat("jacobian_mean", "spectrum", lambda x: x.mean((1, 2)), "mean squared singular value of ∂h/∂input"),
        Stat("jacobian_var", "spectrum", spectrum_variance, "variance of the squared singular values"),
        Stat("jacobian_max", "spectrum", lambda x: x.amax(2).mean(1), "largest squared singular value"),
    )
}
# fmt: on


def is_outside(x: Tensor, interval: tuple[float, float]) -> Tensor:
    """Return which entries lie outside an interval, as float64."""
    low, high = interval
    return ((x < low) | (x > high)).double()


def count_underflow(x: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """Return the number of entries of a tensor [N, …] that are not 0 but too small for a precision to hold in full.

    Args:
        x: the tensor.
        precision: the precision; the tensor's own if None. Another one judges it by its values in float64.

    >>> count_underflow(torch.tensor([[0.0, 1e-40, 1.0]]))
    tensor([1.], dtype=torch.float64)
    """
    size = x.abs()
    return ((size > 0) & (size < torch.finfo(precision or x.dtype).tiny)).flatten(1).sum(1).double()
