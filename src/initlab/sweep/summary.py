"""The keys that differ between the cells of a sweep, and its summary: one row per cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from initlab.config.naming import is_incidental

METRICS = ("test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss")
# Columns that describe a result, or where it lies: never an axis of the grid.
NON_AXIS_COLUMNS = {
    *("seed", "path", "name", "status", "seconds", "problem", "hash", "steps"),
    *("fingerprint", "trained", "learning", "reason", "race"),
}


def axis_text(value: Any) -> str:
    """Return a value as it is typed; pandas would leave out what is not set, and with it the runs that have it so.

    >>> axis_text(None), axis_text(float("nan")), axis_text(0.5)
    ('null', 'null', '0.5')
    """
    return "null" if value is None or value is pd.NA or value != value else str(value)


def varying_axes(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the configuration keys that differ between runs, except the seed.

    Keys that decide no result do not distinguish cells: runs of one cell may differ in `device` or `sweep.order`.

    Args:
        frame: one row per run.
        keys: all keys of the configuration.
    """
    possible = [key for key in keys if key in frame and key not in NON_AXIS_COLUMNS and not is_incidental(key)]
    values = frame[possible].map(axis_text).itertuples(index=False, name=None)
    runs = [dict(zip(possible, row, strict=True)) for row in values]
    return separating_keys(possible, runs) or [key for key in ("init", "act", "depth") if key in frame]


def summarize_cells(frame: pd.DataFrame, by: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per cell, the best first.

    Args:
        frame: one row per run.
        by: the columns that identify a cell.

    Returns:
        Rows with the columns `by`, `runs` (all), `completed`, `status` (how they ended), and for every metric
        `<metric>_mean` and `<metric>_std` over the completed runs.
    """
    rows = []
    text = frame.assign(**{axis: frame[axis].map(axis_text) for axis in by})
    for values, group in text.groupby(list(by), sort=False, dropna=False):
        completed = group[group["status"] == "completed"]
        row: dict[str, Any] = dict(zip(by, values, strict=True)) | {"runs": len(group), "completed": len(completed)}
        for metric in METRICS:
            if metric in group:
                numbers = pd.to_numeric(completed[metric], errors="coerce").dropna()
                row |= {f"{metric}_mean": numbers.mean(), f"{metric}_std": numbers.std(ddof=1)}
        counts = group["status"].value_counts()
        several = ", ".join(f"{count} {status}" for status, count in counts.items())
        row["status"] = several if len(counts) > 1 else counts.index[0]
        rows.append(row)
    return sorted(rows, key=_sort_key)


def _sort_key(row: Mapping[str, Any]) -> float:
    for metric, sign in (("test_accuracy", -1), ("val_accuracy", -1), ("test_loss", 1), ("loss", 1)):
        value = row.get(f"{metric}_mean")
        if value is not None and value == value:
            return sign * value
    return float("inf")


def all_keys(flats: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return every key that some configuration has.

    >>> all_keys([{"init": "zeros"}, {"init": "tat", "init.base": 1}])
    ['init', 'init.base']
    """
    return list(dict.fromkeys(key for flat in flats for key in flat))


def separating_keys(keys: Sequence[str], flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ, except those that follow from an option: init.base from init.

    >>> flats = [{"init": "tat", "init.base": 1, "depth": 3}, {"init": "ones", "depth": 4}]
    >>> separating_keys(["init", "init.base", "depth"], flats)
    ['init', 'depth']
    """
    separating = []
    for key in keys:
        option = key.partition(".")[0]
        by_option: dict[str, set[str]] = {}
        for flat in flats:
            by_option.setdefault(str(flat.get(option)), set()).add(str(flat.get(key)))
        differs = len(set().union(*by_option.values())) > 1
        follows = option in keys and option != key and all(len(values) == 1 for values in by_option.values())
        if differs and not follows:
            separating.append(key)
    return separating
