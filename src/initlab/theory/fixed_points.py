"""Fixed points of the q-map and of the c-map, what kind they are, and the depth scales that follow.

V(q*) = q* and C(c*) = c*. ξ_q = −1/ln |χ_q|, ξ_c = −1/ln C′(c*), ξ_grad = 1/|ln χ₁|, all in layers. Sources: Poole et
al. (2016), *Exponential expressivity in deep neural networks through transient chaos*; Schoenholz et al. (2017), *Deep
information propagation*; Hayou, Doucet and Rousseau (2019), *On the impact of the activation function on deep neural
networks training*.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.theory.maps import check_sigmas, moments
from initlab.theory.pairs import pair_moments
from initlab.theory.quadrature import panel_edges, phi_and_slope, phi_values
from initlab.theory.roots import find_roots, sign_changes

ROUNDING = 1e-13
"""Relative differences below this are rounding."""
TOUCH_TOLERANCE = 1e-12
"""|V(q)/q − 1| below which a q-map that touches the diagonal without crossing it has a fixed point at_turns."""
NEAR_DIAGONAL, REFINEMENT = 0.01, 16
"""|V(q)/q − 1| on the grid below which it is looked at more closely, and how much: it has eight points to an octave."""
MAX_RATIO = 1e300
"""What stands for V(q)/q beyond the largest float."""
CRITICAL_TOLERANCE = 1e-9
"""|χ₁ − 1| below which a point is called critical."""
TRAINABLE_SCALES = 6.0
"""Networks train to a depth of about 6 ξ_c (Schoenholz et al. 2017); the factor depends on steps and rate."""
GRID_MIN_Q, GRID_MAX_Q = 2.0**-44, 2.0**40


@dataclass(frozen=True)
class FixedPoint:
    """Where second moments and correlations settle, and how fast.

    Attributes:
        sigma_w, sigma_b: the given standard deviations.
        q_star: second moment that a signal started at `start` tends to; 0 and inf are limits.
        kind: `stable`; `repelling` (V has a fixed point at `start`, but leaves it when disturbed); `half_stable` (it
            repels on one side); `any` (order q is fixed: scale-free φ at its critical gain); `zero` (q tends to 0;
            the other fields are the limits σ_b → 0); `infinite` (q grows without bound; the fields are limits).
        stable: a small disturbance of q does not grow, on either side.
        chi_1, chi_q: slopes of the c-map at c = 1 and of the q-map, at q_star.
        c_star: correlation that two inputs tend to.
        xi_q, xi_c, xi_grad: depth scales in layers.
        phase: `ordered` (χ₁ < 1), `critical` or `chaotic` (χ₁ > 1).
        others: further fixed points of the q-map, as (q, χ_q).
    """

    sigma_w: float
    sigma_b: float
    q_star: float
    kind: str
    stable: bool
    chi_1: float
    chi_q: float
    c_star: float
    xi_q: float
    xi_c: float
    xi_grad: float
    phase: str
    others: tuple[tuple[float, float], ...] = ()

    @property
    def trainable_depth(self) -> float:
        """About 6 ξ_c layers; where q grows without bound the gradient's scale ξ_grad stands in for ξ_c."""
        return TRAINABLE_SCALES * (self.xi_grad if self.kind == "infinite" else self.xi_c)


def fixed_point(act: Any, sigma_w: float, sigma_b: float = 0.0, start: float = 1.0) -> FixedPoint:
    """Find where the q-map leads from `start`, and describe that point.

    Args:
        act: activation by name, record or callable.
        sigma_w: standard deviation of √fan_in · W.
        sigma_b: standard deviation of b.
        start: second moment of the first layer's preactivations.

    Raises:
        UserError: a negative σ, a `start` that is not positive, or a φ that jumps or cannot be integrated.

    >>> point = fixed_point("tanh", sigma_w=2**0.5, sigma_b=0.05**0.5)
    >>> round(point.q_star, 8), round(point.c_star, 8), round(point.xi_c, 4), point.phase
    (0.72176187, 0.74408242, 25.2134, 'chaotic')
    >>> fixed_point("relu", sigma_w=2**0.5).kind
    'any'
    """
    record = activation(act)
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    if not (math.isfinite(start) and start > 0):
        raise UserError(f"start={start} must be a positive second moment, such as 1.")
    require_continuous(record)
    roots = _q_fixed_points(record, sigma_w, sigma_b)
    if roots is None:
        return _make_point(record, sigma_w, sigma_b, start, "any", ())
    q_star, side = _limit_point(record, sigma_w, sigma_b, start, roots)
    others = tuple((q, float(sigma_w**2 * moments(record, q).growth)) for q in roots if q != q_star)
    return _make_point(record, sigma_w, sigma_b, q_star, side, others)


def _make_point(
    act: Activation, sigma_w: float, sigma_b: float, q: float, kind: str, others: tuple[tuple[float, float], ...]
) -> FixedPoint:
    if kind in ("zero", "infinite"):
        chi_1 = chi_q = sigma_w**2 * (slope_square_at_zero(act) if kind == "zero" else slope_square_at_infinity(act))
    else:
        phi = moments(act, q)
        chi_1, chi_q = float(sigma_w**2 * phi.slope_square), float(sigma_w**2 * phi.growth)
    if not kind:
        excess = abs(chi_q) - 1
        kind = "repelling" if excess > CRITICAL_TOLERANCE else "stable" if excess < -1e-6 else "half_stable"
    c_star, slope = 1.0, chi_1
    if kind == "infinite" and chi_1 > 1:
        slope = 1.0  # of the c-map normalized by the growing q: correlations move slower than any exponential
    elif chi_1 > 1 + CRITICAL_TOLERANCE:
        c_star = correlation_fixed_point(act, sigma_w, q)
        slope = sigma_w**2 * pair_moments(act, q, c_star).slopes
    return FixedPoint(
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        q_star=q,
        kind=kind,
        stable=kind in ("stable", "any", "zero"),
        chi_1=chi_1,
        chi_q=chi_q,
        c_star=c_star,
        xi_q=depth_scale(abs(chi_q)),
        xi_c=depth_scale(slope),
        xi_grad=abs(depth_scale(chi_1)),
        phase=phase_name(chi_1),
        others=others,
    )


def phase_name(chi: float) -> str:
    """Name the phase of a χ₁.

    >>> phase_name(0.9), phase_name(1.0), phase_name(1.1)
    ('ordered', 'critical', 'chaotic')
    """
    return "critical" if abs(chi - 1) <= CRITICAL_TOLERANCE else "ordered" if chi < 1 else "chaotic"


def depth_scale(slope: float) -> float:
    """Layers over which a deviation shrinks by e, −1/ln(slope): inf at 1, 0 at 0, negative where it grows.

    >>> round(depth_scale(0.5), 4), depth_scale(1.0), depth_scale(0.0)
    (1.4427, inf, 0.0)
    """
    if abs(slope - 1) <= CRITICAL_TOLERANCE:
        return math.inf
    return 0.0 if slope <= 0 or math.isinf(slope) else -1 / math.log(slope)


def correlation_fixed_point(act: Activation, sigma_w: float, q: float) -> float:
    """Return c* in the chaotic phase: the root of σ_w² r(q, c) = 1 in [0, 1), unique because C is convex at_turns."""

    def excess(c: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.array([sigma_w**2 * pair_moments(act, q, float(x)).secant - 1 for x in c])

    # C(0) ≥ 0 exactly; with odd φ and no bias it is 0, and rounding may have either sign
    if excess(np.zeros(1), np.zeros(1))[0] > -ROUNDING:
        return 0.0
    return float(find_roots(excess, np.zeros(1), np.ones(1))[0])


def _q_fixed_points(act: Activation, sigma_w: float, sigma_b: float) -> list[float] | None:
    """Return all fixed points of V in ascending order, 0 first where it attracts; None where order q is one."""
    if sigma_w == 0:
        return [sigma_b**2]
    low = max(sigma_b**2, GRID_MIN_Q)  # V(q) ≥ σ_b²

    excess = partial(_q_excess, act, sigma_w**2, sigma_b**2)
    x, ratio, touches = _add_turning_points(np.log(q_grid(act, low, sigma_w**2, sigma_b**2)), excess)
    if np.abs(ratio).max() < 10 * ROUNDING:
        return None
    before, after = sign_changes(ratio)
    crossings = np.exp(find_roots(lambda x, _: excess(x)[0], x[before], x[after]))
    roots = sorted([*crossings.tolist(), *np.exp(touches).tolist()])
    return [0.0, *roots] if sigma_b == 0 and ratio[np.flatnonzero(ratio)[0]] < 0 else roots


def _q_excess(act: Activation, wide: float, bias: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return V(q)/q − 1 at q = eˣ and its slope in x, which is χ_q − V(q)/q; 0 where they are within rounding."""
    q = np.exp(x)
    phi = moments(act, q)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = (wide * phi.square + bias) / q
        rest, slope = ratio - 1, wide * phi.growth - ratio
    # out of reach is far above the diagonal: φ grows faster than any power at_turns
    rest, slope = (np.where(np.isfinite(y), np.clip(y, -MAX_RATIO, MAX_RATIO), MAX_RATIO) for y in (rest, slope))
    return np.where(np.abs(rest) < ROUNDING, 0.0, rest), np.where(np.abs(slope) < ROUNDING, 0.0, slope)


def _add_turning_points(
    x: np.ndarray, excess: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add to a grid the places near the diagonal where V(q)/q − 1 turns, and return which of them touch it.

    A double root loses half its digits in V(q)/q = 1 itself, and is a simple root of its slope.
    """
    ratio, slope = excess(x)
    close = np.minimum(np.abs(ratio[1:]), np.abs(ratio[:-1])) < NEAR_DIAGONAL
    bends = np.minimum(np.abs(slope[1:]), np.abs(slope[:-1])) < 3 * np.abs(np.diff(slope))  # of power laws none does
    cells = np.flatnonzero(close & bends)
    if not cells.size:
        return x, ratio, np.empty(0)
    finer = x[cells] + np.linspace(0, 1, REFINEMENT, endpoint=False)[1:, None] * (x[cells + 1] - x[cells])
    x = np.sort(np.append(x, finer))
    ratio, slope = excess(x)
    after = np.flatnonzero(np.abs(np.diff(np.sign(slope))) == 2)
    turns = find_roots(lambda x, index: excess(x)[1], x[after], x[after + 1])
    at_turns = excess(turns)[0]
    # a touch rises out of rounding on both sides, to the same side of the diagonal
    beside = np.minimum(np.sign(ratio[after]) * ratio[after + 1], np.abs(ratio[after]))
    touching = (np.abs(at_turns) < TOUCH_TOLERANCE) & (beside > 10 * TOUCH_TOLERANCE)
    order = np.argsort(np.append(x, turns))
    ratio = np.append(ratio, np.where(touching, 0.0, at_turns))[order]
    return np.append(x, turns)[order], ratio, turns[touching]


def q_grid(act: Activation, low: float, wide: float, bias: float) -> np.ndarray:
    """Return second moments from `low` up, eight to an octave, to above all fixed points of wide · E[φ²] + bias."""
    top = wide * phi_supremum(act) ** 2 + bias
    high = min(max(1.01 * top, 4 * low), max(GRID_MAX_Q, 4 * low))
    return np.geomspace(low, high, 2 + int(8 * math.log2(high / low)))


def _limit_point(
    act: Activation, sigma_w: float, sigma_b: float, start: float, roots: list[float]
) -> tuple[float, str]:
    """Return where q tends to from `start`, and the kind where χ_q does not decide it, else ""."""
    for q in roots:
        if q > 0 and abs(q / start - 1) < 1e-6:
            return q, ""
    rises = sigma_w**2 * float(moments(act, start).square) + sigma_b**2 > start
    beyond = [q for q in roots if q > start] if rises else [q for q in reversed(roots) if q < start]
    if not beyond:
        return (math.inf, "infinite") if rises else (0.0, "zero")
    return beyond[0], "zero" if beyond[0] == 0 else ""


@lru_cache(maxsize=256)
def phi_supremum(act: Activation) -> float:
    """Return the largest |φ|, or inf where φ grows without bound."""
    far = np.geomspace(1e2, 1e8, 500)
    near = np.linspace(0, 100, 20001)
    with np.errstate(over="ignore"):
        close, distant = (np.abs(phi_values(act, np.concatenate([-u, u]))).max() for u in (near, far))
    return math.inf if distant > 1.5 * close else float(max(close, distant))


@lru_cache(maxsize=256)
def slope_square_at_zero(act: Activation) -> float:
    """Return E[φ′²] in the limit q → 0: the mean of the squared slopes on the two sides of 0."""
    return float((phi_and_slope(act, np.array([-1e-30, 1e-30]))[1] ** 2).mean())


@lru_cache(maxsize=256)
def slope_square_at_infinity(act: Activation) -> float:
    """Return E[φ′²] in the limit q → ∞: the mean of the squared slopes far out on the two sides."""
    far = 1e8 + np.linspace(0, 100, 1001)
    return float((phi_and_slope(act, np.concatenate([-far, far]))[1] ** 2).mean())


@lru_cache(maxsize=256)
def require_continuous(act: Activation) -> None:
    """Accept a continuous φ: an infinite derivative leaves χ₁ and gradients without meaning.

    Raises:
        UserError: φ jumps.
    """
    edges = panel_edges(act, 64.0)[0]  # order jump is at an edge: no panel that holds one is resolved
    left, right = phi_values(act, edges - 1e-9), phi_values(act, edges + 1e-9)
    jumps = edges[np.abs(right - left) > 1e-6 * (1 + np.abs(left))]
    if jumps.size:
        raise UserError(
            f"activation {act.name!r} jumps at x = {jumps[0]:.6g}, where its derivative is infinite, so that it has no "
            "gain, χ₁ or critical point; use a continuous activation."
        )
