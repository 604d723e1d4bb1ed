"""Critical points: where χ₁ = 1, gradients neither vanish nor explode, and information goes deepest.

χ₁ = σ_w² E[φ′²] = 1 and V(q*) = q* make the critical line a curve with q* as its parameter, and no search is needed
for σ_w:

    σ_w² = 1/E[φ′²],   σ_b² = q* − E[φ²]/E[φ′²],   χ_q = E[φ φ′ z]/(√q* E[φ′²])

Sources: Poole et al. (2016); Schoenholz et al. (2017); Hayou, Doucet and Rousseau (2019), *On the impact of the
activation function on deep neural networks training*; Roberts, Yaida and Hanin (2022), *The principles of deep
learning theory*, chapter 5 (half-stable points of GELU and SiLU).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.theory.fixed_points import GRID_MIN_Q, ROUNDING, phi_supremum, require_continuous, slope_square_at_zero
from initlab.theory.maps import check_sigmas, moments
from initlab.theory.quadrature import phi_values
from initlab.theory.roots import find_roots, sign_changes

HALF_STABLE_TOLERANCE = 1e-6
"""|χ_q − 1| below which a fixed point counts as half-stable."""


@dataclass(frozen=True)
class Critical:
    """A point of the critical line.

    Attributes:
        sigma_w, sigma_b: standard deviations at which χ₁ = 1.
        q_star: the fixed point; 0 is a limit; NaN where every q is fixed.
        chi_q: slope of the q-map there.
        stable: whether q returns to q_star.
        kind: `stable`, `repelling`, `half_stable`, `zero` (q* → 0) or `any` (scale-free φ).
        others: q of the other critical points at the same sigma_b.
    """

    sigma_w: float
    sigma_b: float
    q_star: float
    chi_q: float
    stable: bool
    kind: str
    others: tuple[float, ...] = ()


def critical(act: Any, sigma_b: float | None = None, q_star: float | None = None) -> Critical:
    """Return the critical point at a given bias standard deviation (default 0), or at a given fixed point.

    Where several exist at one `sigma_b`, a stable one is preferred, then the one of smallest q*.

    Args:
        act: activation by name, record or callable.
        sigma_b: standard deviation of the biases.
        q_star: second moment of the preactivations.

    Raises:
        UserError: none exists there (with the reason), or both are given.

    >>> point = critical("tanh", sigma_b=0.3)
    >>> round(point.sigma_w, 10), round(point.q_star, 10), point.stable
    (1.3955839752, 0.7634747669, True)
    >>> round(critical("tanh", q_star=0.01).sigma_w, 6)
    1.009807
    """
    record = activation(act)
    if sigma_b is not None and q_star is not None:
        raise UserError(f"sigma_b={sigma_b} and q_star={q_star} cannot both be given: each determines the other.")
    require_continuous(record)
    if q_star is not None:
        return _critical_at(record, q_star)
    bias = check_sigmas(0.0, 0.0 if sigma_b is None else sigma_b)[1]
    (point,) = _points_at_bias(record, np.array([bias]))
    if point is not None:
        return point
    if _scale_free(record):
        raise UserError(
            f"activation {record.name!r} is scale-free and critical at sigma_b=0 alone, where any q is a fixed point: "
            f"with sigma_b={bias} and χ₁ = 1 every layer adds sigma_b² and q never settles; use sigma_b=0."
        )
    line = _describe_critical_line(record)
    raise UserError(f"activation {record.name!r} has no critical point at sigma_b={bias}: {line}.")


def _critical_at(act: Activation, q: float) -> Critical:
    if isinstance(q, bool) or not (math.isfinite(q) and q > 0):
        raise UserError(f"q_star={q} must be a positive second moment, such as 0.01.")
    phi = moments(act, q)
    if not phi.slope_square > 0:
        raise UserError(f"activation {act.name!r} is flat where its inputs fall, so that χ₁ = 0 for every sigma_w.")
    ratio = float(phi.square / phi.slope_square)
    if ratio > q * (1 + 10 * ROUNDING):
        raise UserError(
            f"activation {act.name!r} has no critical point at q_star={q}, where χ₁ = 1 alone brings q to {ratio:.4g}: "
            f"{_describe_critical_line(act)}."
        )
    sigma_b = 0.0 if q - ratio < 10 * ROUNDING * q else math.sqrt(q - ratio)
    return _make_points(act, np.array([q]), [sigma_b])[0]


def _make_points(act: Activation, q: np.ndarray, sigma_b: list[float]) -> list[Critical]:
    """Describe the points of the critical line with these fixed points."""
    phi = moments(act, q)
    points = []
    for one, bias, slope, chi in zip(
        q.tolist(), sigma_b, phi.slope_square.tolist(), (phi.growth / phi.slope_square).tolist(), strict=True
    ):
        excess, margin = abs(chi) - 1, HALF_STABLE_TOLERANCE
        kind = "repelling" if excess > margin else "stable" if excess < -margin else "half_stable"
        if kind == "half_stable" and bias == 0 and _scale_free(act):
            kind = "any"
        points.append(Critical(1 / math.sqrt(slope), bias, one, chi, kind in ("stable", "any"), kind))
    return points


def _points_at_bias(act: Activation, sigma_b: np.ndarray) -> list[Critical | None]:
    """Return the critical point at each `sigma_b`: a stable one first, then the one of smallest q*."""
    if _scale_free(act):
        only = Critical(1 / math.sqrt(slope_square_at_zero(act)), 0.0, math.nan, 1.0, True, "any")
        return [only if bias == 0 else None for bias in sigma_b]
    q, row = _critical_q(act, sigma_b)
    points = _make_points(act, q, sigma_b[row].tolist())
    chosen: list[Critical | None] = []
    for i, bias in enumerate(sigma_b):
        candidates = [point for point, at in zip(points, row, strict=True) if at == i]
        if bias == 0 and (limit := _limit_at_zero(act)) is not None:
            candidates.insert(0, limit)
        best = next((p for p in candidates if p.stable), candidates[0] if candidates else None)
        others = tuple(p.q_star for p in candidates if p is not best)
        chosen.append(None if best is None else replace(best, others=others))
    return chosen


def _limit_at_zero(act: Activation) -> Critical | None:
    """Return the critical point in the limit q* → 0 at sigma_b = 0, which φ with φ(0) = 0 and a slope there has."""
    slope = slope_square_at_zero(act)
    if phi_values(act, np.zeros(1))[0] != 0 or not 1e-20 < slope < 1e20:
        return None
    q = _critical_grid(act, 0.0)
    rise = moments(act, q).square / (slope * q) - 1
    nonzero = np.flatnonzero(np.abs(rise) > ROUNDING)
    return Critical(1 / math.sqrt(slope), 0.0, 0.0, 1.0, bool(nonzero.size and rise[nonzero[0]] < 0), "zero")


def _critical_q(act: Activation, sigma_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every q* with χ₁ = 1, ascending for each of `sigma_b`, and the index of its `sigma_b`.

    These are the roots of (q − σ_b²) E[φ′²]/E[φ²] = 1.
    """
    variance = sigma_b**2
    grid = _critical_grid(act, float(variance.max()))
    x = np.log(grid)

    def excess(x: np.ndarray, variance: np.ndarray) -> np.ndarray:
        phi = moments(act, np.exp(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            return _zero_rounding((np.exp(x) - variance) * phi.slope_square / phi.square - 1)

    before, after = zip(*map(sign_changes, excess(x, variance[:, None])), strict=True)
    row = np.repeat(np.arange(sigma_b.size), [len(at) for at in before])
    low, high = x[np.concatenate(before)], x[np.concatenate(after)]
    return np.exp(find_roots(lambda x, i: excess(x, variance[row[i]]), low, high)), row


def _zero_rounding(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < ROUNDING, 0.0, x)


def _critical_grid(act: Activation, variance: float) -> np.ndarray:
    """Return second moments, four to an octave, up to 2²⁰; for a bounded φ to where q* exceeds σ_b² + E[φ²]/E[φ′²]."""
    high = 4 * max(1.0, variance)
    bounded = math.isfinite(phi_supremum(act))
    while high < 2.0**20 * max(1.0, variance):
        if bounded:
            phi = moments(act, high)
            if (high - variance) * phi.slope_square > phi.square:
                break
        high *= 4
    return np.geomspace(GRID_MIN_Q, high, int(4 * math.log2(high / GRID_MIN_Q)))


def critical_line(act: Any, sigma_b: Any) -> np.ndarray:
    """Return σ_w on the critical line for an array of `sigma_b`; NaN where there is none.

    Where several points exist at one `sigma_b`, the choice is that of `critical`.

    Raises:
        UserError: a `sigma_b` that is negative or not finite, or a φ that jumps.

    >>> critical_line("tanh", [0.0, 0.3, 1.0]).round(6)
    array([1.      , 1.395584, 1.855589])
    """
    record = activation(act)
    deviations = np.asarray(sigma_b, dtype=np.float64)
    for bad in deviations[~(np.isfinite(deviations) & (deviations >= 0))]:
        raise UserError(f"sigma_b={bad} must be a finite number ≥ 0: it is a standard deviation.")
    require_continuous(record)
    points = _points_at_bias(record, deviations.ravel())
    return np.array([math.nan if p is None else p.sigma_w for p in points]).reshape(deviations.shape)


@lru_cache(maxsize=256)
def _scale_free(act: Activation) -> bool:
    """Return whether φ(ax) = a φ(x) for a > 0, as for linear, ReLU and its leaky forms."""
    if math.isfinite(phi_supremum(act)):
        return False
    q = np.geomspace(GRID_MIN_Q, 2.0**20, 64)
    phi = moments(act, q)
    square, slope = phi.square / q, phi.slope_square
    return bool(
        slope[0] > 0 and np.ptp(square) < ROUNDING * square[0] * 100 and np.ptp(slope) < ROUNDING * slope[0] * 100
    )


@lru_cache(maxsize=256)
def doubly_critical(act: Any) -> Critical | None:
    """Return the point where χ₁ = χ_q = 1 at q* > 0, or None; GELU, SiLU, Mish and Hardswish have one.

    >>> point = doubly_critical("gelu")
    >>> round(point.sigma_w**2, 8), round(point.sigma_b**2, 8)
    (1.98305826, 0.17292239)
    """
    record = activation(act)
    require_continuous(record)
    if _scale_free(record):
        return None

    def excess(x: np.ndarray, index: np.ndarray | None = None) -> np.ndarray:
        phi = moments(record, np.exp(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            return _zero_rounding(phi.growth / phi.slope_square - 1)

    x = np.log(_critical_grid(record, 0.0))
    before, after = sign_changes(excess(x), noise=1e-8)
    for q in np.exp(find_roots(excess, x[before], x[after])):
        phi = moments(record, q)
        if (variance := float(q - phi.square / phi.slope_square)) >= 0:
            return _make_points(record, np.array([q]), [math.sqrt(variance)])[0]
    return None


def default_critical(act: Any) -> Critical:
    """Return the point that `init=critical` uses by default.

    The doubly critical point where the point at sigma_b = 0 repels and one exists (GELU, SiLU, Mish), else the point
    at sigma_b = 0: σ_w = 1 for tanh, √2 for ReLU.

    >>> round(default_critical("relu").sigma_w, 6), round(default_critical("silu").sigma_b, 6)
    (1.414214, 0.745079)
    """
    record = activation(act)
    point = critical(record, sigma_b=0.0)
    return point if point.stable else doubly_critical(record) or point


def _describe_critical_line(act: Activation) -> str:
    """Describe where the critical line of φ runs, or why it has none."""
    q = _critical_grid(act, 0.0)
    phi = moments(act, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        good = q[q - phi.square / phi.slope_square > ROUNDING * q]
    if not phi.slope_square.any():
        return "φ is flat, so that χ₁ = 0 for every sigma_w"
    if not good.size:
        return "E[φ²] > q E[φ′²] at every q, so that χ₁ = 1 would need sigma_b² < 0; set init.gain by hand instead"
    starts, _ = _critical_q(act, np.zeros(1))
    return f"it has one for q_star of {starts[-1] if starts.size else good.min():.4g} and above"
