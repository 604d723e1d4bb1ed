"""The columns of a run's CSV files and how a cell is written: text can never start a formula, numbers stay numbers."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.records.serialization import encode_text
from initlab.system.files import write_atomically
from initlab.system.imports import option_name
from initlab.system.safe_reading import read_bytes

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("loss", "accuracy", "lr", "grad_norm", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
FINAL_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
LAYER_COLUMNS = ("step", "layer", "index", "stat", "value", "source")
HISTOGRAM_COLUMNS = (
    "step",
    "layer",
    "index",
    "kind",
    "low",
    "high",
    "num",
    "nonfinite",
    "sum",
    "sum_squares",
    "counts",
)
OPTIONS = ("init", "act", "model", "data", "optim")

# A spreadsheet runs a cell that starts with one of these; the apostrophe that disarms them must disarm itself.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_formula(text: str) -> str:
    """Return a cell that a spreadsheet shows as text; numbers are left alone.

    >>> [escape_formula(text) for text in ("=1+1", "-0.5", "he_normal", "@name")]
    ["'=1+1", '-0.5', 'he_normal', "'@name"]
    """
    if not text.startswith(_FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def unescape_formula(text: str) -> str:
    """Undo `escape_formula`.

    >>> [unescape_formula(escape_formula(text)) for text in ("=1+1", "'quoted'", "-0.5")]
    ['=1+1', "'quoted'", '-0.5']
    """
    return text[1:] if text.startswith("'") else text


def has_header(head: bytes, columns: Sequence[str]) -> bool:
    """Does a table begin with the names of its columns, each of them once?"""
    if head.startswith(",".join(columns).encode() + b"\n"):
        return True
    line, end, _ = head.partition(b"\n")
    names = parse_csv_line(line.decode(errors="replace").rstrip("\r"))
    return bool(end) and len(names) == len(columns) and set(names) == set(columns)


def parse_csv_line(line: str) -> list[str]:
    """Return the cells of one line of CSV; none where it is not CSV."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{dotted key: value}` with the five options by their names, the user's own by what is imported.

    >>> flatten({"init": {"name": "zeros", "gain": 1.0}, "depth": 3})
    {'init': 'zeros', 'init.gain': 1.0, 'depth': 3}
    >>> flatten({"act": {"name": "custom", "target": "mine:phi"}})
    {'act': 'mine:phi', 'act.target': 'mine:phi'}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "name" and prefix[:-1] in OPTIONS:
            flat[prefix[:-1]] = option_name(config)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def frame_to_csv(frame: "pd.DataFrame") -> bytes:
    """Return a frame as CSV without its row labels; what is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")  # pandas' own takes a few milliseconds more, for every run
    writer.writerow(frame.columns)
    missing = frame.isna().to_numpy()
    for values, gone in zip(frame.itertuples(index=False, name=None), missing, strict=True):
        writer.writerow(["" if none else _csv_cell(value) for value, none in zip(values, gone, strict=True)])
    return encode_text(text.getvalue())


def _csv_cell(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else escape_formula(str(value))


def write_sweep(directory: Path, frame: "pd.DataFrame") -> Path:
    """Write `sweep.csv`, one row per run as `load` gives them, whole or not at all, and return its path.

    A file that has the same rows is left as it is, with its time.

    Raises:
        UserError: the directory cannot be written or its disk is full.
    """
    path, data = Path(directory) / "sweep.csv", frame_to_csv(frame)
    try:
        same = read_bytes(path, len(data)) == data
    except (OSError, ValueError):
        same = False
    if not same:
        write_atomically(path, data)
    return path


def preserve_integers(values: list[Any]) -> Any:
    """Return the values of a column for a frame, so that large whole numbers keep every digit where one is missing.

    pandas makes such a column float64, which holds every whole number up to 2**53 and no further. What needs more than
    64 bits is returned as it is.

    >>> preserve_integers([1, None]), preserve_integers([2**53 + 1, None]).tolist()
    ([1, None], [9007199254740993, <NA>])
    """
    given = [value for value in values if value is not None]
    whole = len(given) < len(values) and all(type(value) is int for value in given)
    if not (whole and given and 2**53 < max(map(abs, given)) < 2**63):
        return values
    import pandas as pd

    return pd.array(values, dtype="Int64")
