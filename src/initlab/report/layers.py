"""Layer rows as blocks step × layer, thinned for a screen: what a run's signal, gradients and units did."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.encoding import encode_floats, encode_integers
from initlab.system.escape import printable

# In the order in which they are offered; others follow.
PAGE_STATS = (
    "q",
    "c",
    "grad_mean_square",
    "grad_norm",
    "saturated_fraction",
    "dead_fraction",
    "update_ratio",
    "weight_norm",
    "mean",
    "std",
    "nonfinite",
    "effective_rank",
    "duplicate_units",
    "jacobian_mean",
    "jacobian_var",
)
SOURCES = ("measured", "predicted")
# Numbers on one page: at 5.4 bytes each, 3.5 MB.
MAX_PAGE_NUMBERS = 650_000


@dataclass(frozen=True)
class LayerArrays:
    """All layer rows of one run: values [stat, source, step, layer], NaN where there is none."""

    stats: tuple[str, ...]
    steps: np.ndarray
    indices: np.ndarray
    layers: tuple[str, ...]
    values: np.ndarray

    def of(self, stat: str, source: str = "measured") -> np.ndarray:
        """Return one statistic [step, layer]; all NaN where it was never taken."""
        if stat not in self.stats:
            return np.full((len(self.steps), len(self.indices)), np.nan)
        found: np.ndarray = self.values[self.stats.index(stat), SOURCES.index(source)]
        return found


def layer_arrays(rows: pd.DataFrame) -> LayerArrays:
    """Arrange the rows of one run, as `load_layers` gives them.

    >>> rows = pd.DataFrame([(0, "a", 1, "q", 2.0, "measured")], columns=["step", "layer", "index", "stat", "value",
    ...                                                                   "source"])
    >>> layer_arrays(rows).of("q").tolist()
    [[2.0]]
    """
    rows = rows[rows["source"].isin(SOURCES)]
    stat_codes, stats = pd.factorize(rows["stat"])
    steps, step_codes = np.unique(rows["step"].to_numpy(), return_inverse=True)
    indices, first, index_codes = np.unique(rows["index"].to_numpy(), return_index=True, return_inverse=True)
    values = np.full((len(stats), len(SOURCES), len(steps), len(indices)), np.nan)
    sources = (rows["source"] == "predicted").to_numpy().astype(np.intp)
    values[stat_codes, sources, step_codes, index_codes] = rows["value"].to_numpy()
    return LayerArrays(tuple(stats), steps, indices, tuple(map(printable, rows["layer"].to_numpy()[first])), values)


def is_dense(rows: pd.DataFrame) -> bool:
    """Do the rows of one run fill a good part of a grid step × layer × statistic, as those of a measurement do?

    `layer_arrays` lays them out as such a grid; a file where every row has a step, a layer and a statistic of its own would
    take all memory.

    >>> is_dense(pd.DataFrame({"step": range(1000), "index": range(1000), "stat": map(str, range(1000))}))
    False
    """
    places = 1.0
    for name in ("step", "index", "stat"):
        places *= rows[name].nunique()
    return places <= max(64 * len(rows), 1e6)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` positions out of `count`, evenly, the first and the last among them.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 9).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


@dataclass
class LayerCollector:
    """The blocks of all runs, gathered chunk by chunk, within the budget of a page."""

    budget: int
    stats: list[str] = field(default_factory=lambda: list(PAGE_STATS))
    grids: dict[tuple[Any, ...], int] = field(default_factory=dict)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    thinned: bool = False

    def add(self, run: int, found: LayerArrays) -> None:
        """Add one run by its number, with fewer steps and layers where it has more than its share of the budget."""
        self.stats += [stat for stat in found.stats if stat not in self.stats and stat.isidentifier()]
        some = [stat for stat in self.stats if stat in found.stats and np.isfinite(found.of(stat)).any()]
        most_steps, most_layers = self.shape(len(some), len(found.steps), len(found.indices))
        steps, layers = evenly_spaced(len(found.steps), most_steps), evenly_spaced(len(found.indices), most_layers)
        self.thinned |= len(steps) < len(found.steps) or len(layers) < len(found.indices)
        names = tuple(found.layers[k] for k in layers)
        layer_grid = self.grid(("layers", tuple(found.indices[layers].tolist()), names))
        for stat in self.stats:
            for source in SOURCES:
                block = found.of(stat, source)[np.ix_(steps, layers)]
                has = np.isfinite(block).any(axis=1)
                if has.any():
                    step_grid = self.grid(("steps", tuple(found.steps[steps][has].tolist())))
                    self.rows.append((run, self.stats.index(stat), SOURCES.index(source), step_grid, layer_grid))
                    self.values.append(block[has].ravel())

    def shape(self, stats: int, steps: int, layers: int) -> tuple[int, int]:
        """Return how many steps and layers of a run fit its share: both shrink alike, but never below 4 and 8."""
        excess = stats * steps * layers / max(self.budget, 1)
        if excess <= 1:
            return steps, layers
        shrunk = max(4, int(steps / np.sqrt(excess)))
        return shrunk, max(8, int(layers * steps / shrunk / excess))

    def grid(self, key: tuple[Any, ...]) -> int:
        """Return the number of a list of steps or layers, known once."""
        return self.grids.setdefault(key, len(self.grids))

    def packed(self) -> dict[str, Any]:
        """Return what the page gets."""
        columns = list(zip(*self.rows, strict=True)) or [()] * 5
        names = ("run", "stat", "source", "steps", "layers")
        return {
            "stats": self.stats,
            "grids": [list(key[1:]) for key in self.grids],
            **{name: encode_integers(values) for name, values in zip(names, columns, strict=True)},
            "values": encode_floats(np.concatenate(self.values) if self.values else []),
            "thinned": self.thinned,
        }
