"""The reader of one CSV file of a run: whole lines of the right columns, the damaged ones counted."""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.records.columns import TABLE_COLUMNS, has_header, parse_csv_line, unescape_formula
from initlab.system.safe_reading import MAX_TABLE_BYTES, read_bytes

if TYPE_CHECKING:
    import pandas as pd

_TEXT_COLUMNS = {"layer", "stat", "source", "kind", "counts"}
_DTYPES = dict.fromkeys(("step", "index", "num", "nonfinite"), "int64") | dict.fromkeys(_TEXT_COLUMNS, "str")
_MAX_COUNT = 2**32 - 1  # largest step and index; a file with larger ones is damaged
_MAX_LINE_BYTES = 20_000  # of one line of a table
_MAX_SALVAGED_BYTES = 32 * 2**20  # of a damaged table that is read line by line


def parse_table(path: Path) -> "tuple[pd.DataFrame, int]":
    """Return the whole lines of one CSV file, and the number of lines that do not fit its columns and are left out.

    A torn last line is not counted: a run that is being written has one.
    """
    import pandas as pd

    columns = TABLE_COLUMNS[path.name]
    try:
        data = read_bytes(path, MAX_TABLE_BYTES)
    except (OSError, ValueError):  # `load` has the reason as the run's problem
        data = b""
    data = data[: data.rfind(b"\n") + 1]
    # A layer may be called "null": only numbers have blanks.
    blanks: dict[Any, list[str]] = {name: ["", "nan"] for name in columns if name not in _TEXT_COLUMNS}
    headed, table = has_header(data[:4096], columns), None
    if headed and _longest_line(data) <= _MAX_LINE_BYTES:
        options: Any = {"usecols": list(columns), "dtype": column_dtypes(columns), "na_values": blanks}
        with suppress(ValueError, OverflowError), np.errstate(invalid="ignore"):
            table = pd.read_csv(io.BytesIO(data), keep_default_na=False, **options)
    lines = 0 if table is None else len(table)
    if table is None:
        table = _salvage(data, columns)
        lines = max(data.count(b"\n") - headed, len(table))
    for name in {"step", "index"}.intersection(columns):
        table = table[table[name].between(0, _MAX_COUNT)]
    if b"'" in data:
        for name in _TEXT_COLUMNS.intersection(columns):
            table[name] = table[name].map(unescape_formula)
    return table[list(columns)].reset_index(drop=True), lines - len(table)


def _longest_line(data: bytes) -> int:
    return int(np.diff(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), prepend=-1).max(initial=0))


def _salvage(data: bytes, columns: Sequence[str]) -> "pd.DataFrame":
    """Read a damaged table line by line and return the lines that fit its columns."""
    import pandas as pd

    lines = [line for line in data[:_MAX_SALVAGED_BYTES].split(b"\n") if len(line) <= _MAX_LINE_BYTES]
    rows = (parse_csv_line(line.decode(errors="replace").replace("\0", "")) for line in lines)
    fitting = [row for row in rows if len(row) == len(columns) and row != list(columns)]
    table = pd.DataFrame(fitting, columns=list(columns), dtype="str")
    dtypes = column_dtypes(columns)
    for name in columns:
        if dtypes[name] != "str":
            table[name] = pd.to_numeric(table[name], errors="coerce").astype("float64")
    for name in columns:
        if dtypes[name] == "int64":
            table = table[(table[name].abs() < 2**53) & (table[name] % 1 == 0)]
    return table.astype(dtypes).reset_index(drop=True)


def column_dtypes(columns: Sequence[str]) -> dict[str, str]:
    """Return the pandas dtype of each column of a table."""
    return {name: _DTYPES.get(name, "float64") for name in columns}
