"""Metrics over the steps, thinned for a screen: every curve keeps its shape, the page keeps its size."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.encoding import encode_floats, encode_integers, json_numbers
from initlab.report.study import number_column

CURVE_METRICS = ("loss", "val_loss", "accuracy", "val_accuracy", "grad_norm")
MAX_POINTS = 64  # of one curve
SMOOTHING_STEPS = 10  # training steps whose mean loss is compared with a target, as train.target_loss does
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
    """Return, at every point of a grid, the mean of the finite values since the point before; skip points without any.

    >>> thin_curve(np.arange(5), np.array([5.0, 1.0, 3.0, np.nan, 2.0]), np.array([0, 2, 4]))
    (array([0, 2, 4]), array([5., 2., 2.]))
    """
    good = np.isfinite(values) & (steps <= grid[-1])
    places = np.searchsorted(grid, steps[good])
    counts = np.bincount(places, minlength=len(grid))
    with np.errstate(over="ignore"):
        sums = np.bincount(places, weights=values[good], minlength=len(grid))
    return grid[counts > 0], sums[counts > 0] / counts[counts > 0]


def target_losses(final: Sequence[float], asked: Sequence[float] = ()) -> list[float]:
    """Return losses worth timing, largest first: between the best and the worst final training loss, and those asked.

    >>> target_losses([0.4, 2.3], asked=[1.0])
    [1.9, 1.5, 1.3, 1.1, 1.0, 0.87, 0.72, 0.6, 0.49, 0.41]
    """
    losses = np.asarray([loss for loss in final if np.isfinite(loss) and loss > 0])
    if not len(losses):
        return sorted(set(asked), reverse=True)
    low, high = float(losses.min()) * 1.02, float(losses.max()) * 0.98
    levels = np.geomspace(max(high, low), low, TARGET_COUNT + 1)[1:] if high > low * 1.2 else np.array([low])
    return sorted({*(float(f"{level:.2g}") for level in levels), *asked}, reverse=True)


def steps_to_targets(steps: np.ndarray, losses: np.ndarray, levels: Sequence[float]) -> list[float]:
    """Return the first step at which the mean loss of 10 training steps is at or below each level; NaN for never.

    >>> steps_to_targets(np.arange(40), np.linspace(2, 0, 40), [1.0, -1.0])
    [24.0, nan]
    """
    good = np.isfinite(losses)
    steps, losses = steps[good], losses[good]
    if not len(steps):
        return [float("nan")] * len(levels)
    interval = max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1
    width = min(max(1, SMOOTHING_STEPS // interval), len(losses))
    with np.errstate(over="ignore"):
        means = np.lib.stride_tricks.sliding_window_view(losses, width).mean(axis=1)
    reached = [np.flatnonzero(means <= level) for level in levels]
    return [float(steps[places[0] + width - 1]) if len(places) else float("nan") for places in reached]


@dataclass
class CurveCollector:
    """The thinned curves of all runs, added run by run.

    Attributes:
        levels: target losses.
        curves: metric -> (run, steps, values).
        reached: run -> the steps at which it reached the levels.
        last: run -> its last step.
    """

    levels: list[float]
    curves: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    reached: dict[int, list[float]] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def add(self, run: int, metrics: pd.DataFrame, planned: int) -> None:
        """Add one run.

        Args:
            run: its number.
            metrics: its rows of `load_metrics`.
            planned: the last step that runs like it should reach.
        """
        steps = metrics["step"].to_numpy()
        if not len(steps):
            return
        self.last[run] = int(steps[-1])
        grid = thin_steps(max(planned, int(steps[-1])))
        for name in CURVE_METRICS:
            values = metrics[name].to_numpy()
            at, means = steps[np.isfinite(values)], values[np.isfinite(values)]
            if len(at) > MAX_POINTS:
                at, means = thin_curve(steps, values, grid)
            if len(at):
                self.curves[name].append((run, at, means))
        self.reached[run] = steps_to_targets(steps, metrics["loss"].to_numpy(), self.levels)

    def payload(self) -> dict[str, Any]:
        """Return the page's data."""
        metrics = {}
        for name in CURVE_METRICS:
            if self.curves[name]:
                runs, steps, values = zip(*self.curves[name], strict=True)
                metrics[name] = {
                    "run": runs,
                    "length": [len(part) for part in steps],
                    "steps": encode_integers(np.concatenate(steps)),
                    "values": encode_floats(np.concatenate(values)),
                }
        reached = {run: json_numbers(steps) for run, steps in self.reached.items()}
        return {"metrics": metrics, "targets": self.levels, "reached": reached, "last": self.last}


def expected_steps(runs: pd.DataFrame) -> list[int]:
    """Return for every run the most steps of a run with the same data, batch size and length of training."""
    keys = [key for key in ("train.steps", "train.epochs", "train.batch_size", "data") if key in runs]
    steps = number_column(runs, "steps").fillna(0)
    # As text, a key that is not set is a value like any other: pandas would leave its runs out.
    alike = [runs[key].map(str) for key in keys] or pd.Series("", index=runs.index)
    return [int(value) for value in steps.groupby(alike).transform("max")]
