"""Intervals cover, corrections hold their rate, power is the paired t-test's: by simulation, tolerances from n."""

import numpy as np
import pytest
from scipy import stats

from initlab.statistics import Comparison, compare, holm, interval, paired

REPEATS = 2000
SAMPLERS = {
    "gaussian": (lambda g, shape: g.normal(0.8, 0.02, shape), 0.8, 0.02),
    "skewed accuracies": (lambda g, shape: g.beta(9, 1, shape), 0.9, 0.04),
    "mildly skewed": (lambda g, shape: g.beta(20, 2, shape), 20 / 22, 0.04),
}


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_interval_covers_at_its_nominal_rate(name, n):
    draw, truth, tolerance = SAMPLERS[name]
    found = [interval(x) for x in draw(np.random.default_rng(n), (REPEATS, n))]
    coverage = np.mean([i.low <= truth <= i.high for i in found])
    assert abs(coverage - 0.95) <= tolerance


def test_interval_is_students_for_symmetric_values():
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = stats.t.interval(0.95, 4, np.mean(x), stats.sem(x))
    assert interval(x).low == pytest.approx(low, rel=1e-12)
    assert interval(x).high == pytest.approx(high, rel=1e-12)


@pytest.mark.parametrize(("values", "n"), [([], 0), ([0.5], 1), ([0.5, 0.5, 0.5], 3)])
def test_interval_of_next_to_nothing(values, n):
    found = interval(values)
    assert found.n == n
    assert not found.low < found.high


def studies(repeats: int, schemes: int, n: int, shift: float = 0.0):
    generator = np.random.default_rng(7)
    for _ in range(repeats):
        batch = generator.normal(0, 0.02, n)  # what the seeds have in common
        x = 0.8 + batch + generator.normal(0, 0.01, (schemes, n))
        x[0] += shift
        yield {f"s{k}": dict(enumerate(row)) for k, row in enumerate(x)}


def test_false_alarms_over_all_pairs_stay_below_five_percent():
    alarms = [any(c.verdict in ("better", "worse") for c in compare(v)) for v in studies(REPEATS, 6, 6)]
    # One-sided bound on a rate of 5 % seen in 2,000 studies: three standard errors.
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPEATS)


def test_intervals_hold_for_all_pairs_at_once():
    truth = {"s0": 0.02}
    held = []
    for values in studies(600, 6, 6, shift=0.02):
        gaps = {(a, b): truth.get(a, 0) - truth.get(b, 0) for a in values for b in values}
        held.append(all(c.low <= gaps[c.first, c.second] <= c.high for c in compare(values)))
    # At least 95 %, seen in 600 studies: three standard errors; without the correction it is near 60 %.
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 600)


def test_power_is_the_corrected_paired_t_tests():
    ours, reference = [], []
    for values in studies(600, 3, 8, shift=0.02):
        ours.append(next(c for c in compare(values) if (c.first, c.second) == ("s0", "s1")).verdict == "better")
        rows = {k: list(v.values()) for k, v in values.items()}
        p = [stats.ttest_rel(rows[a], rows[b]).pvalue for a, b in (("s0", "s1"), ("s0", "s2"), ("s1", "s2"))]
        reference.append(min(p[0] * 3, 1) < 0.05)
    assert np.mean(ours) >= np.mean(reference) - 0.05
    assert np.mean(ours) > 0.5


def test_paired_is_scipys():
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 9))
    assert paired(a, b)[1] == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-12)


def test_few_seeds_cannot_tell():
    values = {"a": {0: 0.9, 1: 0.91, 2: 0.9}, "b": {0: 0.1, 1: 0.11, 2: 0.1}}
    assert [c.verdict for c in compare(values)] == ["cannot tell"]


def test_only_common_finite_seeds_count():
    a = {s: 0.9 + 0.001 * s for s in range(8)}
    b = {s: 0.5 + 0.002 * s for s in range(2, 12)} | {3: float("nan")}
    found = compare({"a": a, "b": b})[0]
    assert isinstance(found, Comparison)
    assert found.n == 5


def test_holm_is_monotone_and_at_most_one():
    adjusted = holm([0.5, 0.01, 0.9, 0.02])
    assert adjusted == [1.0, 0.04, 1.0, 0.06]
