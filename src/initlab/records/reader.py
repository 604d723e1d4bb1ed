"""The reader of run directories: whatever was written, also halfway, comes back as a row or as the reason why not."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import UserError
from initlab.records.checksums import find_run_damage, verify_checksum
from initlab.records.columns import (
    FINAL_METRICS,
    HISTOGRAM_COLUMNS,
    LAYER_COLUMNS,
    METRICS,
    OPTIONS,
    has_header,
    parse_csv_line,
    preserve_integers,
    unescape_formula,
)
from initlab.records.row_checks import RESULT_COLUMNS, config_cells, result_cells
from initlab.records.serialization import from_json, from_yaml
from initlab.statistics.histograms import BUCKETS
from initlab.system.safe_reading import MAX_TABLE_BYTES, error_reason, read_bytes, read_ends

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_KEYS = ("init", "act", "model", "depth", "seed", "optim.lr")

_FLOAT_COLUMNS = (*FINAL_METRICS, "seconds", "steps", "first_bad_step")
_TEXT_COLUMNS = {"layer", "stat", "source", "kind", "counts"}
_TABLE_COLUMNS = {"metrics.csv": ("step", *METRICS), "layers.csv": LAYER_COLUMNS, "histograms.csv": HISTOGRAM_COLUMNS}
_MAX_COUNT = 2**32 - 1  # steps and layers that are counted; a file that counts further is damaged
_MAX_LINE_BYTES = 20_000  # bytes of one line of a table
_MAX_SALVAGED_BYTES = 32 * 2**20  # bytes of a damaged table that are looked at line by line

Paths = str | Path | Iterable[str | Path]


def load(paths: Paths) -> "pd.DataFrame":
    """Return one row per run below `paths`, damaged and unfinished ones included.

    Columns: the options `init`, `act`, `model`, `data`, `optim`; every other configuration key, dotted, as it is typed;
    `status` (`unfinished` without a summary, `damaged` when nothing can be read), `problem` (why, else empty), the
    final metrics, `seconds`, `steps`, `first_bad_step`, `first_bad_layer`, `hash`, whatever else the summary names,
    and `path`. A directory with `config.yaml`, `summary.json` or `metrics.csv` is a run.

    A run's files may come from anywhere: only regular files inside its directory are read, to a bounded size and depth,
    and no summary can define `path`, `problem` or a key of the configuration. What cannot be is that run's `problem`.

    Raises:
        UserError: a path does not exist.

    >>> load([]).columns[:3].tolist()
    ['init', 'act', 'model']
    """
    return tabulate(read_run(directory) for directory in run_directories(paths))


def tabulate(runs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> "pd.DataFrame":
    """Return the frame of `load` for runs as `read_run` gives them, one row each."""
    import pandas as pd

    found = list(runs)
    configs = list(dict.fromkeys([*OPTIONS, *(key for config, _ in found for key in config)]))
    configs = [key for key in configs if key not in RESULT_COLUMNS and key != "path"]
    told = (key for _, result in found for key in result if key != "path")
    results = [key for key in dict.fromkeys([*RESULT_COLUMNS, *told]) if key not in configs]
    results.append("path")
    frame = pd.DataFrame(
        {
            **{key: preserve_integers([config.get(key) for config, _ in found]) for key in configs},
            **{key: [result.get(key) for _, result in found] for key in results},
        }
    )
    for name in _FLOAT_COLUMNS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name in ("steps", "first_bad_step"):
        frame[name] = frame[name].astype("Int64")
    return frame


def load_metrics(runs: "Paths | pd.DataFrame", keys: Sequence[str] = DEFAULT_KEYS) -> "pd.DataFrame":
    """Return the metrics of all runs, one row per run and step: `path`, the run's `keys`, `step`, loss, accuracy, …

    A blank (not evaluated) and a NaN (diverged) are both NaN here; infinities stay. Arguments and `attrs` as
    `load_layers`.
    """
    frame = _load_tables(runs, "metrics.csv", ("step", *METRICS), keys)
    if frame.duplicated(["path", "step"]).any():
        lost = frame.attrs
        frame = frame.groupby(["path", "step"], sort=False, as_index=False, dropna=False).first()
        frame.attrs = lost
    return frame


def load_layers(runs: "Paths | pd.DataFrame", keys: Sequence[str] = DEFAULT_KEYS) -> "pd.DataFrame":
    """Return the layer rows of all runs: `path`, the run's `keys`, then step, layer, index, stat, value, source.

    Args:
        runs: paths as `load` takes them, or a frame of `load` (all of it or some rows).
        keys: columns of `load` to repeat on every row; those that no run has are left out. By default the usual ones
            and all that differ between the runs.

    Lines that cannot be read are left out; `attrs["lost"]` counts them by path.
    """
    return _load_tables(runs, "layers.csv", LAYER_COLUMNS, keys)


def load_histograms(
    runs: "Paths | pd.DataFrame",
    keys: Sequence[str] = DEFAULT_KEYS,
    choose: "Callable[[pd.DataFrame], np.ndarray] | None" = None,
) -> "pd.DataFrame":
    """Return the histograms of all runs: `path`, the run's `keys`, step, layer, index, kind, low, high, …, `counts`.

    `counts` is an int64 array [64] per row. Arguments as `load_layers`; `choose` says of a frame whose `counts` are
    still text which rows are wanted (bool [rows]): reading the others costs most of the time.
    """
    import pandas as pd

    frame = _load_tables(runs, "histograms.csv", HISTOGRAM_COLUMNS, keys)
    if choose is not None:
        frame = frame[choose(frame)].reset_index(drop=True)
    counts = [_parse_counts(text) for text in frame["counts"]]
    frame["counts"] = pd.Series(counts, dtype=object)
    good = np.array([len(row) == BUCKETS for row in counts], dtype=bool)
    for path in frame["path"][~good]:
        frame.attrs["lost"][path] = frame.attrs["lost"].get(path, 0) + 1
    return frame[good].reset_index(drop=True)


def _parse_counts(text: object) -> np.ndarray:
    try:
        counts = np.array(str(text).split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return np.zeros(0, dtype=np.int64)
    return counts if ((counts >= 0) & (counts < 2**53)).all() else counts[:0]


def run_directories(paths: Paths) -> list[Path]:
    """Return every run directory at or below `paths`, sorted; hidden directories (`.hydra`) are none.

    Raises:
        UserError: a path does not exist.
    """
    roots = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    found: dict[Path, None] = {}
    for root in roots:
        if root.is_file():
            raise UserError(f"{root} is a file: give the directory of its run or sweep, such as {root.parent}.")
        if not root.is_dir():
            raise UserError(f"There is no directory {root}: give a run, a sweep, or a directory that holds some.")
        for folder, children, files in os.walk(root):
            if {"config.yaml", "summary.json", "metrics.csv"}.intersection(files):
                found[Path(folder)] = None
                children.clear()
            else:
                children[:] = [child for child in children if not child.startswith(".")]
    return sorted(found)


def read_run(directory: Path, *, read_weights: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flat configuration and the result of one run; damage becomes its `problem`.

    Arguments: `read_weights`: whether saved weights are compared with their checksums, and not with their sizes alone.
    """
    result: dict[str, Any] = {"status": "", "problem": "", "path": str(directory)}
    config: Any = None
    files: Any = None
    try:
        data = read_bytes(directory / "summary.json")
        summary = verify_checksum(from_json(data), data)
        config, files = summary.pop("config", None), summary.pop("files", None)
        result |= result_cells(summary)
    except FileNotFoundError:  # it is written last
        result["status"] = "unfinished"
    except (OSError, ValueError) as error:
        result |= {"status": "damaged", "problem": f"summary.json cannot be read ({error_reason(error)})"}
    name = "summary.json" if isinstance(config, dict) else "config.yaml"
    cells: dict[str, Any] = {}
    try:
        cells = config_cells(config if isinstance(config, dict) else from_yaml(read_bytes(directory / "config.yaml")))
    except (OSError, ValueError) as error:
        result |= {"status": "damaged", "problem": f"{name} cannot be read ({error_reason(error)})"}
    if taken := sorted(cells.keys() & result.keys() - set(RESULT_COLUMNS)):
        result = {key: value for key, value in result.items() if key not in taken}
        result["problem"] = f"summary.json defines {taken[0]}, which is a key of the configuration"
    result["problem"] = result["problem"] or _find_problem(directory, result["status"], files, read_weights)
    return cells, result


def _find_problem(directory: Path, status: str, files: Any, read_weights: bool) -> str:
    """Return what is wrong with the files of a finished run: by their checksums `files`, else by their ends."""
    if files is not None:
        try:
            return find_run_damage(directory, files, read_weights=read_weights)
        except (OSError, ValueError) as error:
            return f"a file cannot be compared with its checksum ({error_reason(error)})"
    for name, columns in _TABLE_COLUMNS.items():
        try:
            head, last = read_ends(directory / name)
        except FileNotFoundError:
            if name == "metrics.csv" and status in {"completed", "diverged"}:
                return f"{name} is missing"
            continue
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({error_reason(error)})"
        if not head:
            return f"{name} is empty"
        if last != b"\n":
            return f"{name} ends in the middle of a line"
        if not has_header(head, columns):
            return f"{name} has another heading than {','.join(columns[:3])},…"
    return ""


def varying_keys(runs: "pd.DataFrame") -> list[str]:
    """Return the keys of the configuration that differ between runs: without them cells could not be told apart.

    >>> import pandas as pd
    >>> varying_keys(pd.DataFrame({"init": ["ones", "ones"], "width": [4, 8], "status": ["completed", "failed"]}))
    ['width']
    """
    configs = list(runs.columns)[: list(runs.columns).index("status")] if "status" in runs else []
    return [str(key) for key in configs if runs[key].map(str).nunique() > 1]


def _load_tables(
    runs: "Paths | pd.DataFrame", name: str, columns: Sequence[str], keys: Sequence[str]
) -> "pd.DataFrame":
    """Return one table of all runs under each other, with the run's keys before its columns."""
    import pandas as pd

    table = runs if isinstance(runs, pd.DataFrame) else load(runs)
    found = [_read_table(Path(path) / name, columns) for path in table["path"]]
    parts = [part for part, _ in found]
    lengths = [len(part) for part in parts]
    keys = [*keys, *varying_keys(table)] if keys is DEFAULT_KEYS else keys
    keys = ["path", *(key for key in dict.fromkeys(keys) if key in table.columns and key not in columns)]
    repeated = {key: np.repeat(table[key].to_numpy(), lengths) for key in keys}
    frame = pd.concat([pd.DataFrame(columns=list(columns)).astype(_dtypes(columns)), *parts], ignore_index=True)
    frame = pd.concat([pd.DataFrame(repeated, columns=keys), frame], axis=1)
    frame.attrs["lost"] = {path: lost for path, (_, lost) in zip(table["path"], found, strict=True) if lost}
    return frame


def _read_table(path: Path, columns: Sequence[str]) -> "tuple[pd.DataFrame, int]":
    """Return the whole lines of one CSV file, and how many were lost: those that are not of this table.

    A torn last line is dropped and not counted: a run that is being written has one.
    """
    import pandas as pd

    try:
        data = read_bytes(path, MAX_TABLE_BYTES)
    except (OSError, ValueError):  # the reason is the run's problem in `load`
        data = b""
    data = data[: data.rfind(b"\n") + 1]
    # A layer may be called "null": only numbers have blanks.
    blanks: dict[Any, list[str]] = {name: ["", "nan"] for name in columns if name not in _TEXT_COLUMNS}
    try:
        if not has_header(data[:4096], columns) or _longest_line(data) > _MAX_LINE_BYTES:
            raise ValueError
        with np.errstate(invalid="ignore"):
            frame = pd.read_csv(
                io.BytesIO(data),
                usecols=list(columns),
                dtype=_dtypes(columns),
                na_values=blanks,
                keep_default_na=False,
            )
        whole = len(frame)
    except (ValueError, OverflowError):
        frame = _salvage(data, columns)
        whole = max(data.count(b"\n") - has_header(data[:4096], columns), len(frame))
    for name in {"step", "index"}.intersection(columns):
        frame = frame[frame[name].between(0, _MAX_COUNT)]
    if b"'" in data:
        for name in _TEXT_COLUMNS & set(columns):
            frame[name] = frame[name].map(unescape_formula)
    return frame[list(columns)].reset_index(drop=True), whole - len(frame)


def _longest_line(data: bytes) -> int:
    return int(np.diff(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")), prepend=-1).max(initial=0))


def _salvage(data: bytes, columns: Sequence[str]) -> "pd.DataFrame":
    """Read what can be read of a damaged table, line by line."""
    import pandas as pd

    lines = [line for line in data[:_MAX_SALVAGED_BYTES].split(b"\n") if len(line) <= _MAX_LINE_BYTES]
    texts = (line.decode(errors="replace").replace("\0", "") for line in lines)
    rows = [row for text in texts if len(row := parse_csv_line(text)) == len(columns) and row != list(columns)]
    frame = pd.DataFrame(rows, columns=list(columns), dtype="str")
    for name in columns:
        if name not in _TEXT_COLUMNS:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name, kind in _dtypes(columns).items():
        if kind == "int64":
            frame = frame[(frame[name].abs() < 2**53) & (frame[name] % 1 == 0)]
    return frame.astype(_dtypes(columns)).reset_index(drop=True)


def _dtypes(columns: Sequence[str]) -> dict[str, str]:
    whole = {"step", "index", "num", "nonfinite"}
    return {name: "str" if name in _TEXT_COLUMNS else "int64" if name in whole else "float64" for name in columns}
