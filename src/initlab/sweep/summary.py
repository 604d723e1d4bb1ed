"""What a sweep says at the end: one row per run in `sweep.csv`, one line per cell on the screen."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from initlab.config.naming import is_incidental

METRICS = ("test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss")
# Columns that describe a result, or where it lies: never an axis of the grid.
NON_AXIS_COLUMNS = {
    "seed",
    "path",
    "name",
    "status",
    "seconds",
    "problem",
    "hash",
    "steps",
    "fingerprint",
    "trained",
    "learning",
    "reason",
    "race",
}


def axis_text(value: Any) -> str:
    """Write a value as it is typed; pandas would leave out what is not set, and with it the runs that have it so.

    >>> axis_text(None), axis_text(float("nan")), axis_text(0.5)
    ('null', 'null', '0.5')
    """
    return "null" if value is None or value is pd.NA or value != value else str(value)


def varying_axes(frame: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the configuration keys that differ between the runs, the seed aside; `keys` are all there are.

    What has no say in a result tells no cells apart: runs of one cell may differ in `device` or `sweep.order`.
    """
    told = [k for k in keys if k in frame and k not in NON_AXIS_COLUMNS and not is_incidental(k)]
    found = [k for k in told if frame[k].map(axis_text).nunique() > 1]
    # A key that follows from the chosen option (init.distribution from init) tells nothing of its own.
    text = frame[found].map(axis_text)
    follows = [
        k for k in found if "." in k and (g := k.split(".")[0]) in found and text.groupby(g)[k].nunique().max() == 1
    ]
    return [k for k in found if k not in follows] or [k for k in ("init", "act", "depth") if k in frame]


def summarize_cells(frame: pd.DataFrame, by: Sequence[str]) -> list[dict[str, Any]]:
    """Summarise replicates: mean and standard deviation of every metric over the completed runs, best first.

    `runs` counts all, `completed` those that the means are over, `status` says how they ended.
    """
    rows = []
    text = frame.assign(**{axis: frame[axis].map(axis_text) for axis in by})
    for names, group in text.groupby(list(by), sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, names, strict=True))
        done = group[group["status"] == "completed"]
        row["runs"], row["completed"] = len(group), len(done)
        for metric in METRICS:
            if metric in group:
                values = pd.to_numeric(done[metric], errors="coerce").dropna()
                row[f"{metric}_mean"] = values.mean() if len(values) else float("nan")
                row[f"{metric}_std"] = values.std(ddof=1) if len(values) > 1 else float("nan")
        counts = group["status"].value_counts()
        row["status"] = (
            ", ".join(f"{n} {status}" for status, n in counts.items()) if len(counts) > 1 else counts.index[0]
        )
        rows.append(row)
    return sorted(rows, key=_sort_key)


def _sort_key(row: dict[str, Any]) -> float:
    for metric, sign in (("test_accuracy", -1), ("val_accuracy", -1), ("test_loss", 1), ("loss", 1)):
        value = row.get(f"{metric}_mean")
        if value is not None and value == value:
            return sign * value
    return float("inf")


def separating_keys(names: Sequence[str], flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ, but for those that follow from an option: init.base from init.

    >>> flats = [{"init": "tat", "init.base": 1, "depth": 3}, {"init": "ones", "depth": 4}]
    >>> separating_keys(["init", "init.base", "depth"], flats)
    ['init', 'depth']
    """

    def differ(key: str, among: Sequence[Mapping[str, Any]]) -> bool:
        return len({str(flat.get(key)) for flat in among}) > 1

    found = []
    for key in names:
        option = key.partition(".")[0]
        chosen = {str(flat.get(option)) for flat in flats} if option in names else set()
        alike = [[flat for flat in flats if str(flat.get(option)) == one] for one in chosen]
        if differ(key, flats) and (option == key or not alike or any(differ(key, some) for some in alike)):
            found.append(key)
    return found
