"""The maps of mean-field theory: q ↦ V(q), c ↦ C(c), and their slopes χ_q, χ₁ and C′(c).

h^l = W^l φ(h^(l−1)) + b^l with W ~ (0, σ_w²/fan_in), b ~ (0, σ_b²). Sources: Poole et al. (2016), *Exponential
expressivity in deep neural networks through transient chaos*; Schoenholz et al. (2017), *Deep information
propagation*.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from initlab.activations import activation
from initlab.errors import UserError
from initlab.theory.pairs import pair_moments
from initlab.theory.quadrature import MIN_Q, QuadratureRule, gaussian_expectations


class Moments(NamedTuple):
    """What theory needs of φ at q, u ~ N(0, q): arrays of q's shape."""

    mean: Any
    """E[φ(u)]"""
    square: Any
    """E[φ(u)²]: V(q) = σ_w² · square + σ_b²"""
    slope_square: Any
    """E[φ′(u)²]: χ₁ = σ_w² · slope_square"""
    slope_fourth: Any
    """E[φ′(u)⁴], which the spread of singular values needs"""
    growth: Any
    """E[φ φ′ u]/q = d E[φ²]/dq, without φ″: χ_q = σ_w² · growth"""


def moments(act: Any, q: Any) -> Moments:
    """Integrate φ and φ′ over N(0, q).

    Args:
        act: activation by name, record or callable.
        q: second moments ≥ 0, a number or an array; 0 stands for the limit q → 0.

    Returns:
        The moments in float64; NaN where φ grows so fast that the integral is out of reach. Where φ(0) ≠ 0, `growth`
        carries rounding of about 1e-16/√q.

    >>> round(float(moments("relu", 2.0).square), 12)
    1.0
    """
    points = np.asarray(q, dtype=np.float64)
    *averages, product, edge = gaussian_expectations(activation(act), points, _integrands, 6)
    lost = ~(edge <= _EDGE_SHARE * averages[1])
    mean, square, slope_square, slope_fourth, growth = (
        np.where(lost, np.nan, x) for x in (*averages, product / np.maximum(points, MIN_Q))
    )
    return Moments(mean, square, slope_square, slope_fourth, growth)


_EDGE_SHARE = 1e-6  # of E[φ²] from the outermost tenth of the nodes: more, and φ grows faster than the Gaussian falls


def _integrands(rule: QuadratureRule) -> np.ndarray:
    square, slope_square = rule.phi * rule.phi, rule.slope * rule.slope
    far = np.abs(rule.u) > 0.9 * rule.u[-1]
    dead = not square[np.abs(rule.u) < 0.25 * rule.u[-1]].any()  # φ = 0 but far out, where next to nothing falls
    edge = np.where(far & (not dead), square, 0.0)
    return np.stack([rule.phi, square, slope_square, slope_square * slope_square, rule.u * rule.phi * rule.slope, edge])


def q_map(act: Any, q: Any, sigma_w: float, sigma_b: float = 0.0) -> Any:
    """Second moment of the next layer's preactivations: V(q) = σ_w² E[φ(√q z)²] + σ_b².

    >>> round(float(q_map("linear", 3.0, sigma_w=2.0, sigma_b=1.0)), 9)
    13.0
    """
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    return sigma_w**2 * moments(act, q).square + sigma_b**2


def chi_1(act: Any, q: Any, sigma_w: float) -> Any:
    """Slope of the c-map at c = 1, and the mean squared singular value of one layer's Jacobian: σ_w² E[φ′(√q z)²].

    >>> round(float(chi_1("relu", 1.0, sigma_w=2**0.5)), 9)
    1.0
    """
    return check_sigmas(sigma_w)[0] ** 2 * moments(act, q).slope_square


def chi_q(act: Any, q: Any, sigma_w: float) -> Any:
    """Slope of the q-map, V′(q) = σ_w² E[φ φ′ z]/√q: no φ″, so kinks are fine.

    >>> round(float(chi_q("linear", 5.0, sigma_w=0.5)), 9)
    0.25
    """
    return check_sigmas(sigma_w)[0] ** 2 * moments(act, q).growth


def c_map(act: Any, c: Any, q: float, sigma_w: float, sigma_b: float = 0.0) -> Any:
    """Correlation after one layer: C(c) = (σ_w² E[φ(u₁)φ(u₂)] + σ_b²)/V(q), u₁ and u₂ of variance q, correlated by c.

    At a fixed point V(q*) = q*.

    Args:
        act: activation by name, record or callable.
        c: correlations in [−1, 1], a number or an array.
        q: one second moment.
        sigma_w: standard deviation of √fan_in · W.
        sigma_b: standard deviation of b.

    >>> round(float(c_map("relu", 0.0, q=1.0, sigma_w=2**0.5)), 12) == round(1 / 3.141592653589793, 12)
    True
    """
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    record, square = activation(act), float(moments(act, q).square)

    def one(corr: float) -> float:
        # E[φ₁φ₂] = E[φ²] − q (1 − c) r: exact at c = 1, and no cancellation near it
        product = square - q * (1 - corr) * pair_moments(record, float(q), corr).secant
        return (sigma_w**2 * product + sigma_b**2) / (sigma_w**2 * square + sigma_b**2)

    return _map_correlations(one, c)


def c_map_slope(act: Any, c: Any, q: float, sigma_w: float, sigma_b: float = 0.0) -> Any:
    """C′(c) = σ_w² q E[φ′(u₁)φ′(u₂)]/V(q): χ₁ at c = 1 and q = q*.

    >>> round(float(c_map_slope("relu", 0.0, q=1.0, sigma_w=2**0.5)), 12)
    0.5
    """
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    record, mapped = activation(act), float(q_map(act, q, sigma_w, sigma_b))
    return _map_correlations(
        lambda corr: sigma_w**2 * float(q) * pair_moments(record, float(q), corr).slopes / mapped, c
    )


def _map_correlations(function: Callable[[float], float], c: Any) -> Any:
    points = np.asarray(c, dtype=np.float64)
    if not ((points >= -1) & (points <= 1)).all():
        raise UserError(f"c={c} must lie in [-1, 1]: it is a correlation.")
    answer = np.array([function(float(x)) for x in points.ravel()]).reshape(points.shape)
    return answer if points.shape else float(answer)


def check_sigmas(sigma_w: float, sigma_b: float = 0.0) -> tuple[float, float]:
    """Return standard deviations as floats.

    Raises:
        UserError: one is negative or not finite.
    """
    for key, value in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        if isinstance(value, bool) or not np.isfinite(value) or value < 0:
            raise UserError(f"{key}={value} must be a finite number ≥ 0: it is a standard deviation.")
    return float(sigma_w), float(sigma_b)
