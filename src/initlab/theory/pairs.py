"""Gaussian expectations over two correlated inputs, u₁ and u₂ of variance q and correlation c, exact also near c = 1.

In s = (u₁ + u₂)/2 and d = (u₁ − u₂)/2, which are independent with variances q(1 + c)/2 and q(1 − c)/2, the ridge of a
density with c → 1 becomes a product, and 1 − C(c) needs no cancelling difference:

    E[(φ(u₁) − φ(u₂))²] / (2q(1 − c)) = E[(Δφ/Δu)² · d²/Var d] =: r(q, c)

which tends to E[φ′²] as c → 1, so that c* solves σ_w² r(q*, c) = 1.

An analytic φ is integrated by the trapezoidal rule in both directions, halving its step until the answer stands
(L. N. Trefethen and J. Weideman, 2014, *The exponentially convergent trapezoidal rule*). With kinks, the inner
integral over s is split where s + d or s − d meets one, and the outer integral over d where two of those places cross.
"""

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from initlab.activations import Activation
from initlab.errors import UserError
from initlab.theory.quadrature import (
    GAUSSIAN_CUTOFF,
    MIN_Q,
    gaussian_expectations,
    octave_of,
    panel_edges,
    panel_nodes,
    phi_and_slope,
    refine_panels,
)

_AGREEMENT = 1e-9  # two steps that agree to this: the smaller one is right to about its square
_MAX_POINTS = 1 << 22  # a finer grid than this is left to panels, which follow φ where it changes


class PairMoments(NamedTuple):
    """Expectations over two correlated inputs."""

    secant: float
    """r(q, c) = E[(φ(u₁) − φ(u₂))²]/(2q(1 − c)), and its limit E[φ′²] at c = 1"""
    slopes: float
    """E[φ′(u₁) φ′(u₂)] = r at c = 1"""


@lru_cache(maxsize=65536)
def pair_moments(act: Activation, q: float, c: float) -> PairMoments:
    """Integrate (Δφ/Δu)² and φ′φ′ over two inputs of second moment `q` and correlation `c` in [−1, 1].

    Relative error below 1e-10 for every activation of the registry.

    >>> from initlab.activations import ACTIVATIONS
    >>> round(pair_moments(ACTIVATIONS["relu"], 1.0, 0.0).slopes, 12)
    0.25
    """
    q = max(q, MIN_Q)
    octave = octave_of(q)
    edges, kinks = panel_edges(act, 2 * GAUSSIAN_CUTOFF * 2.0**octave)
    if c == 1.0:
        limit = float(gaussian_expectations(act, q, lambda rule: rule.slope[None] ** 2, 1)[0])
        return PairMoments(limit, limit)
    # standard deviations of d and s; at c = −1 that of s is 0, which divides nothing if it is only next to nothing
    across, along = np.sqrt(q * (1 - c) / 2), np.sqrt(q * max(1 + c, 1e-24) / 2)
    # a panel resolves φ with ORDER nodes: a step that does not would let two equally wrong sums agree
    step = min(0.5, float(np.diff(edges).min()) / 4 / max(across, along))
    smooth = None if kinks else _trapezoidal_moments(act, across, along, step)
    return smooth or _panel_moments(act, across, along, edges, kinks)


def _trapezoidal_moments(act: Activation, across: float, along: float, step: float) -> PairMoments | None:
    before = None
    while True:
        y = (
            np.arange(0, GAUSSIAN_CUTOFF, step) + step
        )  # y = 0 adds nothing to the first integral and is added to the second
        z = np.arange(-GAUSSIAN_CUTOFF, GAUSSIAN_CUTOFF + step, step)
        if y.size * z.size > _MAX_POINTS:
            return None
        now = _grid_sums(act, across, along, y, z, step)
        if before is not None and np.abs(now - before).max() <= _AGREEMENT * np.abs(now).max():
            return PairMoments(float(now[0]), float(now[1]))
        before, step = now, step / 2


def _grid_sums(act: Activation, across: float, along: float, y: np.ndarray, z: np.ndarray, step: float) -> np.ndarray:
    s, d = along * z, across * np.append(0.0, y)[:, None]
    (plus, slope_plus), (minus, slope_minus) = phi_and_slope(act, s + d), phi_and_slope(act, s - d)
    over_s = np.exp(-z * z / 2) * (step / np.sqrt(2 * np.pi))
    over_d = np.exp(-(np.append(0.0, y) ** 2) / 2) * (2 * step / np.sqrt(2 * np.pi))
    over_d[0] /= 2
    secants = ((plus - minus) ** 2)[1:] @ over_s / (4 * across**2)
    return np.array([over_d[1:] @ secants, over_d @ ((slope_plus * slope_minus) @ over_s)])


def _panel_moments(
    act: Activation, across: float, along: float, edges: np.ndarray, kinks: tuple[float, ...]
) -> PairMoments:
    inner = np.concatenate([along * np.array([-GAUSSIAN_CUTOFF, -4.5, -1.5, 1.5, 4.5, GAUSSIAN_CUTOFF])])

    def over_s(d: np.ndarray) -> np.ndarray:
        flat = d.reshape(-1, 1)
        cuts = np.concatenate([np.broadcast_to(inner, (flat.size, inner.size)), edges + flat, edges - flat], axis=1)
        s, weight = panel_nodes(np.sort(np.clip(cuts, inner[0], inner[-1]), axis=1))
        weight = weight * np.exp(-0.5 * (s / along) ** 2) / (along * np.sqrt(2 * np.pi))
        shift = flat[:, :, None]
        (plus, slope_plus), (minus, slope_minus) = phi_and_slope(act, s + shift), phi_and_slope(act, s - shift)
        secant = (weight * ((plus - minus) / (2 * shift)) ** 2).sum(axis=(1, 2))
        slopes = (weight * slope_plus * slope_minus).sum(axis=(1, 2))
        return np.stack([secant, slopes]).reshape(2, *d.shape)

    outermost = GAUSSIAN_CUTOFF * across
    crossings = {abs(a - b) / 2 for a, b in combinations(kinks, 2)} | {abs(k) for k in kinks}
    cuts = {0.0, 1.5 * across, 4.5 * across, outermost} | {x for x in crossings if 0 < x < outermost}
    steepest = float((phi_and_slope(act, np.append(edges - 1e-9, edges + 1e-9))[1] ** 2).max())
    low, high, _ = refine_panels(over_s, np.array(sorted(cuts)), f"activation {act.name!r}", floor=1e-6 * steepest)
    d, weight = panel_nodes(np.append(low, high[-1]))
    weight = weight * np.exp(-0.5 * (d / across) ** 2) * (2 / (across * np.sqrt(2 * np.pi)))
    secant, slopes = over_s(d)
    answer = PairMoments(float((weight * secant * (d / across) ** 2).sum()), float((weight * slopes).sum()))
    if not np.isfinite(answer).all():
        raise UserError(f"activation {act.name!r} grows too fast for its c-map to be finite; use a smaller q.")
    return answer
