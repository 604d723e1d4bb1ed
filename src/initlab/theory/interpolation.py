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
from initlab.theory.mehler_tail import tail
from initlab.theory.quadrature import LARGEST_Q, SMALLEST_Q, octave_of, rule

TERMS = 64
"""Hermite coefficients kept; what is left out of a kinked φ is below 3e-4 of E[φ²], and `tails` stands in for it."""
_POINTS = 20
_BLOCK = math.log(16.0)


class Response(NamedTuple):
    """Moments of φ over N(0, q), arrays [...] of q's shape, and its Hermite coefficients [..., TERMS]."""

    q: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    slope_square: np.ndarray
    slope_fourth: np.ndarray
    hermite: np.ndarray


def response(act: Activation, q: np.ndarray) -> Response:
    """Interpolate the moments of φ at second moments `q` ≥ 0 (0: the limit).

    >>> from initlab.activations import ACTIVATIONS
    >>> response(ACTIVATIONS["relu"], np.array([2.0])).square.round(9).tolist()
    [1.0]
    """
    found = _interpolate(act, q, slice(None))
    mean, square, slope_square, slope_fourth = np.moveaxis(found[..., :4], -1, 0)
    return Response(np.asarray(q, dtype=float), mean, square, slope_square, slope_fourth, found[..., 4:])


def square_response(act: Activation, q: np.ndarray) -> np.ndarray:
    """E[φ²] alone.

    >>> from initlab.activations import ACTIVATIONS
    >>> square_response(ACTIVATIONS["linear"], np.array([2.0])).round(9).tolist()
    [2.0]
    """
    return _interpolate(act, q, slice(1, 2))[..., 0]


def _interpolate(act: Activation, q: np.ndarray, columns: slice) -> np.ndarray:
    x = np.log(np.clip(q, SMALLEST_Q, LARGEST_Q)).ravel() / _BLOCK
    block = np.floor(x).astype(int)
    parts = [(block == k, _block(act, int(k))[:, columns]) for k in np.unique(block)]
    answer = np.empty((x.size, parts[0][1].shape[1]))
    for here, coefficients in parts:
        place = np.clip(2 * (x[here] % 1.0) - 1, -1, 1)
        answer[here] = np.cos(np.arccos(place)[:, None] * np.arange(_POINTS)) @ coefficients
    return answer.reshape(*np.shape(q), -1)


def through_activation(
    act: Activation, q: np.ndarray, products: np.ndarray | None, pairs: np.ndarray
) -> tuple[Response, np.ndarray | None]:
    """Pass samples [S, *map] of second moments `q`, and `products` of `pairs` [P, 2] of them, through φ.

    Small ones are remembered: the layers of a grid's networks see the same numbers over and over.

    >>> from initlab.activations import ACTIVATIONS
    >>> found = through_activation(ACTIVATIONS["linear"], np.ones(2), np.array([0.3]), np.array([[0, 1]]))
    >>> found[1].round(9).tolist()
    [0.3]
    """
    if q.size > 16:
        return _pass(act, q, products, pairs)
    given = None if products is None else products.tobytes()
    return _remembered(act, q.tobytes(), q.shape, given, pairs.tobytes())


@lru_cache(maxsize=4096)
def _remembered(
    act: Activation, q: bytes, shape: tuple[int, ...], products: bytes | None, pairs: bytes
) -> tuple[Response, np.ndarray | None]:
    index = np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)
    given = None if products is None else np.frombuffer(products).reshape(len(index), *shape[1:])
    return _pass(act, np.frombuffer(q).reshape(shape), given, index)


def _pass(
    act: Activation, q: np.ndarray, products: np.ndarray | None, pairs: np.ndarray
) -> tuple[Response, np.ndarray | None]:
    found = response(act, q)
    if products is None:
        return found, None
    one, two = (Response(*(x[side] for x in found)) for side in pairs.T)
    lengths = np.sqrt(one.q * two.q)
    c = np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return found, product(one, two, np.clip(c, -1, 1))


def product(one: Response, two: Response, c: np.ndarray) -> np.ndarray:
    """E[φ(u₁)φ(u₂)] for inputs of correlation `c`, whose responses are given: Mehler's sum."""
    powers = np.ones((*np.shape(c), TERMS))
    powers[..., 1:] = np.asarray(c)[..., None]
    total = (one.hermite * two.hermite * np.cumprod(powers, axis=-1)).sum(-1)
    (rest, order), (other_rest, other_order) = rest_of(one), rest_of(two)
    return total + np.sqrt(rest * other_rest) * tail(np.sqrt(order * other_order), TERMS, c)[0]


def rest_of(of: Response) -> tuple[np.ndarray, np.ndarray]:
    """Σ a_n² over the terms left out, from E[φ²], and their mean order n, from Σ n a_n² = q E[φ′²]."""
    squares = of.hermite**2
    rest = of.square - squares.sum(-1)
    rest = np.where(rest > 1e-13 * of.square, rest, 0.0)
    slope = of.q * of.slope_square - squares @ np.arange(TERMS)
    return rest, np.where(rest > 0, np.maximum(slope / np.where(rest > 0, rest, 1.0), TERMS), TERMS)


@lru_cache(maxsize=1024)
def _block(act: Activation, k: int) -> np.ndarray:
    """Chebyshev coefficients [_POINTS, 4 + TERMS] over ln q from k to k + 1 blocks."""
    angles = np.pi * (np.arange(_POINTS) + 0.5) / _POINTS
    q = np.clip(np.exp(_BLOCK * (k + (np.cos(angles) + 1) / 2)), SMALLEST_Q, LARGEST_Q)
    found = moments(act, q)
    columns = np.stack([found.mean, found.square, found.slope_square, found.slope_fourth], axis=1)
    values = np.concatenate([columns, _hermite(act, q)], axis=1)
    analysis = np.cos(np.arange(_POINTS)[:, None] * angles) * (2 / _POINTS)
    analysis[0] /= 2
    return analysis @ values


def _hermite(act: Activation, q: np.ndarray) -> np.ndarray:
    """a_n(q) = E[φ(√q z) h_n(z)] with normalised Hermite polynomials: [len(q), TERMS]."""
    answer = np.empty((q.size, TERMS))
    octaves = np.array([octave_of(x) for x in q])
    for octave in np.unique(octaves):
        here = octaves == octave
        nodes = rule(act, int(octave))
        z = nodes.u / np.sqrt(q[here])[:, None]
        weighted = np.exp(-0.5 * z * z) * (nodes.phi * nodes.weight) / np.sqrt(2 * np.pi * q[here])[:, None]
        before, now = np.zeros_like(z), np.ones_like(z)
        for n in range(TERMS):
            answer[here, n] = (now * weighted).sum(axis=1)
            before, now = now, (z * now - np.sqrt(n) * before) / np.sqrt(n + 1)
    return answer
