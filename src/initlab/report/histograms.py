"""Histograms of many runs, chosen so that a page can hold them: a few steps, a few layers, every run."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.encoding import encode_counts, encode_floats, encode_integers
from initlab.report.layers import evenly_spaced
from initlab.system.escape import printable

TENSOR_KINDS = ("weight", "gradient", "preactivation", "postactivation")
# From the input to the output; how many of them a page has depends on how many runs it has.
POSITIONS = ("first", "a quarter in", "middle", "three quarters in", "last hidden", "readout")
POSITION_SUBSETS = ((0, 1, 2, 3, 4, 5), (0, 2, 4, 5), (0, 2, 4))
MAX_HISTOGRAMS = 18_000  # on one page: at 170 bytes each, 3 MB


@dataclass(frozen=True)
class HistogramSelection:
    """What of every run a page has: kinds, positions (indices of POSITIONS) and how many steps."""

    kinds: tuple[str, ...]
    positions: tuple[int, ...]
    steps: int


def histogram_selection(runs: int, budget: int = MAX_HISTOGRAMS) -> HistogramSelection:
    """Return the richest selection that fits the budget.

    >>> histogram_selection(36).steps, len(histogram_selection(1000).positions)
    (20, 3)
    >>> histogram_selection(300)
    HistogramSelection(kinds=('weight', 'gradient', 'preactivation'), positions=(0, 2, 4, 5), steps=5)
    """
    for kinds, subset, steps in (
        (4, 0, 20), (4, 0, 10), (3, 0, 8), (3, 0, 5), (3, 1, 5), (3, 1, 4), (3, 2, 4), (3, 2, 3), (3, 2, 2),
    ):  # fmt: skip
        selection = HistogramSelection(TENSOR_KINDS[:kinds], POSITION_SUBSETS[subset], steps)
        if runs * kinds * len(selection.positions) * steps <= budget:
            break
    return selection


def layer_positions(indices: np.ndarray) -> np.ndarray:
    """Return the layer index at each of POSITIONS: of the hidden layers from first to last, then the readout.

    >>> layer_positions(np.arange(1, 12)).tolist()
    [1, 3, 5, 8, 10, 11]
    """
    hidden = indices[:-1] if len(indices) > 1 else indices
    return np.concatenate([hidden[np.linspace(0, len(hidden) - 1, 5).round().astype(np.intp)], indices[-1:]])


def select_rows(frame: pd.DataFrame, selection: HistogramSelection) -> np.ndarray:
    """Return which rows of all histograms of some runs a page has (bool [rows])."""
    keep = pd.Series(False, index=frame.index)
    for _, rows in frame[frame["kind"].isin(selection.kinds)].groupby("path", sort=False):
        steps = np.unique(rows["step"].to_numpy())
        indices = layer_positions(np.unique(rows["index"].to_numpy()))[list(selection.positions)]
        at_steps = rows["step"].isin(steps[evenly_spaced(len(steps), selection.steps)])
        keep[rows.index] = at_steps & rows["index"].isin(indices)
    return keep.to_numpy()


@dataclass
class HistogramCollector:
    """The selected histograms of all runs, added run by run."""

    selection: HistogramSelection
    frames: list[pd.DataFrame] = field(default_factory=list)

    def add(self, run: int, frame: pd.DataFrame) -> None:
        """Add the selected histograms of one run, as `load_histograms` returns them."""
        indices = layer_positions(np.unique(frame["index"].to_numpy()))
        # A short network has one layer at several positions: a bit for each.
        bits = [sum(1 << p for p in self.selection.positions if indices[p] == index) for index in frame["index"]]
        self.frames.append(frame.assign(run=run, places=bits, kind=frame["kind"].map(TENSOR_KINDS.index)))

    def payload(self) -> dict[str, Any]:
        """Return the page's data."""
        texts = {"kinds": list(self.selection.kinds), "positions": POSITIONS}
        if not self.frames:
            return {**texts, "run": ""}
        frame = pd.concat(self.frames, ignore_index=True)
        layer_codes, layers = pd.factorize(frame["layer"])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            rms = np.sqrt(frame["sum_squares"].to_numpy() / frame["num"].to_numpy())
        counts = np.stack(frame["counts"].to_list())
        integers = ("run", "kind", "step", "index", "nonfinite", "places")
        return {
            **texts,
            "layers": list(map(printable, layers)),
            "layer": encode_integers(layer_codes),
            **{name: encode_integers(frame[name]) for name in integers},
            **{name: encode_floats(frame[name]) for name in ("low", "high", "num")},
            "rms": encode_floats(rms),
            "largest": encode_floats(counts.max(axis=1)),
            "counts": encode_counts(counts),
        }
