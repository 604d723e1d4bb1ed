"""Independent elements against the law they should follow: the probability of a sample as bad as this one.

u = cdf(x) is uniform if the law holds and z = Φ⁻¹(u) normal, so the mean and the variance of z have exact laws for
every number of elements. Elements of 16 bits are rounded: theirs is the randomized transform, u uniform between the cdf
at both ends of the interval that rounds to x, which is exactly uniform again. Kolmogorov–Smirnov's p is bounded by
Dvoretzky, Kiefer, Wolfowitz and Massart's 2·exp(−2nD²) (Massart 1990, "The tight constant in the DKW inequality"); in
large samples D is taken over a grid, which can only make it smaller.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from scipy.special import chdtr, chdtrc, ndtr, ndtri
from torch import Tensor

from initlab.schemes.half_precision import SIXTEEN_BITS, RoundingIntervals, rounding_intervals
from initlab.schemes.record import Law
from initlab.system.random_streams import numpy_generator

UNIFORM_MARGIN = 2.0**-25
"""u of float32 draws is kept this far from 0 and 1: they have no more resolution there."""

MAX_SORTED = 2**14
"""Samples up to this size are sorted for Kolmogorov and Smirnov's distance; larger ones are counted on a grid."""

CHUNK_SIZE = 2**20
GRID_SIZE = 4096
NORMAL_CUTOFF = 8.0

Scores: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Transform:
    """`scores(elements)` gives z and a place on [0, 1] whose distribution function, under the law, is `cdf`."""

    scores: Callable[[Tensor], Scores]
    cdf: Callable[[np.ndarray], np.ndarray]


def sample_p_values(values: Tensor, law: Law) -> dict[str, float]:
    """Return the p-values of mean, variance, distribution (ks) and extremes of independent elements of one law.

    Args:
        values: all elements, of any shape, finite, in the dtype they are stored in.
        law: a law with a `cdf`.

    >>> from .laws import normal
    >>> x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    >>> min(sample_p_values(x, normal(0, 1)).values()) > 0.001, sample_p_values(x, normal(0, 1.1))["variance"] < 1e-9
    (True, True)
    """
    flat = values.detach().reshape(-1)
    transform, n = _transform(flat.dtype, law), flat.numel()
    total = square = 0.0
    counts = np.zeros(GRID_SIZE, dtype=np.int64)
    for piece in flat.split(CHUNK_SIZE):
        z, places = transform.scores(piece)
        total += float(z.sum())
        square += float(z @ z)
        if n > MAX_SORTED:
            counts += np.bincount(np.clip(places * GRID_SIZE, 0, GRID_SIZE - 1).astype(np.int64), minlength=GRID_SIZE)
    distance = (
        _sorted_distance(transform.cdf(np.sort(places))) if n <= MAX_SORTED else _grid_distance(counts, transform)
    )
    return {
        "mean": float(2 * ndtr(-abs(total) / math.sqrt(n))),
        "variance": min(1.0, 2 * float(min(chdtr(n, square), chdtrc(n, square)))),
        "ks": min(1.0, 2 * math.exp(-2 * n * distance**2)),
        "extremes": _extremes(flat, law),
    }


def _transform(dtype: torch.dtype, law: Law) -> _Transform:
    cdf, score = law.cdf, law.score
    assert cdf is not None
    if dtype in SIXTEEN_BITS:
        intervals = rounding_intervals(dtype)
        low, width = cdf(intervals.lower), cdf(intervals.upper) - cdf(intervals.lower)
        # The same noise for every tensor: it only has to be independent of the values.
        noise = numpy_generator("rounding noise")

        def rounded(piece: Tensor) -> Scores:
            index = RoundingIntervals.index(piece)
            u = low[index] + noise.random(index.size) * width[index]
            return ndtri(np.clip(u, 2.0**-60, 1 - 2.0**-53)), u

        return _Transform(rounded, lambda u: u)
    if score is not None:

        def normal(piece: Tensor) -> Scores:
            z = score(piece.double().cpu().numpy())
            return z, (z + NORMAL_CUTOFF) / (2 * NORMAL_CUTOFF)

        return _Transform(normal, lambda place: ndtr(2 * NORMAL_CUTOFF * place - NORMAL_CUTOFF))

    def plain(piece: Tensor) -> Scores:
        u = np.clip(cdf(piece.double().cpu().numpy()), UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)
        return ndtri(u), u

    return _Transform(plain, lambda u: u)


def _sorted_distance(u: np.ndarray) -> float:
    steps = np.arange(u.size + 1) / u.size
    return max(float((steps[1:] - u).max()), float((u - steps[:-1]).max()))


def _grid_distance(counts: np.ndarray, transform: _Transform) -> float:
    below = np.cumsum(counts) / counts.sum()
    return float(np.abs(below - transform.cdf(np.arange(1, GRID_SIZE + 1) / GRID_SIZE)).max())


def _extremes(flat: Tensor, law: Law) -> float:
    assert law.cdf is not None
    ends = torch.stack([flat.min(), flat.max()])
    bounds = np.stack([ends.double().cpu().numpy()] * 2)
    if ends.dtype in SIXTEEN_BITS:
        index = RoundingIntervals.index(ends)
        bounds = np.stack([rounding_intervals(ends.dtype).lower[index], rounding_intervals(ends.dtype).upper[index]])
    (low_at_least, high_at_least), (low_at_most, high_at_most) = law.cdf(bounds)
    n = flat.numel()
    highest = _maximum_p_value(high_at_most, high_at_least, n, math.isfinite(law.support[1]))
    lowest = _maximum_p_value(1 - low_at_least, 1 - low_at_most, n, math.isfinite(law.support[0]))
    return min(1.0, 2 * min(highest, lowest))


def _maximum_p_value(at_most: float, at_least: float, n: int, bounded: bool) -> float:
    # P(max ≤ t) = F(t)ⁿ. A float32 draw can lie on a finite bound itself, so there only "too small" counts.
    small = float(at_most) ** n
    return small if bounded else min(1.0, 2 * min(small, 1 - float(at_least) ** n))
