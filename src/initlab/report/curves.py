"""Metrics over the steps, thinned for a screen: every run keeps its shape, a page keeps its size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.encoding import encode_floats, encode_integers, json_numbers

CURVE_METRICS = ("loss", "val_loss", "accuracy", "val_accuracy", "grad_norm")
MAX_POINTS = 64  # points of one curve
SMOOTHING_STEPS = 10  # training steps whose mean passes a target, as train.target_loss counts them
TARGET_COUNT = 9


def thin_steps(last: int, most: int = MAX_POINTS) -> np.ndarray:
    """Return the steps at which curves up to `last` are drawn: half of them evenly, half of them by the logarithm.

    >>> thin_steps(10).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    if last < most:
        return np.arange(last + 1)
    half = most // 2
    both = [np.linspace(0, last, half), np.geomspace(1, last, half)]
    return np.unique(np.concatenate(both).round().astype(np.int64))


def thin_curve(steps: np.ndarray, values: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the finite values since the last point of the grid, at every point that has some.

    >>> thin_curve(np.arange(5), np.array([5.0, 1.0, 3.0, np.nan, 2.0]), np.array([0, 2, 4]))
    (array([0, 2, 4]), array([5., 2., 2.]))
    """
    good = np.isfinite(values) & (steps <= grid[-1])
    steps, values = steps[good], values[good]
    place = np.searchsorted(grid, steps)
    counts = np.bincount(place, minlength=len(grid))
    has = counts > 0
    with np.errstate(over="ignore"):
        sums = np.bincount(place, weights=values, minlength=len(grid))
    return grid[has], sums[has] / counts[has]


def target_losses(final: Sequence[float], asked: Sequence[float] = ()) -> list[float]:
    """Return losses worth timing, largest first: between the best and the worst final training loss, and those asked.

    >>> target_losses([0.4, 2.3], asked=[1.0])
    [1.9, 1.5, 1.3, 1.1, 1.0, 0.87, 0.72, 0.6, 0.49, 0.41]
    """
    found = np.asarray([value for value in final if np.isfinite(value) and value > 0])
    if not len(found):
        return sorted(set(asked), reverse=True)
    low, high = float(found.min()) * 1.02, float(found.max()) * 0.98
    ladder = np.geomspace(max(high, low), low, TARGET_COUNT + 1)[1:] if high > low * 1.2 else np.array([low])
    return sorted({*(float(f"{value:.2g}") for value in ladder), *asked}, reverse=True)


def steps_to_targets(steps: np.ndarray, losses: np.ndarray, levels: Sequence[float]) -> list[float]:
    """Return the first step at which the mean loss of 10 training steps is at or below each level; NaN for never.

    >>> steps_to_targets(np.arange(40), np.linspace(2, 0, 40), [1.0, -1.0])
    [24.0, nan]
    """
    good = np.isfinite(losses)
    steps, losses = steps[good], losses[good]
    if not len(steps):
        return [float("nan")] * len(levels)
    apart = max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1
    width = min(max(1, SMOOTHING_STEPS // apart), len(losses))
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.concatenate([[0.0], np.cumsum(losses)])
        means = (total[width:] - total[:-width]) / width
        # One enormous loss spoils every later difference of sums: those are counted afresh.
        if not np.isfinite(total[-1]) or losses.max() > 1e6:
            means = np.lib.stride_tricks.sliding_window_view(losses, width).mean(axis=1)
    found = []
    for level in levels:
        below = np.flatnonzero(means <= level)
        found.append(float(steps[below[0] + width - 1]) if len(below) else float("nan"))
    return found


@dataclass
class CurveCollector:
    """The thinned curves of all runs, gathered chunk by chunk."""

    levels: list[float]
    runs: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in CURVE_METRICS})
    lengths: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in CURVE_METRICS})
    steps: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CURVE_METRICS})
    values: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CURVE_METRICS})
    reached: dict[int, list[float]] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def add(self, run: int, metrics: pd.DataFrame, planned: int) -> None:
        """Add one run by its number; `planned` is how far its like were meant to go."""
        steps = metrics["step"].to_numpy()
        if not len(steps):
            return
        self.last[run] = int(steps[-1])
        grid = thin_steps(max(planned, int(steps[-1])))
        for name in CURVE_METRICS:
            values = metrics[name].to_numpy()
            at, means = steps[np.isfinite(values)], values[np.isfinite(values)]
            if len(at) > MAX_POINTS:
                at, means = thin_curve(at, means, grid)
            if len(at):
                self.runs[name].append(run)
                self.lengths[name].append(len(at))
                self.steps[name].append(at)
                self.values[name].append(means)
        self.reached[run] = steps_to_targets(steps, metrics["loss"].to_numpy(), self.levels)

    def packed(self) -> dict[str, Any]:
        """Return what the page gets."""
        kept = [name for name in CURVE_METRICS if self.runs[name]]
        return {
            "metrics": {
                name: {
                    "run": self.runs[name],
                    "length": self.lengths[name],
                    "steps": encode_integers(np.concatenate(self.steps[name])),
                    "values": encode_floats(np.concatenate(self.values[name])),
                }
                for name in kept
            },
            "targets": self.levels,
            "reached": {run: json_numbers(found) for run, found in self.reached.items()},
            "last": self.last,
        }


def expected_steps(runs: pd.DataFrame) -> list[int]:
    """Return for every run how far its like went: those with the same data, batch size and length of training."""
    keys = [key for key in ("train.steps", "train.epochs", "train.batch_size", "data") if key in runs]
    steps = pd.to_numeric(runs["steps"], errors="coerce").astype("float64").fillna(0)
    if not keys:
        return [int(steps.max()) if len(steps) else 0] * len(runs)
    # A key that is not set is a value like any other: pandas would leave its runs out.
    return [int(value) for value in steps.groupby([runs[key].map(str) for key in keys]).transform("max")]
