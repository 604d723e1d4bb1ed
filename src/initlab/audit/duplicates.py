"""Layers with the same random numbers: equal values, or equal draws scaled or cut short."""

import math
from collections.abc import Sequence

import numpy as np

from initlab.audit.checks import SAMPLE_SIZE, ParameterCheck


def find_duplicates(checks: Sequence[ParameterCheck], alpha: float) -> dict[int, list[int]]:
    """Return {index: indices of the parameters that it repeats}.

    Products of independent symmetric tensors have fair signs given their magnitudes, so that their sum over their norm
    is bounded by Hoeffding's 2·exp(−t²/2); all pairs are tested at once by two matrix products.

    Args:
        checks: one per parameter.
        alpha: upper bound on the probability of any false pair.
    """
    rows = [(index, check) for index, check in enumerate(checks) if check.sample is not None]
    if len(rows) < 2:
        return {}
    x = np.zeros((len(rows), SAMPLE_SIZE))
    for row, (_, check) in zip(x, rows, strict=True):
        assert check.sample is not None
        row[: check.sample.size] = check.sample / np.abs(check.sample).max()
    # Zeros past the end of the shorter tensor count neither in the sums nor in their norms.
    squares = x**2
    norm = np.sqrt(squares @ squares.T)
    t = np.divide(np.abs(x @ x.T), norm, out=np.zeros_like(norm), where=norm > 0)
    limit = math.sqrt(2 * math.log(2 * math.comb(len(rows), 2) / alpha))
    keys = [check.key for _, check in rows]
    equal = (t > limit) | np.array([[bool(a) and a == b for b in keys] for a in keys])
    np.fill_diagonal(equal, False)
    return {rows[a][0]: [rows[b][0] for b in np.flatnonzero(row)] for a, row in enumerate(equal) if row.any()}
