"""The laws that single elements follow: constant, uniform, normal, truncated normal. One function each."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.schemes.record import Law


def constant(value: float) -> Law:
    """Return the law under which every element is `value`.

    >>> constant(1.0).variance
    0.0
    """
    return Law(
        "constant",
        value,
        0.0,
        (value, value),
        deterministic=True,
        defect=lambda w: float((w.double() - value).abs().max()),
    )


def uniform(a: float, b: float) -> Law:
    """Return U(a, b): mean (a + b)/2, variance (b − a)²/12.

    >>> uniform(0, 1).mean
    0.5
    """

    def cdf(x: Any) -> Any:
        return ((x - a) / (b - a)).clip(0, 1)

    return Law("uniform", (a + b) / 2, (b - a) ** 2 / 12, (a, b), kurtosis=1.8, cdf=cdf)


def normal(mean: float, std: float) -> Law:
    """Return N(mean, std²).

    >>> normal(0, 2).variance
    4
    """

    def cdf(x: Any) -> Any:
        from scipy.special import ndtr

        return ndtr((x - mean) / std)

    return Law("normal", mean, std**2, cdf=cdf, score=lambda x: (x - mean) / std)


def truncated_normal(mean: float, std: float, a: float, b: float) -> Law:
    """Return N(mean, std²) given that it falls in [a, b]; mean and variance are those of the truncated law.

    >>> round(truncated_normal(0, 1, -2, 2).std, 6)
    0.879626
    """
    low, high = (a - mean) / std, (b - mean) / std
    mass = _ndtr(high) - _ndtr(low)
    # Moments of the standard normal between low and high, by parts: m_k = (k−1) m_{k−2} − [x^{k−1} φ]/mass.
    moments = [1.0, -(_density(high) - _density(low)) / mass]
    for k in (2, 3, 4):
        edge = (high ** (k - 1) * _density(high) - low ** (k - 1) * _density(low)) / mass
        moments.append((k - 1) * moments[k - 2] - edge)
    _, m1, m2, m3, m4 = moments
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4

    def cdf(x: Any) -> Any:
        from scipy.special import ndtr

        return ((ndtr((x - mean) / std) - _ndtr(low)) / mass).clip(0, 1)

    return Law("truncated_normal", mean + std * m1, std**2 * variance, (a, b), kurtosis=fourth / variance**2, cdf=cdf)


def log_uniform(high: float) -> Law:
    """Return the law of log U for U ~ U(1, high), which Tallec and Ollivier (2018) give to the biases of gates.

    >>> round(log_uniform(100).mean, 4)
    3.6517
    """
    top = math.log(high)
    # ∫ logᵏ u du over [1, high], by parts.
    moments = [high - 1.0]
    for k in range(1, 5):
        moments.append(high * top**k - k * moments[-1])
    m1, m2, m3, m4 = (moment / (high - 1) for moment in moments[1:])
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4

    def cdf(x: Any) -> Any:
        return ((np.exp(np.clip(x, 0, top)) - 1) / (high - 1)).clip(0, 1)

    return Law("log_uniform", m1, variance, (0.0, top), kurtosis=fourth / variance**2, cdf=cdf)


def scale_law(law: Law, factor: float) -> Law:
    """Return the law of `factor` times an element of `law`, for laws of independent elements.

    >>> scale_law(uniform(0, 1), -2).support
    (-2, 0)
    """
    cdf, score = law.cdf, law.score

    def scaled_cdf(x: Any) -> Any:
        assert cdf is not None
        return cdf(x / factor) if factor > 0 else 1 - cdf(x / factor)

    return Law(
        law.distribution,
        factor * law.mean,
        factor**2 * law.variance,
        (min(factor * end for end in law.support), max(factor * end for end in law.support)),
        law.kurtosis,
        cdf=None if cdf is None else scaled_cdf,
        score=None if score is None else (lambda x: score(x / factor)),
        deterministic=law.deterministic,
    )


def _ndtr(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _density(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def fixed_pattern(pattern: Callable[[], Tensor], mean: float, variance: float, bound: float, distribution: str) -> Law:
    """Return the law of a deterministic pattern with this mean and variance, all elements of magnitude at most `bound`.

    >>> fixed_pattern(lambda: torch.eye(2), 0.5, 0.25, 1.0, "identity").defect(torch.zeros(2, 2))
    1.0
    """
    return Law(
        distribution,
        mean,
        variance,
        (-bound, bound),
        deterministic=True,
        defect=lambda w: float((w.double() - pattern().to(w.device, torch.float64)).abs().max()),
    )


def flatten_units(weight: Tensor) -> Tensor:
    """Return a block as the float64 matrix (out, in · taps).

    >>> flatten_units(torch.zeros(2, 3, 3, 3)).shape
    torch.Size([2, 27])
    """
    return weight.detach().to("cpu", torch.float64).reshape(weight.shape[0], -1)


def center_tap(weight: Tensor) -> Tensor:
    """Return the center tap of a convolution's block, a view (out, in); a matrix is its own center.

    >>> center_tap(torch.arange(9.0).view(1, 1, 3, 3)).item()
    4.0
    """
    for size in weight.shape[2:]:
        weight = weight.select(2, size // 2)
    return weight
