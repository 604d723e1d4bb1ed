"""Every moment of φ that a forecast needs, as fast interpolants in ln q, and products of two correlated inputs.

A forecast asks for the same functions of q layer after layer. They are analytic in ln q, so polynomials through 20
Chebyshev points over each factor of 16 in q give them to about 1e-9. With the Hermite coefficients a_n(q) of φ(√q z)
among them, Mehler's formula answers for any two inputs, of unequal lengths too:

    E[φ(u₁)φ(u₂)] = Σ_n a_n(q₁) a_n(q₂) cⁿ

Sources: F. Mehler (1866); A. Daniely, R. Frostig and Y. Singer (2016), *Toward deeper understanding of neural networks*
(the dual activation).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from initlab.activations import Activation
from initlab.theory.maps import moments
from initlab.theory.mehler_tail import mehler_tail
from initlab.theory.quadrature import MAX_Q, MIN_Q, octave_of, quadrature_rule

HERMITE_TERMS = 64
"""Hermite coefficients kept; the rest of a kinked φ is below 3e-4 of E[φ²], and `mehler_tail` estimates it."""
_CHEBYSHEV_POINTS = 20
_BLOCK_WIDTH = math.log(16.0)


class InterpolatedMoments(NamedTuple):
    """Moments of φ over N(0, q), arrays [...] of q's shape, and its Hermite coefficients [..., TERMS]."""

    q: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    slope_square: np.ndarray
    slope_fourth: np.ndarray
    hermite: np.ndarray


def interpolate_moments(act: Activation, q: np.ndarray) -> InterpolatedMoments:
    """Interpolate the moments of φ at second moments `q` ≥ 0 (0: the limit).

    >>> from initlab.activations import ACTIVATIONS
    >>> interpolate_moments(ACTIVATIONS["relu"], np.array([2.0])).square.round(9).tolist()
    [1.0]
    """
    columns = _interpolate_columns(act, q, slice(None))
    mean, square, slope_square, slope_fourth = np.moveaxis(columns[..., :4], -1, 0)
    return InterpolatedMoments(np.asarray(q, dtype=float), mean, square, slope_square, slope_fourth, columns[..., 4:])


def interpolate_square(act: Activation, q: np.ndarray) -> np.ndarray:
    """Interpolate E[φ²] alone.

    >>> from initlab.activations import ACTIVATIONS
    >>> interpolate_square(ACTIVATIONS["linear"], np.array([2.0])).round(9).tolist()
    [2.0]
    """
    return _interpolate_columns(act, q, slice(1, 2))[..., 0]


def _interpolate_columns(act: Activation, q: np.ndarray, columns: slice) -> np.ndarray:
    x = np.log(np.clip(q, MIN_Q, MAX_Q)).ravel() / _BLOCK_WIDTH
    block = np.floor(x).astype(int)
    parts = [(block == k, _chebyshev_coefficients(act, int(k))[:, columns]) for k in np.unique(block)]
    answer = np.empty((x.size, parts[0][1].shape[1]))
    for mask, coefficients in parts:
        place = np.clip(2 * (x[mask] % 1.0) - 1, -1, 1)
        answer[mask] = np.cos(np.arccos(place)[:, None] * np.arange(_CHEBYSHEV_POINTS)) @ coefficients
    return answer.reshape(*np.shape(q), -1)


def through_activation(
    act: Activation, q: np.ndarray, products: np.ndarray | None, pairs: np.ndarray
) -> tuple[InterpolatedMoments, np.ndarray | None]:
    """Pass samples [S, *map] of second moments `q`, and `products` of `pairs` [P, 2] of them, through φ.

    Small ones are cached: the layers of a grid's networks have the same moments over and over.

    Args:
        act: the activation.
        q: second moments [S, *map].
        products: of pairs of samples [P, *map]; None where they are not known.
        pairs: the samples of each pair [P, 2].

    Returns:
        The moments of φ, and the products behind it.

    >>> from initlab.activations import ACTIVATIONS
    >>> _, products = through_activation(ACTIVATIONS["linear"], np.ones(2), np.array([0.3]), np.array([[0, 1]]))
    >>> products.round(9).tolist()
    [0.3]
    """
    if q.size > 16:
        return _moments_through(act, q, products, pairs)
    packed = None if products is None else products.tobytes()
    return _cached_through(act, q.tobytes(), q.shape, packed, pairs.tobytes())


@lru_cache(maxsize=4096)
def _cached_through(
    act: Activation, q: bytes, shape: tuple[int, ...], products: bytes | None, pairs: bytes
) -> tuple[InterpolatedMoments, np.ndarray | None]:
    index = np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)
    unpacked = None if products is None else np.frombuffer(products).reshape(len(index), *shape[1:])
    return _moments_through(act, np.frombuffer(q).reshape(shape), unpacked, index)


def _moments_through(
    act: Activation, q: np.ndarray, products: np.ndarray | None, pairs: np.ndarray
) -> tuple[InterpolatedMoments, np.ndarray | None]:
    phi = interpolate_moments(act, q)
    if products is None:
        return phi, None
    one, two = (InterpolatedMoments(*(x[side] for x in phi)) for side in pairs.T)
    lengths = np.sqrt(one.q * two.q)
    c = np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return phi, mehler_product(one, two, np.clip(c, -1, 1))


def mehler_product(one: InterpolatedMoments, two: InterpolatedMoments, c: np.ndarray) -> np.ndarray:
    """Return E[φ(u₁)φ(u₂)] for inputs of correlation `c` and given moments: Mehler's sum."""
    powers = np.ones((*np.shape(c), HERMITE_TERMS))
    powers[..., 1:] = np.asarray(c)[..., None]
    total = (one.hermite * two.hermite * np.cumprod(powers, axis=-1)).sum(-1)
    (rest, order), (other_rest, other_order) = truncated_terms(one), truncated_terms(two)
    return total + np.sqrt(rest * other_rest) * mehler_tail(np.sqrt(order * other_order), HERMITE_TERMS, c)[0]


def truncated_terms(of: InterpolatedMoments) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ a_n² over the terms left out, from E[φ²], and their mean order n, from Σ n a_n² = q E[φ′²]."""
    squares = of.hermite**2
    rest = of.square - squares.sum(-1)
    rest = np.where(rest > 1e-13 * of.square, rest, 0.0)
    slope = of.q * of.slope_square - squares @ np.arange(HERMITE_TERMS)
    return rest, np.where(rest > 0, np.maximum(slope / np.where(rest > 0, rest, 1.0), HERMITE_TERMS), HERMITE_TERMS)


@lru_cache(maxsize=1024)
def _chebyshev_coefficients(act: Activation, k: int) -> np.ndarray:
    """Return Chebyshev coefficients [_POINTS, 4 + TERMS] over ln q from k to k + 1 blocks."""
    angles = np.pi * (np.arange(_CHEBYSHEV_POINTS) + 0.5) / _CHEBYSHEV_POINTS
    q = np.clip(np.exp(_BLOCK_WIDTH * (k + (np.cos(angles) + 1) / 2)), MIN_Q, MAX_Q)
    phi = moments(act, q)
    columns = np.stack([phi.mean, phi.square, phi.slope_square, phi.slope_fourth], axis=1)
    values = np.concatenate([columns, _hermite_coefficients(act, q)], axis=1)
    analysis = np.cos(np.arange(_CHEBYSHEV_POINTS)[:, None] * angles) * (2 / _CHEBYSHEV_POINTS)
    analysis[0] /= 2
    return analysis @ values


def _hermite_coefficients(act: Activation, q: np.ndarray) -> np.ndarray:
    """a_n(q) = E[φ(√q z) h_n(z)] with normalized Hermite polynomials: [len(q), TERMS]."""
    answer = np.empty((q.size, HERMITE_TERMS))
    octaves = octave_of(q)
    for octave in np.unique(octaves):
        mask = octaves == octave
        nodes = quadrature_rule(act, int(octave))
        z = nodes.u / np.sqrt(q[mask])[:, None]
        weighted = np.exp(-0.5 * z * z) * (nodes.phi * nodes.weight) / np.sqrt(2 * np.pi * q[mask])[:, None]
        before, now = np.zeros_like(z), np.ones_like(z)
        for n in range(HERMITE_TERMS):
            answer[mask, n] = (now * weighted).sum(axis=1)
            before, now = now, (z * now - np.sqrt(n) * before) / np.sqrt(n + 1)
    return answer
