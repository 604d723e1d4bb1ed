"""What a frame of runs is about: which keys differ, what each run is called in pictures, and how it ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.config.naming import is_incidental
from initlab.statistics.comparisons import best_rate
from initlab.system.escape import printable
from initlab.system.safe_reading import error_reason

METRIC_PREFERENCE = ("test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss")
OUTCOMES = ("trained", "learning", "stuck", "finished", "diverged", "failed", "skipped", "unfinished", "damaged")
CELL_COLUMNS = ["scheme", "activation", "depth", "setting"]
# What a forecast may have left in the summary: the depth to which a network should train.
TRAINABLE_DEPTH = "trainable_depth"

SWEEP_RUN = "sweep"  # the directory inside a sweep's that TensorBoard shows as the whole sweep
_TRUE_VALUES = (True, "True", "true", 1)
_OWN_AXES = {"seed", "optim.lr", "depth", "init", "act"}
# A run that is there twice is counted once: the one that got furthest.
_STATUS_RANK = {"completed": 0, "diverged": 1, "failed": 2, "skipped": 3, "unfinished": 4, "damaged": 5}


@dataclass(frozen=True)
class Study:
    """The runs of one or several sweeps, ready for tables and pictures.

    runs: the columns of `load`, and of our own: `name`, `sweep`, `scheme`, `activation`, `setting` (labels with every
        key that tells runs apart), `rate`, `run_outcome`, `best_rate` (does it stand for its cell?), `problem_text`.
    unread: name, status, reason of what is no whole run.
    twice: how many runs were left out because they are there twice.
    rates: whether some cell was run at several learning rates.
    """

    runs: pd.DataFrame
    unread: pd.DataFrame
    twice: int
    rates: bool


def build_study(frame: pd.DataFrame, roots: Sequence[Path] = ()) -> Study:
    """Label every run of a frame of `load`; `roots` are searched for directories that are no run.

    >>> from initlab.records import load
    >>> len(build_study(load([])).runs)
    0
    """
    runs = frame.reset_index(drop=True)
    runs = runs.assign(**{key: None for key in ("depth", "seed") if key not in runs})
    keys = [key for key in list(frame.columns)[: list(frame.columns).index("status")] if affects_result(key)]
    runs["name"] = run_names(runs["path"])
    runs["sweep"] = [Path(path).parent.name for path in runs["path"]]
    ends = (runs["status"], column_or_blanks(runs, "trained"), column_or_blanks(runs, "learning"))
    runs["outcome"] = [run_outcome(*row) for row in zip(*ends, strict=True)]
    runs["reason"] = [problem_text(row) for row in row_dicts(runs)]
    told = (runs["problem"].fillna("") != "") | runs["status"].isin(["failed", "skipped", "unfinished", "damaged"])
    unread = runs.loc[told, ["name", "status", "reason"]]
    strangers = [
        {"name": path.name, "status": "no run", "reason": why} for path, why in find_non_runs(roots, runs["path"])
    ]
    unread = pd.concat([unread, pd.DataFrame(strangers, columns=unread.columns)], ignore_index=True)
    before = len(runs)
    runs = drop_repeated_runs(runs[runs["status"] != "damaged"])
    told_apart = distinguishing_keys(runs, keys)
    runs["scheme"] = run_labels(runs, "init", [key for key in told_apart if key.startswith("init.")])
    runs["activation"] = run_labels(runs, "act", [key for key in told_apart if key.startswith("act.")])
    rest = [key for key in told_apart if not key.startswith(("init.", "act."))]
    runs["setting"] = run_labels(runs, None, rest)
    runs["rate"] = pd.to_numeric(column_or_blanks(runs, "optim.lr"), errors="coerce").astype("float64")
    per_cell = runs.groupby(CELL_COLUMNS, dropna=False)["rate"].nunique()
    runs["best_rate"] = at_best_rate(runs)
    lost = int((frame["status"] == "damaged").sum())
    return Study(runs, unread, before - lost - len(runs), bool((per_cell > 1).any()))


def row_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def affects_result(key: str) -> bool:
    """Does a configuration key have a say in the result?

    >>> affects_result("model.norm"), affects_result("sweep.name"), affects_result("train.save")
    (True, False, False)
    """
    return not is_incidental(key)


def column_or_blanks(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column, or blanks where no run has it."""
    return frame[name] if name in frame else pd.Series([None] * len(frame), index=frame.index, dtype=object)


def value_text(value: Any) -> str:
    """Write a value of a configuration as it is typed, on one line and `printable`; a blank for none.

    >>> value_text(3.0), value_text(0.1), value_text(None), value_text("he_normal")
    ('3', '0.1', '', 'he_normal')
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value)


def run_names(paths: Iterable[str]) -> list[str]:
    """Return the last part of every path; where two agree, the two last parts."""
    found = [Path(path) for path in paths]
    counts = pd.Series([path.name for path in found], dtype=object).value_counts()
    return [value_text(path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}") for path in found]


def distinguishing_keys(runs: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the keys beside init, act, depth, seed and rate that differ, but for those that follow from an option."""
    as_text = pd.DataFrame({key: runs[key].map(value_text) for key in keys}, index=runs.index)
    found = [key for key in keys if key not in _OWN_AXES and as_text[key].nunique() > 1]

    def follows(key: str) -> bool:
        group = key.split(".")[0]
        # A list of widths has the length of the depth: it says what the depth says.
        owner = "depth" if key == "width" else group
        if owner == key or owner not in as_text:
            return False
        return bool(as_text.groupby(owner)[key].nunique().max() == 1)

    return [key for key in found if not follows(key)]


def run_labels(runs: pd.DataFrame, group: str | None, keys: Sequence[str]) -> list[str]:
    """Return `name, key=value, …` for every run, with the keys that differ among the runs of the same name."""
    if group is None:
        own = {"": list(keys)}
        heads = [""] * len(runs)
    else:
        heads = [value_text(value) or "none" for value in column_or_blanks(runs, group)]
        own = {
            head: [key for key in keys if runs.loc[[h == head for h in heads], key].map(value_text).nunique() > 1]
            for head in dict.fromkeys(heads)
        }
    prefix = 0 if group is None else len(group) + 1
    found = []
    for head, row in zip(heads, row_dicts(runs), strict=True):
        parts = [f"{key[prefix:]}={value_text(row[key]) or 'none'}" for key in own.get(head, [])]
        found.append(", ".join([head, *parts] if head else parts))
    return found


def run_outcome(status: str, trained: Any, learning: Any = None) -> str:
    """Say how a run ended: a completed one trained, still learns or is stuck; without accuracies it just finished.

    Arguments: `trained`, `learning` as the summary has them: did accuracy pass its bar; if not, did the loss fall?

    >>> run_outcome("completed", True), run_outcome("completed", False, True), run_outcome("completed", False, False)
    ('trained', 'learning', 'stuck')
    >>> run_outcome("completed", None), run_outcome("diverged", None)
    ('finished', 'diverged')
    """
    if status != "completed":
        return status
    if trained is None or trained != trained:
        return "finished"
    if trained in _TRUE_VALUES:
        return "trained"
    return "learning" if learning in _TRUE_VALUES else "stuck"


def problem_text(row: dict[str, Any]) -> str:
    """Say what is wrong with a run, as far as its summary knows."""
    parts = [value_text(row.get(key)) for key in ("reason", "error", "problem")]
    if row["status"] == "unfinished":
        parts.append("no summary.json: it still runs, or was stopped")
    return "; ".join(part for part in parts if part)


def find_non_runs(roots: Sequence[Path], paths: Iterable[str]) -> list[tuple[Path, str]]:
    """Return the directories beside runs that hold none, with the reason."""
    runs = {Path(path) for path in paths}
    above = {parent for path in runs for parent in path.parents}
    places = {*roots, *(path.parent for path in runs)} - runs
    found = []
    for place in sorted(places):
        try:
            children = sorted(place.iterdir()) if place.is_dir() else []
        except OSError as error:
            children = []
            found.append((place, f"it cannot be listed ({error_reason(error)})"))
        for child in children:
            if not child.is_dir() or child.name.startswith(".") or child.name == SWEEP_RUN or child in runs | above:
                continue
            link = "it is a symbolic link, which is not followed"
            found.append((child, link if child.is_symlink() else "it has neither config.yaml nor summary.json"))
    return found


def drop_repeated_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Leave out runs that are there twice (the same hash of what determines the result)."""
    rank = runs["status"].map(_STATUS_RANK)
    order = runs.assign(_rank=rank).sort_values("_rank", kind="stable")
    again = order["hash"].notna() & order.duplicated("hash")
    return runs.loc[sorted(order.index[~again])].reset_index(drop=True)


def fresh_seeds(runs: pd.DataFrame) -> pd.Series:
    """Say for every run whether its seed had no part in choosing its cell's rate (bool [rows]).

    The records of a race say it. In other sweeps a seed chose when its cell ran it at more than one rate.
    """
    inferred = runs.groupby([*CELL_COLUMNS, "seed"], dropna=False)["rate"].transform("nunique") <= 1
    part = column_or_blanks(runs, "race")
    return (inferred & (part != "tuning")) | (part == "final")


def at_best_rate(runs: pd.DataFrame) -> list[bool]:
    """Say for every run whether it stands for its cell: at the cell's best rate and, where there are such, on a seed
    that had no part in choosing it. In a cell with one rate all runs do.

    The best rate has the least mean validation loss over the seeds that were run at several rates, lost seeds first;
    where there is no validation loss the training loss decides. A cell whose further seeds were all run at one rate
    has been tuned already: that rate is its best.
    """
    judged = runs["val_loss"].where(runs["val_loss"].notna(), runs["loss"])
    judged = judged.where(runs["status"] == "completed", np.inf).fillna(np.inf)
    table = runs[[*CELL_COLUMNS, "rate"]].assign(judged=judged, fresh=fresh_seeds(runs))
    found = pd.Series(True, index=runs.index)
    for _, cell in table.dropna(subset="rate").groupby(CELL_COLUMNS, dropna=False, sort=False):
        if cell["rate"].nunique() < 2:
            continue
        fresh = cell.loc[cell["fresh"], "rate"].unique()
        if len(fresh) != 1 or cell["fresh"].all():
            some = cell if cell["fresh"].all() else cell[~cell["fresh"]]
            best = best_rate({float(str(rate)): part["judged"].tolist() for rate, part in some.groupby("rate")})
        else:
            best = float(fresh[0])
        at_best = cell["rate"] == best
        compared = at_best & cell["fresh"]
        found[cell.index] = compared if compared.any() else at_best
    return found.tolist()


def sorted_values(values: Iterable[Any]) -> list[Any]:
    """Return distinct values, numbers in their order before texts in theirs, blanks last.

    >>> sorted_values([30, "x", 3, None, 10])
    [3, 10, 30, 'x', None]
    """

    def place(value: Any) -> tuple[int, float, str]:
        if value is None or value != value:
            return (2, 0.0, "")
        if isinstance(value, (int, float, np.number)):
            return (0, float(value), "")
        return (1, 0.0, str(value))

    distinct = {("" if value != value else str(value)): value for value in values}
    return sorted(distinct.values(), key=place)
