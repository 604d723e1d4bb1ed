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
MAX_HISTOGRAMS = 18_000  # histograms on one page: at 170 bytes each, 3 MB


@dataclass(frozen=True)
class HistogramSelection:
    """What of every run a page has: kinds, places (of POSITIONS) and how many steps."""

    kinds: tuple[str, ...]
    positions: tuple[int, ...]
    steps: int


def histogram_selection(runs: int, budget: int = MAX_HISTOGRAMS) -> HistogramSelection:
    """Return the richest share that fits the budget.

    >>> histogram_selection(36).steps, histogram_selection(300), len(histogram_selection(1000).positions)
    (20, Share(kinds=('weight', 'gradient', 'preactivation'), positions=(0, 2, 4, 5), steps=5), 3)
    """
    for kinds, positions, steps in (
        (4, 0, 20), (4, 0, 10), (3, 0, 8), (3, 0, 5), (3, 1, 5), (3, 1, 4), (3, 2, 4), (3, 2, 3), (3, 2, 2),
    ):  # fmt: skip
        found = HistogramSelection(TENSOR_KINDS[:kinds], POSITION_SUBSETS[positions], steps)
        if runs * kinds * len(found.positions) * steps <= budget:
            break
    return found


def layer_positions(indices: np.ndarray) -> np.ndarray:
    """Return the layer index at each of POSITIONS: of the hidden layers from first to last, then the readout.

    >>> layer_positions(np.arange(1, 12)).tolist()
    [1, 3, 5, 8, 10, 11]
    """
    hidden = indices[:-1] if len(indices) > 1 else indices
    inside = np.linspace(0, len(hidden) - 1, 5).round().astype(np.intp)
    return np.concatenate([hidden[inside], indices[-1:]])


def select_rows(frame: pd.DataFrame, of: HistogramSelection) -> np.ndarray:
    """Return which rows of all histograms of some runs a page has."""
    keep = np.zeros(len(frame), dtype=bool)
    kinds = frame["kind"].isin(of.kinds).to_numpy()
    codes = pd.factorize(frame["path"])[0]
    for run in range(codes.max() + 1 if len(codes) else 0):
        part = np.flatnonzero((codes == run) & kinds)
        if len(part):
            steps = np.unique(frame["step"].to_numpy()[part])
            index = frame["index"].to_numpy()[part]
            wanted = layer_positions(np.unique(index))[list(of.positions)]
            at = np.isin(frame["step"].to_numpy()[part], steps[evenly_spaced(len(steps), of.steps)])
            keep[part[at & np.isin(index, wanted)]] = True
    return keep


@dataclass
class HistogramCollector:
    """The chosen histograms of all runs, gathered chunk by chunk."""

    of: HistogramSelection
    frames: list[pd.DataFrame] = field(default_factory=list)

    def add(self, run: int, frame: pd.DataFrame) -> None:
        """Add the chosen histograms of one run, as `load_histograms` gives them."""
        wanted = layer_positions(np.unique(frame["index"].to_numpy()))
        # A short network has one layer at several places: a bit for each.
        at = [sum(1 << p for p in self.of.positions if wanted[p] == index) for index in frame["index"]]
        self.frames.append(frame.assign(run=run, places=at, kind=frame["kind"].map(TENSOR_KINDS.index)))

    def packed(self) -> dict[str, Any]:
        """Return what the page gets."""
        texts = {"kinds": list(self.of.kinds), "positions": POSITIONS}
        if not self.frames:
            return {**texts, "run": ""}
        frame = pd.concat(self.frames, ignore_index=True)
        codes, layers = pd.factorize(frame["layer"])
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            rms = np.sqrt(frame["sum_squares"].to_numpy() / frame["num"].to_numpy())
        return {
            **texts,
            "layers": list(map(printable, layers)),
            "layer": encode_integers(codes),
            **{name: encode_integers(frame[name]) for name in ("run", "kind", "step", "index", "nonfinite", "places")},
            **{name: encode_floats(frame[name]) for name in ("low", "high", "num")},
            "rms": encode_floats(rms),
            "largest": encode_floats([counts.max() for counts in frame["counts"]]),
            "counts": encode_counts(np.stack(frame["counts"].to_list())),
        }
