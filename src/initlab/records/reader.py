"""The reader of run directories: whatever was written, also halfway, comes back as a row or as the reason why not."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import UserError
from initlab.histograms import BUCKETS
from initlab.records.plain import from_json, from_yaml
from initlab.records.sums import first_damage, unsealed
from initlab.records.tables import HISTOGRAMS, LAYERS, METRICS, OPTIONS, flatten, rearm

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("completed", "diverged", "failed", "skipped")
FINAL = ("loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy")
KEYS = ("init", "act", "model", "depth", "seed", "optim.lr")

_RESULTS = ("status", "problem", *FINAL, "seconds", "steps", "first_bad_step", "first_bad_layer", "hash")
_NUMBERS = (*FINAL, "seconds", "steps", "first_bad_step")
_TEXTS = {"layer", "stat", "source", "kind", "counts"}

Paths = str | Path | Iterable[str | Path]


def load(paths: Paths) -> "pd.DataFrame":
    """Return one row per run below `paths`, damaged and unfinished ones included.

    Columns: the options `init`, `act`, `model`, `data`, `optim`; every other configuration key, dotted, as it is typed;
    `status` (`unfinished` without a summary, `damaged` when nothing can be read), `problem` (why, else empty), the
    final metrics, `seconds`, `steps`, `first_bad_step`, `first_bad_layer`, `hash`, whatever else the summary names,
    and `path`. A directory with `config.yaml` or `summary.json` is a run.

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
    results = list(dict.fromkeys([*_RESULTS, *(key for _, result in found for key in result if key != "path"), "path"]))
    configs = [key for key in configs if key not in results]
    frame = pd.DataFrame(
        {
            **{key: [config.get(key) for config, _ in found] for key in configs},
            **{key: [result.get(key) for _, result in found] for key in results},
        }
    )
    for name in _NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    for name in ("steps", "first_bad_step"):
        frame[name] = frame[name].astype("Int64")
    return frame


def load_metrics(runs: "Paths | pd.DataFrame", keys: Sequence[str] = KEYS) -> "pd.DataFrame":
    """Return the metrics of all runs, one row per run and step: `path`, the run's `keys`, `step`, loss, accuracy, …

    A blank (not evaluated) and a NaN (diverged) are both NaN here; infinities stay. Arguments as `load_layers`.
    """
    frame = _tables(runs, "metrics.csv", ("step", *METRICS), keys)
    if frame.duplicated(["path", "step"]).any():
        frame = frame.groupby(["path", "step"], sort=False, as_index=False, dropna=False).first()
    return frame


def load_layers(runs: "Paths | pd.DataFrame", keys: Sequence[str] = KEYS) -> "pd.DataFrame":
    """Return the layer rows of all runs: `path`, the run's `keys`, then step, layer, index, stat, value, source.

    Args:
        runs: paths as `load` takes them, or a frame of `load` (all of it or some rows).
        keys: columns of `load` to repeat on every row; those that no run has are left out. By default the usual ones
            and all that differ between the runs.
    """
    return _tables(runs, "layers.csv", LAYERS, keys)


def load_histograms(
    runs: "Paths | pd.DataFrame",
    keys: Sequence[str] = KEYS,
    choose: "Callable[[pd.DataFrame], np.ndarray] | None" = None,
) -> "pd.DataFrame":
    """Return the histograms of all runs: `path`, the run's `keys`, step, layer, index, kind, low, high, …, `counts`.

    `counts` is an int64 array [64] per row. Arguments as `load_layers`; `choose` says of a frame whose `counts` are
    still text which rows are wanted (bool [rows]): reading the others costs most of the time.
    """
    import pandas as pd

    frame = _tables(runs, "histograms.csv", HISTOGRAMS, keys)
    if choose is not None:
        frame = frame[choose(frame)].reset_index(drop=True)
    counts = [_counts(text) for text in frame["counts"]]
    frame["counts"] = pd.Series(counts, dtype=object)
    return frame[np.array([len(row) == BUCKETS for row in counts], dtype=bool)].reset_index(drop=True)


def _counts(text: object) -> np.ndarray:
    try:
        return np.array(str(text).split(), dtype=np.int64)
    except (ValueError, OverflowError):
        return np.zeros(0, dtype=np.int64)


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
            if "config.yaml" in files or "summary.json" in files:
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
        data = (directory / "summary.json").read_bytes()
        summary = unsealed(from_json(data), data)
        config, files = summary.pop("config", None), summary.pop("files", None)
        if summary.get("status") not in STATUSES:
            raise ValueError(f"its status is not one of {', '.join(STATUSES)}")
        result |= {key: value for key, value in summary.items() if not isinstance(value, (dict, list))}
    except FileNotFoundError:  # it is written last
        result["status"] = "unfinished"
    except (OSError, ValueError) as error:
        result |= {"status": "damaged", "problem": f"summary.json cannot be read ({_first_line(error)})"}
    if not isinstance(config, dict):
        try:
            config = from_yaml((directory / "config.yaml").read_bytes())
        except (OSError, ValueError) as error:
            config = {}
            result |= {"status": "damaged", "problem": f"config.yaml cannot be read ({_first_line(error)})"}
    result["problem"] = result["problem"] or _torn(directory, result["status"], files, read_weights)
    return {key: _cell(value) for key, value in flatten(config).items()}, result


def _torn(directory: Path, status: str, files: Any, read_weights: bool) -> str:
    """Return what is wrong with the files of a finished run: by their checksums `files`, else by their last bytes."""
    if files is not None:
        try:
            return first_damage(directory, files, read_weights=read_weights)
        except (OSError, ValueError) as error:
            return f"a file cannot be compared with its checksum ({_first_line(error)})"
    for name in ("metrics.csv", "layers.csv", "histograms.csv"):
        try:
            with open(directory / name, "rb") as file:
                file.seek(0, os.SEEK_END)
                if file.tell() == 0:
                    return f"{name} is empty"
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    return f"{name} ends in the middle of a line"
        except FileNotFoundError:
            if name == "metrics.csv" and status in {"completed", "diverged"}:
                return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({_first_line(error)})"
    return ""


def varying(runs: "pd.DataFrame") -> list[str]:
    """Return the keys of the configuration that differ between runs: without them cells could not be told apart.

    >>> import pandas as pd
    >>> varying(pd.DataFrame({"init": ["ones", "ones"], "width": [4, 8], "status": ["completed", "failed"]}))
    ['width']
    """
    configs = list(runs.columns)[: list(runs.columns).index("status")] if "status" in runs else []
    return [str(key) for key in configs if runs[key].map(str).nunique() > 1]


def _tables(runs: "Paths | pd.DataFrame", name: str, columns: Sequence[str], keys: Sequence[str]) -> "pd.DataFrame":
    """Return one table of all runs under each other, with the run's keys before its columns."""
    import pandas as pd

    table = runs if isinstance(runs, pd.DataFrame) else load(runs)
    parts = [_table(Path(path) / name, columns) for path in table["path"]]
    lengths = [len(part) for part in parts]
    keys = [*keys, *varying(table)] if keys is KEYS else keys
    keys = ["path", *(key for key in dict.fromkeys(keys) if key in table.columns and key not in columns)]
    repeated = {key: np.repeat(table[key].to_numpy(), lengths) for key in keys}
    frame = pd.concat([pd.DataFrame(columns=list(columns)).astype(_types(columns)), *parts], ignore_index=True)
    return pd.concat([pd.DataFrame(repeated, columns=keys), frame], axis=1)


def _table(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Return the whole lines of one CSV file; a torn last line and lines that are not of this table are dropped."""
    import pandas as pd

    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    data = data[: data.rfind(b"\n") + 1]
    # A layer may be called "null": only numbers have blanks.
    blanks: dict[Any, list[str]] = {name: ["", "nan"] for name in columns if name not in _TEXTS}
    try:
        with np.errstate(invalid="ignore"):
            frame = pd.read_csv(
                io.BytesIO(data),
                usecols=list(columns),
                dtype=_types(columns),
                na_values=blanks,
                keep_default_na=False,
            )
    except ValueError:
        frame = _salvage(data, columns)
    if b"'" in data:
        for name in _TEXTS & set(columns):
            frame[name] = frame[name].map(rearm)
    return frame[list(columns)]


def _salvage(data: bytes, columns: Sequence[str]) -> "pd.DataFrame":
    """Read what can be read of a damaged table, line by line."""
    import pandas as pd

    lines = data.decode(errors="replace").replace("\0", "").splitlines()
    rows = [row for line in lines if len(row := _split(line)) == len(columns) and row != list(columns)]
    frame = pd.DataFrame(rows, columns=list(columns), dtype="str")
    for name in columns:
        if name not in _TEXTS:
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    for name, kind in _types(columns).items():
        if kind == "int64":
            frame = frame[(frame[name].abs() < 2**53) & (frame[name] % 1 == 0)]
    return frame.astype(_types(columns)).reset_index(drop=True)


def _split(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _types(columns: Sequence[str]) -> dict[str, str]:
    whole = {"step", "index", "num", "nonfinite"}
    return {name: "str" if name in _TEXTS else "int64" if name in whole else "float64" for name in columns}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
