"""The columns of a run's CSV files and how a cell is written: text can never start a formula, numbers stay numbers."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.records.files import replace

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("loss", "accuracy", "lr", "grad_norm", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
FINAL = ("loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
LAYERS = ("step", "layer", "index", "stat", "value", "source")
HISTOGRAMS = ("step", "layer", "index", "kind", "low", "high", "num", "nonfinite", "sum", "sum_squares", "counts")
OPTIONS = ("init", "act", "model", "data", "optim")

# A spreadsheet runs a cell that starts with one of these; the apostrophe that disarms them must disarm itself.
_ARMED = ("=", "+", "-", "@", "\t", "\r", "'")


def disarm(text: str) -> str:
    """Return a cell that a spreadsheet shows as text; numbers are left alone.

    >>> [disarm(text) for text in ("=1+1", "-0.5", "he_normal", "@name")]
    ["'=1+1", '-0.5', 'he_normal', "'@name"]
    """
    if not text.startswith(_ARMED):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def rearm(text: str) -> str:
    """Undo `disarm`.

    >>> [rearm(disarm(text)) for text in ("=1+1", "'quoted'", "-0.5")]
    ['=1+1', "'quoted'", '-0.5']
    """
    return text[1:] if text.startswith("'") else text


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{dotted key: value}` with the five options under their own names, as they are typed.

    >>> flatten({"init": {"name": "zeros", "gain": 1.0}, "depth": 3})
    {'init': 'zeros', 'init.gain': 1.0, 'depth': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "name" and prefix[:-1] in OPTIONS:
            flat[prefix[:-1]] = value
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write a frame as CSV, whole or not at all, without its row labels; what is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # pandas' own takes a few milliseconds more, for every run
    writer.writerow(frame.columns)
    missing = frame.isna().to_numpy()
    for values, gone in zip(frame.itertuples(index=False, name=None), missing, strict=True):
        writer.writerow(["" if none else _cell(value) for value, none in zip(values, gone, strict=True)])
    replace(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _cell(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else disarm(str(value))


def write_sweep(directory: Path, frame: "pd.DataFrame") -> Path:
    """Write `sweep.csv`, one row per run as `load` gives them, whole or not at all, and return its path.

    Raises:
        UserError: the directory cannot be written or its disk is full.
    """
    path = Path(directory) / "sweep.csv"
    write_table(path, frame)
    return path
