"""Layer rows as arrays step × layer, thinned for a screen: signals, gradients and units of every run."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from initlab.report.encoding import encode_floats, encode_integers
from initlab.system.escape import printable

# In the order in which the page offers them; others follow.
PAGE_STATS = (
    *("q", "c", "grad_mean_square", "grad_norm", "saturated_fraction", "dead_fraction", "update_ratio"),
    *("weight_norm", "mean", "std", "nonfinite", "effective_rank", "duplicate_units", "jacobian_mean", "jacobian_var"),
)
SOURCES = ("measured", "predicted")
MAX_PAGE_NUMBERS = 650_000  # on one page: at 5.4 bytes each, 3.5 MB


@dataclass(frozen=True)
class LayerArrays:
    """All layer rows of one run.

    Attributes:
        stats: names of the statistics.
        steps: recorded steps, ascending.
        indices: layer indices, ascending.
        layers: their names.
        values: [stat, source, step, layer], NaN where there is none.
    """

    stats: tuple[str, ...]
    steps: np.ndarray
    indices: np.ndarray
    layers: tuple[str, ...]
    values: np.ndarray

    def values_of(self, stat: str, source: str = "measured") -> np.ndarray:
        """Return one statistic [step, layer]; all NaN where it was never recorded."""
        if stat not in self.stats:
            return np.full((len(self.steps), len(self.indices)), np.nan)
        values: np.ndarray = self.values[self.stats.index(stat), SOURCES.index(source)]
        return values


def layer_arrays(rows: pd.DataFrame) -> LayerArrays:
    """Arrange the rows of one run, as `load_layers` returns them.

    >>> rows = pd.DataFrame([(0, "a", 1, "q", 2.0, "measured")], columns=["step", "layer", "index", "stat", "value",
    ...                                                                   "source"])
    >>> layer_arrays(rows).values_of("q").tolist()
    [[2.0]]
    """
    rows = rows[rows["source"].isin(SOURCES)]
    stat_codes, stats = pd.factorize(rows["stat"])
    steps, step_codes = np.unique(rows["step"].to_numpy(), return_inverse=True)
    indices, first, index_codes = np.unique(rows["index"].to_numpy(), return_index=True, return_inverse=True)
    values = np.full((len(stats), len(SOURCES), len(steps), len(indices)), np.nan)
    source_codes = (rows["source"] == "predicted").to_numpy().astype(np.intp)
    values[stat_codes, source_codes, step_codes, index_codes] = rows["value"].to_numpy()
    return LayerArrays(tuple(stats), steps, indices, tuple(map(printable, rows["layer"].to_numpy()[first])), values)


def is_dense(rows: pd.DataFrame) -> bool:
    """Return whether the rows of one run fill a good part of a grid step × layer × statistic, as measured rows do.

    `layer_arrays` makes such a grid; a file in which every row has its own step, layer and statistic would take all
    memory.

    >>> is_dense(pd.DataFrame({"step": range(1000), "index": range(1000), "stat": map(str, range(1000))}))
    False
    """
    cells = np.prod([float(rows[name].nunique()) for name in ("step", "index", "stat")])
    return bool(cells <= max(64 * len(rows), 1e6))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` positions out of `count`, evenly, the first and the last among them.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 9).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))


@dataclass
class LayerCollector:
    """The layer rows of all runs, added run by run.

    Attributes:
        budget: how many numbers of one run the page can hold.
        grids: list of steps, or of layer indices and names -> its number.
        rows: (run, statistic, source, number of the steps, number of the layers).
        values: for each of the rows.
        thinned: whether steps or layers of some run were left out.
    """

    budget: int
    stats: list[str] = field(default_factory=lambda: list(PAGE_STATS))
    grids: dict[tuple[Any, ...], int] = field(default_factory=dict)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    thinned: bool = False

    def add(self, run: int, arrays: LayerArrays) -> None:
        """Add one run by its number, with fewer steps and layers where it has more numbers than its budget."""
        self.stats += [stat for stat in arrays.stats if stat not in self.stats and stat.isidentifier()]
        stats = [stat for stat in self.stats if stat in arrays.stats and np.isfinite(arrays.values_of(stat)).any()]
        all_steps, all_layers = len(arrays.steps), len(arrays.indices)
        most_steps, most_layers = all_steps, all_layers
        excess = len(stats) * all_steps * all_layers / max(self.budget, 1)
        if excess > 1:
            # Steps and layers shrink by the same factor, but never below 4 and 8.
            most_steps = max(4, int(all_steps / np.sqrt(excess)))
            most_layers = max(8, int(all_layers * all_steps / most_steps / excess))
        steps, layers = evenly_spaced(all_steps, most_steps), evenly_spaced(all_layers, most_layers)
        self.thinned |= len(steps) < all_steps or len(layers) < all_layers
        names = tuple(arrays.layers[k] for k in layers)
        layer_grid = self.grid_number(("layers", tuple(arrays.indices[layers].tolist()), names))
        for stat_code, stat in enumerate(self.stats):
            for source_code, source in enumerate(SOURCES):
                values = arrays.values_of(stat, source)[np.ix_(steps, layers)]
                has = np.isfinite(values).any(axis=1)
                if has.any():
                    step_grid = self.grid_number(("steps", tuple(arrays.steps[steps][has].tolist())))
                    self.rows.append((run, stat_code, source_code, step_grid, layer_grid))
                    self.values.append(values[has].ravel())

    def grid_number(self, key: tuple[Any, ...]) -> int:
        """Return the number of a list of steps or layers."""
        return self.grids.setdefault(key, len(self.grids))

    def payload(self) -> dict[str, Any]:
        """Return the page's data."""
        columns = list(zip(*self.rows, strict=True)) or [()] * 5
        names = ("run", "stat", "source", "steps", "layers")
        return {
            "stats": self.stats,
            "grids": [list(key[1:]) for key in self.grids],
            **{name: encode_integers(values) for name, values in zip(names, columns, strict=True)},
            "values": encode_floats(np.concatenate(self.values) if self.values else []),
            "thinned": self.thinned,
        }
