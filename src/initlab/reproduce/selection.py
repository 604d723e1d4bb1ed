"""The runs that criteria are about, and which of their rows a criterion selects."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

CellFilter = Mapping[str, Any]


class Frames(NamedTuple):
    """The runs of an experiment and their layer rows, as `initlab.load` and `initlab.load_layers` return them."""

    runs: pd.DataFrame
    layers: pd.DataFrame

    def of_seeds(self, seeds: Sequence[int]) -> "Frames":
        """Return the rows of some seeds."""
        return Frames(*(frame[frame["seed"].isin(seeds)] for frame in self))


def matching_rows(frame: pd.DataFrame, at: CellFilter | None) -> pd.DataFrame:
    """Return the rows where every key has the value, or one of the values, asked for.

    Raises:
        ValueError: there is no such column, or no such row: the criterion is about runs that there are not.

    >>> matching_rows(pd.DataFrame({"init": ["zeros", "ones"], "loss": [2.3, 9.0]}), {"init": "ones"}).loss.tolist()
    [9.0]
    """
    for key, value in (at or {}).items():
        wanted = value if isinstance(value, (list, tuple)) else [value]
        if key not in frame:
            raise ValueError(f"no run has a key {key}")
        frame = frame[frame[key].map(comparable).isin([comparable(x) for x in wanted])]
    if frame.empty:
        raise ValueError(f"no run has {dict(at or {})}")
    return frame


def comparable(value: Any) -> Any:
    """Make values of files and of frames comparable: numbers as floats, the rest as text.

    >>> comparable(3) == comparable(3.0), comparable([16, 8]) == comparable("[16, 8]")
    (True, True)
    >>> comparable(None) == comparable(float("nan"))
    True
    """
    if value is None or value != value:  # a column of numbers writes "not set" as NaN
        return "null"
    return float(value) if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else str(value)
