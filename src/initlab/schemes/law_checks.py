"""Checks of a tensor against the law that a scheme promises: each returns the probability of a result as bad as this.

Continuous laws of independent elements are tested exactly (`samples`). Sums that flipping signs leaves unchanged in law
are bounded by Hoeffding's 2·exp(−t²/2) (Hoeffding 1963, "Probability inequalities for sums of bounded random
variables"). Facts that hold exactly (zeros, Gram matrices, mirrored halves) get 0 or 1. So a false alarm's rate is at
most what the caller asks for.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from initlab.schemes.half_precision import SIXTEEN_BITS, rounding_intervals
from initlab.schemes.laws import flatten_units
from initlab.schemes.record import Law
from initlab.schemes.sample_checks import sample_p_values

EXACT_CHECKS = ("finite", "support", "structure", "orthogonal", "second moment")
"""Checks whose result is 0 or 1: they give no false alarm."""

ROUNDING_UNITS = 16
"""Exact facts may be off by this many units of float32's rounding, and by 2 of a coarser format's."""


def p_values(weight: Tensor, law: Law, units: Sequence[Tensor] | None = None) -> dict[str, float]:
    """Return, per check that applies, the probability that a block obeying `law` looks as bad as `weight` does.

    Args:
        weight: one block, shape (out, in, *receptive), or all elements of a tensor whose elements are independent.
        law: what its scheme promises.
        units: the blocks of `weight` that have units as their rows (default: `weight` itself).

    >>> from initlab.schemes.laws import normal
    >>> w = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    >>> min(p_values(w, normal(0, 1)).values()) > 0.001, p_values(w, normal(0, 2))["variance"] < 1e-9
    (True, True)
    """
    values = weight.detach()
    if not bool(values.isfinite().all()):
        return {"finite": 0.0}
    p = {"finite": 1.0}
    if math.isnan(law.variance):  # a user's own scheme has no law
        return p
    epsilon = _rounding_error(values.dtype)
    p["support"] = _support_p_value(values, law, epsilon)
    if law.defect is not None:
        p["structure"] = float(law.defect(values.cpu().double()) <= epsilon * _largest_bound(law))
    if law.orthogonal is not None:
        double = values.cpu().double()
        matrix = flatten_units(double) if law.part is None else law.part(double)
        p["orthogonal"] = _orthogonal_p_value(matrix, law.orthogonal, epsilon)
        p |= {"mean": _mean_p_value(matrix), "haar": _haar_p_value(matrix, law.orthogonal)}
    elif law.cdf is not None:
        p |= sample_p_values(values if law.free is None else law.free(values), law)
    elif not law.deterministic:
        double = values.cpu().double()
        p["mean"] = _mean_p_value(double - law.mean)
        p["second moment"] = _second_moment_p_value(double, law, epsilon)
    if not law.deterministic:
        blocks = [values] if units is None else units
        if _has_units(blocks):
            p["units differ"] = min(1.0, len(blocks) * min(repeated_units_bound(block, law) for block in blocks))
    return p


def violations(weight: Tensor, law: Law, alpha: float = 1e-8) -> list[str]:
    """Return the names of the checks that `weight` fails, at a false-alarm rate of at most `alpha` for all together.

    >>> from initlab.schemes.laws import uniform
    >>> w = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    >>> violations(w, uniform(0, 1)), violations(2 * w, uniform(0, 1))
    ([], ['support', 'mean', 'variance', 'ks'])
    """
    results = p_values(weight, law)
    return [name for name, p in results.items() if p < alpha / len(results)]


def independence_p_value(first: Tensor, second: Tensor) -> float:
    """Return the probability that independent tensors correlate as these do, element by element in storage order.

    Two weights drawn from one seed correlate even when their shapes and scales differ; their first elements are
    compared.

    >>> independence_p_value(torch.arange(99.0), 2 * torch.arange(200.0)) < 1e-9
    True
    """
    size = min(first.numel(), second.numel())
    x, y = (t.detach().to("cpu", torch.float64).flatten()[:size].numpy() for t in (first, second))
    x, y = x - x.mean(), y - y.mean()
    products = x * y
    norm = math.sqrt(float(products @ products))
    # Given the products' magnitudes their signs are fair where the tensors are independent and symmetric, for sparse
    # tensors and heavy tails too.
    return 1.0 if norm == 0 else hoeffding_bound(float(products.sum()) / norm)


def hoeffding_bound(t: float) -> float:
    """Return the bound 2·exp(−t²/2) on the probability that a sum of fair signs times weights of norm 1 reaches |t|.

    >>> hoeffding_bound(0.5), round(hoeffding_bound(6), 10)
    (1.0, 3.05e-08)
    """
    return min(1.0, 2 * math.exp(-t * t / 2))


def repeated_units_bound(weight: Tensor, law: Law | None = None) -> float:
    """Return a bound on the probability that as many rows (out, …) are equal to another as are in `weight`.

    >>> repeated_units_bound(torch.tensor([[1.0, 2.0], [1.0, 2.0]])) < 1e-9
    True
    """
    rows = weight.detach().cpu().reshape(weight.shape[0], -1)
    again = _repeated_rows(rows)
    if not len(again):
        return 1.0
    # Zeros may be part of the law (sparse rows): only the others are chosen freely.
    free = int((rows[again] != 0).sum(1).min())
    expected = math.log(math.comb(len(rows), 2)) + free * math.log(_collision_probability(rows.dtype, law))
    # Pairs that agree by chance are all but independent: P(at least k of mean λ) ≤ λᵏ/k!.
    bound = len(again) * expected - math.lgamma(len(again) + 1)
    return 1.0 if expected >= 0 else math.exp(max(bound, -700.0))


def _repeated_rows(rows: Tensor) -> Tensor:
    # Indices of rows that repeat one before them. A fixed projection brings equal rows together.
    keys = rows.double() @ torch.linspace(1, 2, rows.shape[1], dtype=torch.float64, device="cpu").sqrt()
    ranked, order = keys.sort()
    near = (ranked.diff() <= 1e-9 * keys.abs().max()).nonzero().flatten()
    return order[near + 1][(rows[order[near]] == rows[order[near + 1]]).all(1)]


def _collision_probability(dtype: torch.dtype, law: Law | None) -> float:
    # Bound on the probability that two elements are equal by chance.
    if dtype not in SIXTEEN_BITS:
        return 2.0**-22
    if law is None or law.cdf is None:
        return 1 / 64
    intervals = rounding_intervals(dtype)
    return float(np.nansum((law.cdf(intervals.upper) - law.cdf(intervals.lower)) ** 2))


def _has_units(blocks: Sequence[Tensor]) -> bool:
    return any(block.dim() > 1 and block.shape[0] > 1 and block[0].numel() > 1 for block in blocks)


def _rounding_error(dtype: torch.dtype) -> float:
    # Rounding two rows moves their product by at most one unit: |Δ| ≤ ε/2 · |a||b| twice.
    return ROUNDING_UNITS * torch.finfo(torch.float32).eps + (
        2 * torch.finfo(dtype).eps if dtype in SIXTEEN_BITS else 0.0
    )


def _largest_bound(law: Law) -> float:
    bounds = [abs(bound) for bound in law.support if math.isfinite(bound)]
    return max(bounds, default=1.0)


def _support_p_value(w: Tensor, law: Law, epsilon: float) -> float:
    slack = epsilon * _largest_bound(law)
    low, high = law.support
    return float(float(w.min()) >= low - slack and float(w.max()) <= high + slack)


def _mean_p_value(w: Tensor) -> float:
    # Flipping signs changes nothing in law: given the magnitudes, Var Σx = Σx².
    norm = float(w.norm())
    return 1.0 if norm == 0 else hoeffding_bound(float(w.sum()) / norm)


def _haar_p_value(q: Tensor, gain: float) -> float:
    # The trace of a Haar matrix is all but normal; QR without the sign fix piles its diagonal up below 0.
    rows, columns = q.shape
    std = abs(gain) * math.sqrt(min(rows, columns) / max(rows, columns))
    return float(2 * ndtr(-abs(float(q.diagonal().sum())) / std))


def _orthogonal_p_value(q: Tensor, gain: float, epsilon: float) -> float:
    gram = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
    off = gram - gain**2 * torch.eye(len(gram), dtype=gram.dtype)
    return float(float(off.abs().max()) <= epsilon * gain**2)


def _second_moment_p_value(w: Tensor, law: Law, epsilon: float) -> float:
    # Laws with fixed row norms: the second moment is exact.
    promised = law.variance + law.mean**2
    return float(abs(float(w.square().mean()) - promised) <= 2 * epsilon * promised)
