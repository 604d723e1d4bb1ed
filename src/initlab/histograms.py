"""Histograms of 64 equal buckets that no array can break: the record, and how it is counted."""

from dataclasses import dataclass

import numpy as np

BUCKETS = 64

# Rows are counted together until a block outgrows the processor's cache.
_BLOCK = 65_536


@dataclass(frozen=True)
class Histogram:
    """Counts of an array's finite values in 64 equal buckets of [low, high], with its moments and its non-finite count.

    Bucket k holds low + k·w ≤ x < low + (k + 1)·w with w = (high - low)/64; `high` itself falls into the last one.
    Without a finite value `low` and `high` are NaN and every count is 0; when all values are equal, bucket 0 has them.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    num: int
    sum: float
    sum_squares: float
    nonfinite: int = 0


def histogram(values: np.ndarray) -> Histogram:
    """Count one array of any shape and real dtype: finite values only, the others are counted apart.

    Nothing raises and nothing warns: NaN, infinities, values beyond 1e38, denormals, equal values and no values at all
    are ordinary input.

    >>> record = histogram(np.array([0.0, 1.0, 1.0, np.nan, np.inf]))
    >>> record.low, record.high, record.num, record.nonfinite, record.counts[0], record.counts[63]
    (0.0, 1.0, 3, 2, 1, 2)
    """
    return histograms(np.asarray(values).reshape(1, -1))[0]


def histograms(values: np.ndarray) -> list[Histogram]:
    """Count every member of a stack: [N, ...] gives N histograms, equal to `histogram` of each.

    >>> [record.sum for record in histograms(np.array([[1.0, 2.0], [3.0, np.inf]]))]
    [3.0, 3.0]
    """
    stack = np.asarray(values)
    rows = stack.reshape(len(stack), int(np.prod(stack.shape[1:])))
    height = max(1, _BLOCK // max(1, rows.shape[1]))
    with np.errstate(all="ignore"):
        return [record for start in range(0, len(rows), height) for record in _count(rows[start : start + height])]


def _count(rows: np.ndarray) -> list[Histogram]:
    if rows.size == 0:
        return [_nothing(0)] * len(rows)
    # float64 throughout: a float32 near 1e38 or 1e-45 can then neither overflow nor crawl through denormal arithmetic.
    x = rows.astype(np.float64)
    low, high = x.min(axis=1), x.max(axis=1)
    finite = None
    if not np.isfinite(low + high).all():
        finite = np.isfinite(x)
        low = np.where(finite, x, np.inf).min(axis=1)
        high = np.where(finite, x, -np.inf).max(axis=1)
        x = np.where(finite, x, 0.0)
    total, squares = x.sum(axis=1), np.square(x).sum(axis=1)
    counts = _buckets(x, low, high, finite)
    nonfinite = np.zeros(len(x), dtype=np.int64) if finite is None else x.shape[1] - finite.sum(axis=1)
    columns = (low, high, counts, x.shape[1] - nonfinite, total, squares, nonfinite)
    return [
        Histogram(a, b, tuple(c), n, s, q, bad) if n else _nothing(bad)
        for a, b, c, n, s, q, bad in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _buckets(x: np.ndarray, low: np.ndarray, high: np.ndarray, finite: np.ndarray | None) -> np.ndarray:
    """Return counts [rows, 64]; two spare buckets per row take x = high (folded back) and what is not finite."""
    width = high - low
    extreme = (width > 1e300) | (width < 1e-290)
    if extreme.any():
        # A power of two brings float64's own extremes to 1 without moving a value across an edge.
        exponent = np.where(extreme, np.frexp(np.maximum(np.abs(low), np.abs(high)))[1], 0)
        x, low, high = np.ldexp(x, -exponent[:, None]), np.ldexp(low, -exponent), np.ldexp(high, -exponent)
        width = high - low
    scale = np.where(width > 0, BUCKETS / width, 0.0)
    index = ((x - low[:, None]) * scale[:, None]).astype(np.intp)
    stride = BUCKETS + 2
    if finite is not None:
        index = np.where(finite, index, BUCKETS + 1)
    if len(x) > 1:
        index += stride * np.arange(len(x))[:, None]
    counts = np.bincount(index.ravel(), minlength=stride * len(x)).reshape(len(x), stride)
    counts[:, BUCKETS - 1] += counts[:, BUCKETS]
    return counts[:, :BUCKETS]


def _nothing(nonfinite: int) -> Histogram:
    return Histogram(float("nan"), float("nan"), (0,) * BUCKETS, 0, 0.0, 0.0, nonfinite)
