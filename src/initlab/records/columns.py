"""The columns of a run's CSV files and how a cell is written: text can never start a formula, numbers stay numbers."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from initlab.records.serialization import encode_text
from initlab.system.files import write_atomically
from initlab.system.imports import option_name
from initlab.system.safe_reading import read_bytes

if TYPE_CHECKING:
    import pandas as pd


class LayerRow(NamedTuple):
    """One row of `layers.csv`: a statistic of a layer (its module's name, its index from 1), measured or predicted."""

    step: int
    layer: str
    index: int  # type: ignore[assignment]
    stat: str
    value: float
    source: str


METRICS = ("loss", "accuracy", "lr", "grad_norm", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
FINAL_METRICS = tuple(name for name in METRICS if name not in ("lr", "grad_norm"))
LAYER_COLUMNS = LayerRow._fields
HISTOGRAM_NUMBERS = ("low", "high", "num", "nonfinite", "sum", "sum_squares")
HISTOGRAM_COLUMNS = ("step", "layer", "index", "kind", *HISTOGRAM_NUMBERS, "counts")
TABLE_COLUMNS = {"metrics.csv": ("step", *METRICS), "layers.csv": LAYER_COLUMNS, "histograms.csv": HISTOGRAM_COLUMNS}
OPTIONS = ("init", "act", "model", "data", "optim")

# A spreadsheet runs a cell that starts with one of these. The apostrophe that escapes them is escaped, too.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


def escape_formula(text: str) -> str:
    """Return a cell that a spreadsheet shows as text; numbers stay as they are.

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
    return text.removeprefix("'")


def has_header(head: bytes, columns: Sequence[str]) -> bool:
    """Return whether a table begins with the names of its columns, in any order."""
    line, newline, _ = head.partition(b"\n")
    return bool(newline) and sorted(parse_csv_line(line.decode(errors="replace").rstrip("\r"))) == sorted(columns)


def parse_csv_line(line: str) -> list[str]:
    """Return the cells of one line of CSV; [] where it is not CSV."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{dotted key: value}` with options by their names, a user's own option by its import target.

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


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """Return rows as lines of CSV: None is an empty cell, and no text can start a formula.

    >>> csv_bytes([(3, "=1+1", None, 0.5)])
    b"3,'=1+1,,0.5\\n"
    """
    text = io.StringIO()
    escaped = ([escape_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(escaped)
    return encode_text(text.getvalue())


def frame_to_csv(frame: "pd.DataFrame") -> bytes:
    """Return a frame as CSV without its row labels; missing values are empty cells.

    `DataFrame.to_csv`, or a frame of objects, takes milliseconds more, which every run would pay.
    """
    rows = zip(frame.itertuples(index=False, name=None), frame.isna().to_numpy(), strict=True)
    filled = ([None if gone else value for value, gone in zip(*row, strict=True)] for row in rows)
    return csv_bytes([frame.columns, *filled])


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

    pandas makes such a column float64, which holds every whole number up to 2**53 and no further. Numbers beyond 64
    bits stay as they are.

    >>> preserve_integers([1, None]), preserve_integers([2**53 + 1, None]).tolist()
    ([1, None], [9007199254740993, <NA>])
    """
    known = [value for value in values if value is not None]
    integers = bool(known) and all(type(value) is int for value in known)
    if len(known) == len(values) or not (integers and 2**53 < max(map(abs, known)) < 2**63):
        return values
    import pandas as pd

    return pd.array(values, dtype="Int64")
