"""q*, χ₁, c*, ξ_c and the phase over a grid of (σ_w, σ_b): the map of where networks train.

Every point needs the same functions of q and c, so they are interpolated (`interpolate_moments`) and all points are
solved at once: q* by a bracketed root in ln q, c* from (1 − C(c))/(1 − c) = 1, where the factor 1 − c is divided out of
Mehler's sum by hand, so that nothing cancels next to the critical line. Sources: Poole et al. (2016); Schoenholz et al.
(2017).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.polynomial.polynomial import polyval

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.theory.fixed_points import (
    CRITICAL_TOLERANCE,
    GRID_MIN_Q,
    ROUNDING,
    q_grid,
    require_continuous,
    slope_square_at_infinity,
    slope_square_at_zero,
)
from initlab.theory.interpolation import (
    HERMITE_TERMS,
    InterpolatedMoments,
    interpolate_moments,
    interpolate_square,
    truncated_terms,
)
from initlab.theory.maps import moments
from initlab.theory.mehler_tail import mehler_tail
from initlab.theory.roots import find_roots


@dataclass(frozen=True)
class PhaseDiagram:
    """Arrays [len(sigma_b), len(sigma_w)]; 0 and inf in `q_star` are limits, as in `fixed_point`."""

    sigma_w: np.ndarray
    sigma_b: np.ndarray
    q_star: np.ndarray
    chi_1: np.ndarray
    c_star: np.ndarray
    xi_c: np.ndarray
    phase: np.ndarray

    def frame(self) -> pd.DataFrame:
        """Return one row per point: sigma_w, sigma_b, q_star, chi_1, c_star, xi_c, phase."""
        sigma_w, sigma_b = np.meshgrid(self.sigma_w, self.sigma_b)
        columns = {"sigma_w": sigma_w, "sigma_b": sigma_b, "q_star": self.q_star, "chi_1": self.chi_1}
        columns |= {"c_star": self.c_star, "xi_c": self.xi_c, "phase": self.phase}
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


def phase_diagram(act: Any, sigma_w: Any, sigma_b: Any, start: float = 1.0) -> PhaseDiagram:
    """Solve the fixed points of all_points pair of `sigma_w` and `sigma_b`.

    The answers agree with `fixed_point`: q*, χ₁ and the phase to about 1e-10, and so mostly c* and ξ_c (nine points in
    ten to 1e-4), but right next to the critical line, where φ has kinks, ξ_c is good to a few percent only.

    Args:
        act: activation by name, record or callable.
        sigma_w: standard deviations of √fan_in · W, one-dimensional.
        sigma_b: standard deviations of b, one-dimensional.
        start: second moment to start from.

    A negative σ, or a φ that jumps or cannot be integrated, is a `UserError`.

    >>> map_ = phase_diagram("tanh", sigma_w=[1.0, 2.0], sigma_b=[0.05**0.5])
    >>> map_.phase.tolist(), map_.xi_c.round(3).tolist()
    ([['ordered', 'chaotic']], [[3.627, 6.98]])
    """
    record = activation(act)
    columns, rows = _check_axis("sigma_w", sigma_w), _check_axis("sigma_b", sigma_b)
    require_continuous(record)
    shape = (rows.size, columns.size)
    wide, bias = np.broadcast_to(columns**2, shape).ravel(), np.broadcast_to(rows[:, None] ** 2, shape).ravel()
    q = _solve_q_star(record, wide, bias, start)
    inside = (q > 0) & np.isfinite(q)
    phi = interpolate_moments(record, q[inside])
    chi = wide * np.where(q == 0, slope_square_at_zero(record), slope_square_at_infinity(record))
    chi[inside] = wide[inside] * phi.slope_square
    c, slope = np.ones(q.size), np.where(np.isinf(q) & (chi > 1), 1.0, chi)
    chaotic = chi[inside] > 1 + CRITICAL_TOLERANCE
    where = np.flatnonzero(inside)[chaotic]
    c[where], slope[where] = _solve_c_star(InterpolatedMoments(*(x[chaotic] for x in phi)), wide[where])
    with np.errstate(divide="ignore"):
        xi_c = np.where(np.abs(slope - 1) <= CRITICAL_TOLERANCE, np.inf, -1 / np.log(slope))
    phase = np.where(np.abs(chi - 1) <= CRITICAL_TOLERANCE, "critical", np.where(chi < 1, "ordered", "chaotic"))
    return PhaseDiagram(columns, rows, *(x.reshape(shape) for x in (q, chi, c, xi_c, phase)))


def _check_axis(name: str, values: Any) -> np.ndarray:
    axis = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if axis.ndim != 1 or not axis.size:
        raise UserError(f"{name} must be a list of numbers for a phase diagram, not {values!r}.")
    for bad in axis[~(np.isfinite(axis) & (axis >= 0))]:
        raise UserError(f"{name}={bad} must be a finite number ≥ 0: it is a standard deviation.")
    return axis


def _solve_q_star(act: Activation, wide: np.ndarray, bias: np.ndarray, start: float) -> np.ndarray:
    """Return where q tends to from `start` under V(q) = wide · E[φ²] + bias; 0 and inf where it does not settle."""
    grid = q_grid(act, max(float(bias.min()), GRID_MIN_Q), float(wide.max()), float(bias.max()))
    grid = np.sort(np.append(grid, start))
    square, at = moments(act, grid).square, int(np.searchsorted(grid, start))
    x = np.log(grid)

    def excess(x: np.ndarray, index: np.ndarray) -> np.ndarray:
        q = np.exp(x)
        return (wide[index] * interpolate_square(act, q) + bias[index]) / q - 1

    answer = np.empty(wide.size)
    low: list[np.ndarray] = []
    high: list[np.ndarray] = []
    solved: list[np.ndarray] = []
    for i in range(0, wide.size, 4096):
        part = slice(i, i + 4096)
        ratio = (wide[part, None] * square + bias[part, None]) / grid - 1
        ratio = np.where(np.abs(ratio) < ROUNDING, 0.0, np.where(np.isfinite(ratio), ratio, np.inf))
        rises, falls = ratio[:, at] > 0, ratio[:, at] < 0
        above, below = ratio[:, at:] < 0, ratio[:, : at + 1] > 0
        next_, last = above.argmax(axis=1) + at, at - below[:, ::-1].argmax(axis=1)
        up, down = rises & above.any(axis=1), falls & below.any(axis=1)
        answer[part] = np.where(rises, np.inf, np.where(falls, 0.0, start))
        low += [x[next_[up] - 1], x[last[down]]]
        high += [x[next_[up]], x[last[down] + 1]]
        solved += [i + np.flatnonzero(up), i + np.flatnonzero(down)]
    index = np.concatenate(solved)
    roots = find_roots(lambda x, k: excess(x, index[k]), np.concatenate(low), np.concatenate(high))
    answer[index] = np.exp(roots)
    return answer


def _solve_c_star(series: InterpolatedMoments, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return c* in the chaotic phase and C′(c*)."""
    weight = wide / series.q
    terms = series.hermite**2
    rest, order = truncated_terms(series)
    above = np.cumsum(terms[:, ::-1], axis=1)[:, ::-1]  # Σ_{k ≥ n} a_k²: 1 − cⁿ divided by 1 − c, collected

    def excess(c: np.ndarray, index: np.ndarray) -> np.ndarray:
        value, slope = mehler_tail(order[index], HERMITE_TERMS, c)
        with np.errstate(divide="ignore", invalid="ignore"):
            secant = np.where(c == 1, slope, (1 - value) / (1 - c))
        return weight[index] * (polyval(c, above[index, 1:].T, tensor=False) + rest[index] * secant) - 1

    all_points = np.arange(wide.size)
    odd = excess(np.zeros(wide.size), all_points) > -ROUNDING  # C(0) = 0: odd φ and no bias
    # χ₁ > 1 by less than the interpolation's error leaves no sign change: c* = 1 to that accuracy
    close = excess(np.ones(wide.size), all_points) <= 0
    c = np.where(odd, 0.0, 1.0)
    solve = np.flatnonzero(~odd & ~close)
    c[solve] = find_roots(lambda x, k: excess(x, solve[k]), np.zeros(solve.size), np.ones(solve.size))
    slope = polyval(c, (np.arange(1, HERMITE_TERMS) * terms[:, 1:]).T, tensor=False)
    return c, weight * (slope + rest * mehler_tail(order, HERMITE_TERMS, c)[1])
