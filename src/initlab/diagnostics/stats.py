"""Statistics of one layer as rows of a table: name -> function of a float64 tensor with one leading member axis.

Tensors at samples are [N, S, U]: N networks, S samples (positions of a map count as samples), U units. Tensors of a
weight are [N, …]. Sums run in float64, so that squares of 1e-30 are small numbers and not zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stat:
    """One statistic: the tensor it is of, and its function [N, …] -> [N].

    `of` is `preactivation`, `postactivation`, `delta` (the loss gradient at the preactivation), `weight` or `gradient`
    (of the weight). Adding a statistic is one row of `STATS`.
    """

    name: str
    of: str
    measure: Callable[[Tensor], Tensor]
    meaning: str


def mean_square(x: Tensor) -> Tensor:
    """Second moment over everything but the member axis."""
    return x.flatten(1).square().mean(1)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each member's tensor."""
    return x.flatten(1).square().sum(1).sqrt()


def silent_units(x: Tensor) -> Tensor:
    """Fraction of units whose postactivation is exactly 0 on every sample."""
    return (x == 0).all(dim=1).double().mean(1)


def nonfinite(x: Tensor) -> Tensor:
    """Number of NaN and infinite entries."""
    return (~torch.isfinite(x)).flatten(1).sum(1).double()


STATS: dict[str, Stat] = {
    s.name: s
    for s in (
        Stat("mean", "preactivation", lambda x: x.flatten(1).mean(1), "mean of the preactivations"),
        Stat("std", "preactivation", lambda x: x.flatten(1).std(1, correction=0), "their standard deviation"),
        Stat("q", "preactivation", mean_square, "their second moment"),
        Stat("nonfinite", "preactivation", nonfinite, "how many of them are NaN or infinite"),
        Stat("dead_fraction", "postactivation", silent_units, "units silent on every sample"),
        Stat("grad_mean_square", "delta", mean_square, "mean square of the loss gradient at the preactivations"),
        Stat("weight_norm", "weight", norm, "Euclidean norm of the weight"),
        Stat("grad_norm", "gradient", norm, "Euclidean norm of the weight's gradient"),
    )
}


def saturated_fraction(x: Tensor, interval: tuple[float, float]) -> Tensor:
    """Fraction of preactivations outside the interval in which the activation still answers."""
    low, high = interval
    return ((x < low) | (x > high)).flatten(1).double().mean(1)
