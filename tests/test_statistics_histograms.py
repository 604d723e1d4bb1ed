"""Histograms: counted as an obvious loop counts them, whatever the array holds."""

import math

import numpy as np
import pytest

from initlab.statistics.histograms import BUCKETS, Histogram, histogram, histograms

NAN, INF = float("nan"), float("inf")


def by_hand(values: np.ndarray) -> Histogram:
    """Count with Python's own numbers, one value at a time."""
    finite = [float(v) for v in values.ravel() if math.isfinite(v)]
    nonfinite = values.size - len(finite)
    if not finite:
        return Histogram(NAN, NAN, (0,) * BUCKETS, 0, 0.0, 0.0, nonfinite)
    low, high, counts = min(finite), max(finite), [0] * BUCKETS
    for v in finite:
        counts[min(BUCKETS - 1, int((v - low) * (BUCKETS / (high - low)))) if high > low else 0] += 1
    return Histogram(low, high, tuple(counts), len(finite), sum(finite), sum(v * v for v in finite), nonfinite)


def assert_same(one: Histogram, other: Histogram) -> None:
    assert one.counts == other.counts
    assert (one.num, one.nonfinite) == (other.num, other.nonfinite)
    np.testing.assert_array_equal((one.low, one.high), (other.low, other.high))
    np.testing.assert_allclose((one.sum, one.sum_squares), (other.sum, other.sum_squares), rtol=1e-9, atol=1e-300)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


ARRAYS = {
    "normal": normal(1000),
    "matrix": normal(30, 40),
    "transposed": normal(30, 40).T,
    "float16": normal(500).astype(np.float16),
    "float64": normal(500).astype(np.float64),
    "integers": np.arange(300) % 7,
    "booleans": np.arange(30) % 3 == 0,
    "some NaN": np.where(normal(1000) > 1, NAN, normal(1000)),
    "some infinite": np.where(normal(1000) > 1, -INF, normal(1000)),
    "all NaN": np.full(10, NAN),
    "all infinite": np.array([INF, -INF]),
    "empty": np.zeros((0, 3), np.float32),
    "one value": np.array([-3.5]),
    "one finite": np.array([NAN, 2.0, INF]),
    "equal": np.full(100, 0.1, np.float32),
    "zeros": np.zeros(100, np.float32),
    "near the largest float32": normal(1000) * np.float32(8e37),
    "denormal float32": normal(1000) * np.float32(1e-41),
    "a hair's breadth": np.float32(1) + np.arange(50, dtype=np.float32) * np.float32(2**-23),
    "larger than a block": np.tile(normal(1000), 140),
    "larger than a block, some NaN": np.tile(np.append(normal(999), NAN), 140),
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_it_counts_as_a_loop_does(values):
    assert_same(histogram(values), by_hand(values))


@pytest.mark.parametrize("exponent", [1022, 1000, -1000, -1060])
def test_the_extremes_of_float64_keep_their_shape(exponent):
    # |x| < 4: the range overflows float64 at 2^1022, and whole numbers keep every bit among the denormals at 2^-1060.
    values = np.round(normal(1000).astype(np.float64).clip(-3.9, 3.9) * 2**10)
    assert histogram(np.ldexp(values, exponent - 10)).counts == histogram(values).counts


def test_the_largest_value_falls_into_the_last_bucket_and_edges_belong_to_the_right_one():
    counts = histogram(np.arange(BUCKETS + 1)).counts
    assert counts == (1,) * (BUCKETS - 1) + (2,)


@pytest.mark.parametrize("shape", [(1, 50), (7, 3, 5), (300, 40), (3, 70_000), (5, 0), (4,)], ids=str)
def test_a_stack_gives_what_its_members_give(shape):
    stack = normal(*shape)
    if stack.size > 20:
        stack.reshape(-1)[[3, 17]] = NAN, INF
        stack[-1] = NAN
    assert len(histograms(stack)) == len(stack)
    for one, member in zip(histograms(stack), stack, strict=True):
        alone = histogram(member)
        assert (one.counts, one.num, one.nonfinite) == (alone.counts, alone.num, alone.nonfinite)
        np.testing.assert_array_equal((one.low, one.high), (alone.low, alone.high))
        np.testing.assert_allclose((one.sum, one.sum_squares), (alone.sum, alone.sum_squares), rtol=1e-12)


def test_the_array_itself_is_left_alone():
    values = normal(100).astype(np.float64)
    before = values.copy()
    histogram(values)
    np.testing.assert_array_equal(values, before)
