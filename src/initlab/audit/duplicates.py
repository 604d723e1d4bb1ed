"""Layers that were given the same random numbers: same values, or the same draws scaled or cut short."""

import math
from collections.abc import Sequence

import numpy as np

from initlab.audit.checks import SAMPLE_SIZE, ParameterCheck


def find_duplicates(findings: Sequence[ParameterCheck], alpha: float) -> dict[int, list[int]]:
    """Return, for each finding that repeats others, which: at most `alpha` is the chance of any false pair.

    Products of independent symmetric tensors have fair signs given their magnitudes, so that their sum over their norm
    is bounded by Hoeffding's 2·exp(−t²/2); all pairs are tested at once by two matrix products.
    """
    rows = [(index, found) for index, found in enumerate(findings) if found.sample is not None]
    if len(rows) < 2:
        return {}
    x = np.zeros((len(rows), SAMPLE_SIZE))
    for row, (_, found) in zip(x, rows, strict=True):
        assert found.sample is not None
        row[: found.sample.size] = found.sample / np.abs(found.sample).max()
    # Zeros past the end of the shorter tensor count neither in the sums nor in their norms.
    squares = x**2
    norm = np.sqrt(squares @ squares.T)
    t = np.divide(np.abs(x @ x.T), norm, out=np.zeros_like(norm), where=norm > 0)
    limit = math.sqrt(2 * math.log(2 * math.comb(len(rows), 2) / alpha))
    keys = [found.key for _, found in rows]
    same = (t > limit) | np.array([[bool(a) and a == b for b in keys] for a in keys])
    pairs: dict[int, list[int]] = {}
    for a, b in zip(*np.nonzero(np.triu(same, 1)), strict=True):
        first, second = rows[a][0], rows[b][0]
        pairs.setdefault(first, []).append(second)
        pairs.setdefault(second, []).append(first)
    return pairs
