"""What a truncated Mehler sum leaves out, Σ_{n ≥ N} a_n² cⁿ, as a function of c that is right at c = 1 with its slope.

A kink of φ makes a_n² fall like n^(−5/2), a kink of φ′ like n^(−9/2), and the sum over such a tail is an exponential
integral: with λ = −ln c, ∫_M^∞ n^(−p) cⁿ dn ∝ E_p(Mλ). It carries the term (1 − c)^(3/2) that sets c* next to the
critical line, and its mean order p̄ = M (p − 1)/(p − 2) is known from φ′. A φ that oscillates faster than the terms kept
can follow has its weight in a narrow band of orders, and is given the single power c^p̄.
"""

import numpy as np
from scipy.special import erfc

_NARROW_BAND_RATIO = 5.0
_STEEP_RATIO = 2.0


def mehler_tail(order: np.ndarray, terms: int, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tail at correlation `c`, 1 at c = 1 and 0 for c ≤ 0, and its derivative.

    Args:
        order: mean order of the terms left out, at least `terms`.
        terms: number of terms kept.
        c: correlations.

    >>> value, slope = mehler_tail(np.array([200.0]), 64, np.array([1.0]))
    >>> value.tolist(), slope.tolist()
    ([1.0], [200.0])
    """
    inside = np.clip(c, np.finfo(float).tiny, 1.0)
    order, decay = np.broadcast_arrays(order, -np.log(inside))
    ratio = order / terms
    value = np.array(np.exp(-order * decay))
    slope = np.array(order * value)
    for p, low, high in ((4.5, 0.0, _STEEP_RATIO), (2.5, _STEEP_RATIO, _NARROW_BAND_RATIO)):
        mask = (ratio >= low) & (ratio < high)
        if mask.any():
            start = order[mask] * (p - 2) / (p - 1)
            steeper, flatter = _exponential_integrals(start * decay[mask], p)
            value[mask], slope[mask] = (p - 1) * steeper, (p - 1) * start * flatter
    return np.where(c > 0, value, 0.0), np.where(c > 0, slope / inside, 0.0)


def _exponential_integrals(x: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """E_p(x) and E_{p−1}(x) for half-integer p > 1, upwards from E_{1/2}(x) = √(π/x) erfc(√x)."""
    root = np.sqrt(np.maximum(x, 1e-300))
    before, now, k = np.full_like(x, np.nan), np.sqrt(np.pi) * erfc(root) / root, 0.5
    while k < p:
        before, now, k = now, (np.exp(-x) - x * now) / k, k + 1
    return np.maximum(now, 0.0), before
