"""Histograms of 64 equal buckets, for arrays of any real values: the record, and how it is counted."""

from dataclasses import dataclass

import numpy as np

BUCKETS = 64

# Small rows are counted together and large ones in pieces, so that a block stays in the processor's cache.
_BLOCK_SIZE = 65_536
_STRIDE = BUCKETS + 2


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
    """Count the finite values of one array of any shape and real dtype, and the number of the others.

    It never raises or warns: NaN, infinities, values beyond 1e38, denormals, equal values and no values are ordinary
    input.

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
    height = max(1, _BLOCK_SIZE // max(1, rows.shape[1]))
    with np.errstate(all="ignore"):
        return [record for start in range(0, len(rows), height) for record in _count_rows(rows[start : start + height])]


def _count_rows(rows: np.ndarray) -> list[Histogram]:
    if rows.size == 0:
        return [_empty_histogram(0)] * len(rows)
    low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
    gaps = not np.isfinite(low + high).all()
    if gaps:
        finite = np.isfinite(rows)
        low = np.where(finite, rows, np.inf).min(axis=1).astype(np.float64)
        high = np.where(finite, rows, -np.inf).max(axis=1).astype(np.float64)
    counts, total, squares = np.zeros((len(rows), _STRIDE), dtype=np.int64), np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, rows.shape[1], _BLOCK_SIZE):
        # float64 throughout: a float32 near 1e38 cannot overflow, one near 1e-45 causes no slow denormal arithmetic.
        piece = rows[:, start : start + _BLOCK_SIZE].astype(np.float64)
        lost = ~np.isfinite(piece) if gaps else None
        if lost is not None:
            piece[lost] = 0.0
        total += piece.sum(axis=1)
        squares += np.square(piece).sum(axis=1)
        counts += _bucket_counts(piece, low, high, lost)
    counts[:, BUCKETS - 1] += counts[:, BUCKETS]
    nonfinite = counts[:, BUCKETS + 1]
    columns = (low, high, counts[:, :BUCKETS], rows.shape[1] - nonfinite, total, squares, nonfinite)
    return [
        Histogram(a, b, tuple(c), n, s, q, bad) if n else _empty_histogram(bad)
        for a, b, c, n, s, q, bad in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _bucket_counts(x: np.ndarray, low: np.ndarray, high: np.ndarray, lost: np.ndarray | None) -> np.ndarray:
    """Return counts [rows, 64 + 2], and overwrite x; the two last buckets count x = high and non-finite values."""
    width = high - low
    extreme = (width > 1e300) | (width < 1e-290)
    if extreme.any():
        # Scaling by a power of two keeps every value in its bucket.
        exponent = np.where(extreme, np.frexp(np.maximum(np.abs(low), np.abs(high)))[1], 0)
        x, low, high = np.ldexp(x, -exponent[:, None]), np.ldexp(low, -exponent), np.ldexp(high, -exponent)
        width = high - low
    x -= low[:, None]
    x *= np.where(width > 0, BUCKETS / width, 0.0)[:, None]
    if lost is not None:
        x[lost] = BUCKETS + 1
    index = x.astype(np.int32)  # four times as fast as 64 bits
    if len(x) > 1:
        index += _STRIDE * np.arange(len(x), dtype=np.int32)[:, None]
    return np.bincount(index.ravel(), minlength=_STRIDE * len(x)).reshape(len(x), _STRIDE)


def _empty_histogram(nonfinite: int) -> Histogram:
    return Histogram(float("nan"), float("nan"), (0,) * BUCKETS, 0, 0.0, 0.0, nonfinite)
