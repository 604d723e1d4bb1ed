"""Does a tensor obey the law that a scheme promises? Each check returns the probability of a result as bad as this.

Continuous laws are tested through u = cdf(x), uniform if the law holds, and z = Φ⁻¹(u), normal: the mean and the
variance of z have exact laws for every number of elements, and Kolmogorov–Smirnov's p is bounded by Dvoretzky, Kiefer,
Wolfowitz and Massart's 2·exp(−2nD²) (Massart 1990, "The tight constant in the DKW inequality"), exact too. Facts that
hold exactly (zeros, Gram matrices, mirrored halves) get 0 or 1. So a false alarm's rate is what the caller asks for.
"""

import math

import numpy as np
import torch
from scipy.special import chdtr, chdtrc, ndtr, ndtri
from torch import Tensor

from .laws import flat
from .record import Law

CLIP = 2.0**-25
"""u is kept this far from 0 and 1: float32 draws have no more resolution there."""

SLACK = 16
"""Exact facts may be off by this many units of rounding."""


def p_values(weight: Tensor, law: Law) -> dict[str, float]:
    """Return, per check that applies, the probability that a block obeying `law` looks as bad as `weight` does.

    Args:
        weight: one block, shape (out, in, *receptive), or all elements of a tensor whose elements are independent.
        law: what its scheme promises.

    >>> from initlab.schemes.laws import normal
    >>> w = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    >>> min(p_values(w, normal(0, 1)).values()) > 0.001, p_values(w, normal(0, 2))["variance"] < 1e-9
    (True, True)
    """
    epsilon = SLACK * torch.finfo(weight.dtype).eps
    w = weight.detach().to("cpu", torch.float64)
    if not bool(w.isfinite().all()):
        return {"finite": 0.0}
    p = {"finite": 1.0, "support": _support(w, law, epsilon)}
    if law.defect is not None:
        p["structure"] = float(law.defect(w) <= epsilon * _size(law))
    if law.orthogonal is not None:
        matrix = flat(w) if law.part is None else law.part(w)
        p["orthogonal"] = _orthogonal(matrix, law.orthogonal, epsilon)
        p |= {"mean": _symmetric_mean(matrix), "haar": _haar(matrix, law.orthogonal)}
    elif law.cdf is not None:
        free = (w if law.free is None else law.free(w)).flatten().numpy()
        p |= _independent(free, law)
    elif not law.deterministic:
        p |= {"mean": _symmetric_mean(w - law.mean), "variance": _second_moment(w, law, epsilon)}
    if not law.deterministic and w.dim() > 1 and w[0].numel() > 1:
        p["units differ"] = float(_distinct(w))
    return p


def violations(weight: Tensor, law: Law, alpha: float = 1e-8) -> list[str]:
    """Return the names of the checks that `weight` fails, at a false-alarm rate of at most `alpha` for all together.

    >>> from initlab.schemes.laws import uniform
    >>> w = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    >>> violations(w, uniform(0, 1)), violations(2 * w, uniform(0, 1))
    ([], ['support', 'mean', 'variance', 'ks'])
    """
    found = p_values(weight, law)
    return [name for name, p in found.items() if p < alpha / len(found)]


def independence(first: Tensor, second: Tensor) -> float:
    """Return the probability that independent tensors correlate as these do, element by element in storage order.

    Two weights drawn from one seed correlate even when their shapes and scales differ; their first elements are
    compared.

    >>> independence(torch.arange(99.0), 2 * torch.arange(200.0)) < 1e-9
    True
    """
    size = min(first.numel(), second.numel())
    x, y = (t.detach().to("cpu", torch.float64).flatten()[:size].numpy() for t in (first, second))
    x, y = x - x.mean(), y - y.mean()
    products = x * y
    norm = math.sqrt(float(products @ products))
    # Given the products' magnitudes their signs are fair where the tensors are independent and symmetric, so the sum
    # over the norm is normal, for sparse tensors and heavy tails too.
    return 1.0 if norm == 0 else float(2 * ndtr(-abs(float(products.sum())) / norm))


def _size(law: Law) -> float:
    bounds = [abs(bound) for bound in law.support if math.isfinite(bound)]
    return max(bounds, default=1.0)


def _support(w: Tensor, law: Law, epsilon: float) -> float:
    slack = epsilon * _size(law)
    low, high = law.support
    return float(float(w.min()) >= low - slack and float(w.max()) <= high + slack)


def _independent(x: np.ndarray, law: Law) -> dict[str, float]:
    assert law.cdf is not None
    exact = law.cdf(x)
    u = np.clip(exact, CLIP, 1 - CLIP)
    z = ndtri(u)
    n = z.size
    p = {"mean": float(2 * ndtr(-abs(z.mean()) * math.sqrt(n))), "variance": _chi_square(float(z @ z), n)}
    ranked = np.sort(u)
    steps = np.arange(n + 1) / n
    distance = max(float((steps[1:] - ranked).max()), float((ranked - steps[:-1]).max()))
    p["ks"] = min(1.0, 2 * math.exp(-2 * n * distance**2))
    p["extremes"] = min(1.0, 2 * min(_largest(exact, n, law.support[1]), _largest(1 - exact, n, law.support[0])))
    return p


def _largest(u: np.ndarray, n: int, bound: float) -> float:
    # P(max u ≤ t) = tⁿ. A float32 draw can lie on a finite bound itself, so there only "too small" counts.
    below = float(u.max()) ** n
    return below if math.isfinite(bound) else min(1.0, 2 * min(below, 1 - below))


def _chi_square(total: float, n: int) -> float:
    return min(1.0, 2 * float(min(chdtr(n, total), chdtrc(n, total))))


def _symmetric_mean(w: Tensor) -> float:
    # Exact up to the normal limit wherever flipping signs changes nothing: given the magnitudes, Var Σx = Σx².
    norm = float(w.norm())
    return 1.0 if norm == 0 else float(2 * ndtr(-abs(float(w.sum())) / norm))


def _haar(q: Tensor, gain: float) -> float:
    # The trace of a Haar matrix is all but normal; QR without the sign fix piles its diagonal up below 0.
    rows, columns = q.shape
    std = gain * math.sqrt(min(rows, columns) / max(rows, columns))
    return float(2 * ndtr(-abs(float(q.diagonal().sum())) / std))


def _orthogonal(q: Tensor, gain: float, epsilon: float) -> float:
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    off = gram - gain**2 * torch.eye(len(gram), dtype=gram.dtype)
    return float(float(off.abs().max()) <= epsilon * gain**2)


def _second_moment(w: Tensor, law: Law, epsilon: float) -> float:
    # Laws with fixed row norms: the second moment is exact.
    promised = law.variance + law.mean**2
    return float(abs(float(w.square().mean()) - promised) <= 2 * epsilon * promised)


def _distinct(w: Tensor) -> bool:
    # A random projection differs between units that differ.
    rows = flat(w)
    weights = torch.linspace(1, 2, rows.shape[1], dtype=rows.dtype).sqrt()
    keys = rows @ weights
    return len(keys.unique()) == len(keys)
