"""Gaussian expectations of any activation: Gauss–Legendre panels that stop at kinks and refine themselves.

E[f(u)], u ~ N(0, q), is integrated over u itself, so one set of nodes serves every q within a factor of four: φ is
evaluated once and only the Gaussian weights change with q. A panel is split until φ and φ′ are resolved on it, which
follows tanh at √q = 1000, sin(30x), and the kinks of a user's own callable that declares none.

Sources: L. N. Trefethen (2019), *Approximation Theory and Approximation Practice*, chapters 8 and 19 (coefficient decay
as the measure of resolution, Gauss quadrature); P. Davis and P. Rabinowitz (1984), *Methods of Numerical Integration*
(integrals with kinks are split there).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from initlab.activations import Activation
from initlab.errors import UserError

ORDER = 24
"""Gauss–Legendre nodes per panel."""
GAUSSIAN_CUTOFF = 8.5
"""Standard deviations beyond which the Gaussian carries less than 2e-17 of its mass."""
MIN_Q, MAX_Q = 1e-280, 1e280
"""What stands for the limits q → 0 and q → ∞."""
_TAIL_TOLERANCE = 1e-7  # product integrals of analytic functions converge like the cube of the coefficient tail
_NOISE_FLOOR = 1e-6  # far out tanh′ is rounding noise, which must not be chased
_MAX_PANELS = 1 << 18  # more panels than this and φ oscillates too fast for the interval
_MAX_KINKS = 256  # more found than this, and their panels are good enough as they are
_MIN_WIDTH = 2.0**-46  # a panel this narrow, relative to its place, holds a kink and next to no mass

NODES, WEIGHTS = np.polynomial.legendre.leggauss(ORDER)
_ANALYSIS = np.polynomial.legendre.legvander(NODES, ORDER - 1).T * WEIGHTS * (np.arange(ORDER)[:, None] + 0.5)
_UPPER_ANALYSIS = _ANALYSIS[ORDER // 2 :].T  # [node, coefficient]: the upper half of the Legendre coefficients


@dataclass(frozen=True)
class QuadratureRule:
    """Nodes u, Lebesgue weights, φ(u) and φ′(u): everything a Gaussian expectation needs."""

    u: np.ndarray
    weight: np.ndarray
    phi: np.ndarray
    slope: np.ndarray


def phi_and_slope(act: Activation, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return φ and φ′ (by autograd) at points `u`, in float64."""
    x = torch.from_numpy(np.ascontiguousarray(u, dtype=np.float64)).requires_grad_()
    with torch.enable_grad():
        y = act(x)
        if not y.requires_grad:  # a step: constant between its jumps
            return y.numpy(), np.zeros_like(u)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach().numpy(), slope.numpy()


def phi_values(act: Activation, u: np.ndarray) -> np.ndarray:
    """Return φ at points `u`, in float64."""
    with torch.no_grad():
        return act(torch.from_numpy(np.ascontiguousarray(u, dtype=np.float64))).numpy()


def panel_nodes(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss–Legendre nodes and weights, [..., P, ORDER], on the panels between sorted `edges` [..., P + 1]."""
    half = np.diff(edges, axis=-1)[..., None] / 2
    middle = (edges[..., :-1, None] + edges[..., 1:, None]) / 2
    return middle + half * NODES, half * WEIGHTS


def refine_panels(
    function: Callable[[np.ndarray], np.ndarray], edges: np.ndarray, what: str, floor: float = 0.0
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Split the panels between `edges` until `function` is resolved on each.

    A panel is resolved when the upper half of its Legendre coefficients is below 1e-7 of its own largest value, or of a
    millionth of the largest in the inner quarter, where the Gaussian has its mass, or of `floor`. Panels that stay
    unresolved down to a relative width of 2⁻⁴⁶ hold a kink: they are kept, and their places are returned so that the
    caller can start over with them as edges.

    Args:
        function: maps nodes [P, ORDER] to values [K, P, ORDER].
        edges: ends of the first panels, ascending.
        what: name of the function, for the message.
        floor: magnitude below which values need not be resolved.

    Returns:
        The panels' lower and upper ends, and the kinks found.

    Raises:
        UserError: the function oscillates too fast.
    """
    low, high = edges[:-1], edges[1:]
    span, bulk = float(edges[-1] - edges[0]), float(np.abs(edges).max()) / 4
    done: list[tuple[np.ndarray, np.ndarray]] = []
    kinks: list[float] = []
    largest: np.ndarray | float = 0.0
    count = 0
    while low.size:
        half = (high - low)[:, None] / 2
        nodes = (low + high)[:, None] / 2 + half * NODES
        values = function(nodes)
        values = np.where(np.isfinite(values), values, 0.0)  # overflow is no reason to split
        sizes = np.abs(values)
        inner = np.where(np.abs(nodes) <= bulk, sizes, 0.0).max(axis=(1, 2))
        largest = np.maximum(largest, np.where(inner > 0, inner, sizes.max(axis=(1, 2))))
        scale = np.maximum(sizes.max(axis=2), np.maximum(_NOISE_FLOOR * np.expand_dims(largest, 1), floor))
        rough = (np.abs(values @ _UPPER_ANALYSIS).max(axis=2) > _TAIL_TOLERANCE * scale).any(axis=0)
        size = np.maximum(np.maximum(np.abs(low), np.abs(high)), min(span, 1.0))
        narrow = rough & (high - low <= _MIN_WIDTH * size)
        kinks += [float(x) for x in (low[narrow] + high[narrow]) / 2]
        split = rough & ~narrow
        done.append((low[~split], high[~split]))
        count += len(low)
        if count > _MAX_PANELS:
            raise UserError(
                f"{what} changes too fast to be integrated over [{edges[0]:.3g}, {edges[-1]:.3g}]; "
                "use a smaller sigma_w, sigma_b, q or act.omega."
            )
        middle = (low[split] + high[split]) / 2
        low, high = np.concatenate([low[split], middle]), np.concatenate([middle, high[split]])
    low, high = (np.concatenate(ends) for ends in zip(*done, strict=True))
    order = np.argsort(low)
    return low[order], high[order], kinks


@lru_cache(maxsize=4096)
def panel_edges(act: Activation, reach: float, inner: tuple[float, ...] = ()) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return edges in [−reach, reach] between which φ and φ′ are resolved, and the kinks among them, found ones too.

    Args:
        act: the activation.
        reach: end of the interval.
        inner: further edges.
    """
    kinks = {float(k) for k in act.kinks if abs(k) < reach}
    # nodes on [0, 10⁴] would step over the whole slope of tanh: panels always grow from the scale 1 of φ's own features
    steps = [0.5 * 4.0**k for k in range(64) if 0.5 * 4.0**k < reach / 2]
    while True:
        edges = np.array(sorted({-reach, *(-x for x in steps), *inner, *kinks, *steps, reach}))
        low, high, places = refine_panels(lambda u: np.stack(phi_and_slope(act, u)), edges, f"activation {act.name!r}")
        before = len(kinks)
        for kink in places:  # unresolved neighbors of one kink are one place
            if all(abs(kink - known) > 1e-12 * reach for known in kinks):
                kinks.add(kink)
        if len(kinks) == before or len(kinks) > _MAX_KINKS:
            return np.append(low, high[-1]), tuple(sorted(kinks))


@lru_cache(maxsize=4096)
def quadrature_rule(act: Activation, octave: int) -> QuadratureRule:
    """Return nodes for every q with 2^octave ≤ √q < 2^(octave + 1)."""
    scale = 2.0**octave
    # panels of at most 3.5 standard deviations resolve the Gaussian, whichever √q of the octave it belongs to
    gaussian = tuple(sign * scale * step for sign in (-1.0, 1.0) for step in (1.5, 4.0, 8.0))
    edges, _ = panel_edges(act, 2 * GAUSSIAN_CUTOFF * scale, (0.0, *gaussian))
    u, weight = (x.ravel() for x in panel_nodes(edges))
    phi, slope = phi_and_slope(act, u)
    return QuadratureRule(u, weight, phi, slope)


def gaussian_expectations(
    act: Activation, q: np.ndarray | float, integrand: Callable[[QuadratureRule], np.ndarray], columns: int
) -> np.ndarray:
    """Return E[f(u)], u ~ N(0, q), for every q: an array [columns, *q.shape].

    Args:
        act: the activation.
        q: second moments ≥ 0, where 0 stands for the limit.
        integrand: maps a `QuadratureRule` to values [columns, nodes].
        columns: number of integrands.
    """
    moments = np.asarray(q, dtype=np.float64)
    flat = np.clip(moments.ravel(), MIN_Q, MAX_Q)
    answer = np.empty((columns, flat.size))
    octaves = octave_of(flat)
    for octave in np.unique(octaves):
        mask = octaves == octave
        nodes = quadrature_rule(act, int(octave))
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 is what `moments` reports as NaN
            values = (integrand(nodes) * nodes.weight).T
        answer[:, mask] = _integrate(nodes.u, flat[mask], values).T
    return answer.reshape(columns, *moments.shape)


def _integrate(u: np.ndarray, q: np.ndarray, values: np.ndarray, block: int = 1 << 21) -> np.ndarray:
    step = max(1, block // u.size)
    square = -0.5 * u * u
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [np.exp(square / chunk[:, None]) @ values for chunk in np.split(q, range(step, q.size, step))]
    return np.concatenate(parts) / np.sqrt(2 * np.pi * q)[:, None]


def octave_of(q: Any) -> Any:
    """Return the octave of √q: 2^octave ≤ √q < 2^(octave + 1)."""
    return (np.frexp(q)[1] - 1) // 2
