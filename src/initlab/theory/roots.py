"""Roots of many bracketed scalar equations at once."""

from collections.abc import Callable

import numpy as np


def find_roots(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, rounds: int = 100
) -> np.ndarray:
    """Solve f(x) = 0 for all_equations bracket [low, high] at whose ends f has opposite signs (or is zero).

    Args:
        function: `function(x, index)` returns f at points `x` [k] of the equations `index` [k]; solved ones are left
            out.
        low: lower ends [n].
        high: upper ends [n].
        rounds: iterations at most.

    Method: T. R. Chandrupatla (1997), *A new hybrid quadratic/bisection algorithm for finding
    the zero of a nonlinear function without using derivatives*; it stops at four units of rounding in x.

    >>> find_roots(lambda x, i: x**2 - np.array([2.0, 9.0])[i], np.zeros(2), np.full(2, 10.0)).round(9).tolist()
    [1.414213562, 3.0]
    """
    if low.size == 0:
        return np.empty(0)
    all_equations = np.arange(low.size)
    a, b = np.array(high, dtype=float), np.array(low, dtype=float)
    fa, fb = function(a, all_equations), function(b, all_equations)
    best = np.where(np.abs(fa) < np.abs(fb), a, b)
    index, c, fc, t = all_equations, a, fa, np.full(low.size, 0.5)
    for _ in range(rounds):
        best[index] = np.where(np.abs(fa) < np.abs(fb), a, b)
        smallest = np.minimum(np.abs(fa), np.abs(fb))
        tolerance = 4 * np.finfo(float).eps * np.maximum(np.abs(best[index]), 1e-300)
        open_ = (np.abs(b - a) > 2 * tolerance) & (smallest > 0)
        if not open_.any():
            break
        index, a, b, c, fa, fb, fc, t, tolerance = (x[open_] for x in (index, a, b, c, fa, fb, fc, t, tolerance))
        x = a + t * (b - a)
        fx = function(x, index)
        same = np.sign(fx) == np.sign(fa)
        b, fb, c, fc = np.where(same, b, a), np.where(same, fb, fa), np.where(same, a, b), np.where(same, fa, fb)
        a, fa = x, fx
        t = np.clip(_chandrupatla_step(a, b, c, fa, fb, fc), tolerance / np.abs(b - a), 1 - tolerance / np.abs(b - a))
    return best


def sign_changes(values: np.ndarray, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of neighbors of opposite signs; values up to `noise` in magnitude are left out.

    >>> [at.tolist() for at in sign_changes(np.array([-1.0, 0.0, 2.0, 3.0, -1.0]))]
    [[0, 3], [2, 4]]
    """
    kept = np.flatnonzero(~(np.abs(values) <= noise))
    at = np.flatnonzero(np.abs(np.diff(np.sign(values[kept]))) == 2)  # none beside a NaN
    return kept[at], kept[at + 1]


def _chandrupatla_step(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, fa: np.ndarray, fb: np.ndarray, fc: np.ndarray
) -> np.ndarray:
    """Inverse quadratic interpolation where it is safe, else one half."""
    with np.errstate(divide="ignore", invalid="ignore"):
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    return np.where(safe & np.isfinite(quadratic), quadratic, 0.5)
