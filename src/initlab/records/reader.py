"""The reader of run directories: every run is one row, a damaged one with the reason why it cannot be read."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import UserError
from initlab.records.checksums import find_run_damage, verify_checksum
from initlab.records.columns import FINAL_METRICS, OPTIONS, TABLE_COLUMNS, has_header, preserve_integers
from initlab.records.row_checks import RESULT_COLUMNS, config_cells, result_cells
from initlab.records.serialization import from_json, from_yaml
from initlab.records.table_reader import column_dtypes, parse_table
from initlab.statistics.histograms import BUCKETS
from initlab.system.safe_reading import error_reason, read_bytes, read_ends

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_KEYS = ("init", "act", "model", "depth", "seed", "optim.lr")

_FLOAT_COLUMNS = (*FINAL_METRICS, "seconds", "steps", "first_bad_step")
Paths = str | Path | Iterable[str | Path]


def load(paths: Paths) -> "pd.DataFrame":
    """Return one row per run below `paths`, damaged and unfinished ones included.

    A directory with `config.yaml`, `summary.json` or `metrics.csv` is a run. A run's files may come from anywhere: only
    regular files inside its directory are read, to a bounded size and depth, and no summary can define `path`,
    `problem` or a key of the configuration. A run that breaks one of these rules has the reason as its `problem`.

    Args:
        paths: directories of runs or sweeps, or directories that hold some.

    Returns:
        A frame with the columns `init`, `act`, `model`, `data`, `optim` (option names); every other configuration key,
        dotted, as it is typed; `status` (`unfinished` without a summary, `damaged` when nothing can be read), `problem`
        (why, else empty), the final metrics, `seconds`, `steps`, `first_bad_step`, `first_bad_layer`, `hash`, whatever
        else the summary names, and `path`.

    Raises:
        UserError: a path does not exist.

    >>> load([]).columns[:3].tolist()
    ['init', 'act', 'model']
    """
    return tabulate(read_run(directory) for directory in run_directories(paths))


def tabulate(runs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> "pd.DataFrame":
    """Return the frame of `load` for runs as `read_run` returns them, one row each."""
    import pandas as pd

    rows = list(runs)
    reserved = {*RESULT_COLUMNS, "path"}
    keys = dict.fromkeys([*OPTIONS, *(key for config, _ in rows for key in config if key not in reserved)])
    names = dict.fromkeys([*RESULT_COLUMNS, *(key for _, result in rows for key in result if key != "path")])
    frame = pd.DataFrame(
        {key: preserve_integers([config.get(key) for config, _ in rows]) for key in keys}
        | {name: [result.get(name) for _, result in rows] for name in [*names, "path"] if name not in keys}
    )
    for name in _FLOAT_COLUMNS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name in ("steps", "first_bad_step"):
        frame[name] = frame[name].astype("Int64")
    return frame


def load_metrics(runs: "Paths | pd.DataFrame", keys: Sequence[str] = DEFAULT_KEYS) -> "pd.DataFrame":
    """Return the metrics of all runs, one row per run and step.

    A blank (not evaluated) and a NaN (diverged) are both NaN here; infinities stay.

    Args:
        runs: as for `load_layers`.
        keys: as for `load_layers`.

    Returns:
        A frame with `path`, the run's `keys`, `step`, and the metrics; `attrs` as for `load_layers`.
    """
    frame = _load_tables(runs, "metrics.csv", keys)
    if frame.duplicated(["path", "step"]).any():
        attributes = frame.attrs
        frame = frame.groupby(["path", "step"], sort=False, as_index=False, dropna=False).first()
        frame.attrs = attributes
    return frame


def load_layers(runs: "Paths | pd.DataFrame", keys: Sequence[str] = DEFAULT_KEYS) -> "pd.DataFrame":
    """Return the layer rows of all runs.

    Args:
        runs: paths as `load` takes them, or a frame of `load` (all of it or some rows).
        keys: columns of `load` to repeat on every row; those that no run has are left out. By default the usual ones
            and all that differ between the runs.

    Returns:
        A frame with `path`, the run's `keys`, step, layer, index, stat, value, source. Unreadable lines are left out;
        `attrs["lost"]` counts them by path.
    """
    return _load_tables(runs, "layers.csv", keys)


def load_histograms(
    runs: "Paths | pd.DataFrame",
    keys: Sequence[str] = DEFAULT_KEYS,
    choose: "Callable[[pd.DataFrame], np.ndarray] | None" = None,
) -> "pd.DataFrame":
    """Return the histograms of all runs.

    Args:
        runs: as for `load_layers`.
        keys: as for `load_layers`.
        choose: function of the frame, whose `counts` are still text, that returns which rows to read (bool [rows]);
            parsing the counts takes most of the time.

    Returns:
        A frame with `path`, the run's `keys`, step, layer, index, kind, low, high, num, nonfinite, sum, sum_squares,
        and `counts`, an int64 array [64] per row.
    """
    import pandas as pd

    frame = _load_tables(runs, "histograms.csv", keys)
    if choose is not None:
        frame = frame[choose(frame)].reset_index(drop=True)
    frame["counts"] = pd.Series([_parse_counts(text) for text in frame["counts"]], index=frame.index, dtype=object)
    good = frame["counts"].map(len) == BUCKETS
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
    """Return every run directory at or below `paths`, sorted; hidden directories (`.hydra`) are skipped.

    Raises:
        UserError: a path does not exist.
    """
    roots = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    runs = set()
    for root in roots:
        if root.is_file():
            raise UserError(f"{root} is a file: give the directory of its run or sweep, such as {root.parent}.")
        if not root.is_dir():
            raise UserError(f"There is no directory {root}: give a run, a sweep, or a directory that holds some.")
        for folder, children, files in os.walk(root):
            if {"config.yaml", "summary.json", "metrics.csv"}.intersection(files):
                runs.add(Path(folder))
                children.clear()
            children[:] = [child for child in children if not child.startswith(".")]
    return sorted(runs)


def read_run(directory: Path, *, read_weights: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the flat configuration and the result of one run; damage becomes its `problem`.

    Args:
        directory: the run's directory.
        read_weights: whether saved weights are compared with their checksums; else their sizes alone are compared.
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
    """Return what is wrong with the tables of a run: by their checksums `files`, else by their first and last bytes."""
    if files is not None:
        try:
            return find_run_damage(directory, files, read_weights=read_weights)
        except (OSError, ValueError) as error:
            return f"a file cannot be compared with its checksum ({error_reason(error)})"
    for name, columns in TABLE_COLUMNS.items():
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


def config_columns(runs: "pd.DataFrame") -> list[str]:
    """Return the configuration keys of a frame of `load`: the columns before `status`.

    >>> config_columns(load([]))
    ['init', 'act', 'model', 'data', 'optim']
    """
    columns = list(map(str, runs.columns))
    return columns[: columns.index("status")] if "status" in columns else []


def varying_keys(runs: "pd.DataFrame") -> list[str]:
    """Return the configuration keys that differ between runs and so tell cells apart.

    >>> import pandas as pd
    >>> varying_keys(pd.DataFrame({"init": ["ones", "ones"], "width": [4, 8], "status": ["completed", "failed"]}))
    ['width']
    """
    return [key for key in config_columns(runs) if runs[key].map(str).nunique() > 1]


def _load_tables(runs: "Paths | pd.DataFrame", name: str, keys: Sequence[str]) -> "pd.DataFrame":
    """Return one table of all runs under each other, with the run's keys before its columns."""
    import pandas as pd

    frame = runs if isinstance(runs, pd.DataFrame) else load(runs)
    columns = TABLE_COLUMNS[name]
    tables = [parse_table(Path(path) / name) for path in frame["path"]]
    keys = [*keys, *varying_keys(frame)] if keys is DEFAULT_KEYS else keys
    keys = ["path", *(key for key in dict.fromkeys(keys) if key in frame.columns and key not in columns)]
    lengths = [len(table) for table, _ in tables]
    repeated = {key: np.repeat(frame[key].to_numpy(), lengths) for key in keys}
    empty = pd.DataFrame(columns=list(columns)).astype(column_dtypes(columns))
    rows = pd.concat([empty, *(table for table, _ in tables)], ignore_index=True)
    rows = pd.concat([pd.DataFrame(repeated, columns=keys), rows], axis=1)
    rows.attrs["lost"] = {path: lost for path, (_, lost) in zip(frame["path"], tables, strict=True) if lost}
    return rows
