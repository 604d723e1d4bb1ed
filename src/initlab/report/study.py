"""The runs of a study: which keys differ between them, the labels of each run, and how it ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.config.naming import is_incidental
from initlab.records.reader import config_columns
from initlab.statistics.comparisons import best_rate
from initlab.system.escape import printable
from initlab.system.safe_reading import error_reason

METRIC_PREFERENCE = ("test_accuracy", "val_accuracy", "accuracy", "test_loss", "val_loss", "loss")
OUTCOMES = ("trained", "learning", "stuck", "finished", "diverged", "failed", "skipped", "unfinished", "damaged")
CELL_COLUMNS = ["scheme", "activation", "depth", "setting"]
SWEEP_RUN = "sweep"  # the directory inside a sweep's that TensorBoard shows as the whole sweep
_TRUE_VALUES = (True, "True", "true", 1)
_OWN_AXES = {"seed", "optim.lr", "depth", "init", "act"}
# Of two runs with the same hash the one that comes first here counts.
_STATUSES = ("completed", "diverged", "failed", "skipped", "unfinished", "damaged")


@dataclass(frozen=True)
class Study:
    """The runs of one or several sweeps, ready for tables and figures.

    Attributes:
        runs: the columns of `load`, and `name`, `sweep`, `scheme`, `activation`, `setting` (labels with every key that
            tells runs apart), `rate`, `outcome`, `best_rate` (whether the run represents its cell), `reason`.
        unread: name, status and reason of what is not a whole run.
        twice: how many runs were left out because another run has the same hash.
        rates: whether some cell was run at several learning rates.
    """

    runs: pd.DataFrame
    unread: pd.DataFrame
    twice: int
    rates: bool


def build_study(frame: pd.DataFrame, roots: Sequence[Path] = ()) -> Study:
    """Label every run of a frame of `load`.

    Args:
        frame: the runs.
        roots: directories that are searched for subdirectories without a run.

    >>> from initlab.records import load
    >>> len(build_study(load([])).runs)
    0
    """
    runs = frame.reset_index(drop=True)
    runs = runs.assign(**{key: None for key in ("depth", "seed") if key not in runs})
    runs["name"] = run_names(runs["path"])
    runs["sweep"] = [Path(path).parent.name for path in runs["path"]]
    ends = (runs["status"], column_or_blanks(runs, "trained"), column_or_blanks(runs, "learning"))
    runs["outcome"] = [run_outcome(*row) for row in zip(*ends, strict=True)]
    runs["reason"] = [problem_text(row) for row in row_dicts(runs)]
    not_whole = (runs["problem"].fillna("") != "") | runs["status"].isin(_STATUSES[2:])
    unread = runs.loc[not_whole, ["name", "status", "reason"]]
    others = [(path.name, "no run", reason) for path, reason in find_non_runs(roots, runs["path"])]
    unread = pd.concat([unread, pd.DataFrame(others, columns=unread.columns)], ignore_index=True)
    whole = runs[runs["status"] != "damaged"]
    runs = drop_repeated_runs(whole)
    keys = distinguishing_keys(runs, config_columns(frame))
    runs["scheme"] = run_labels(runs, "init", [key for key in keys if key.startswith("init.")])
    runs["activation"] = run_labels(runs, "act", [key for key in keys if key.startswith("act.")])
    runs["setting"] = run_labels(runs, "", [key for key in keys if not key.startswith(("init.", "act."))])
    runs["rate"] = number_column(runs, "optim.lr")
    runs["best_rate"] = at_best_rate(runs)
    per_cell = runs.groupby(CELL_COLUMNS, dropna=False)["rate"].nunique()
    return Study(runs, unread, len(whole) - len(runs), bool((per_cell > 1).any()))


def row_dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def column_or_blanks(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column; blanks where no run has it."""
    return frame[name] if name in frame else pd.Series([None] * len(frame), index=frame.index, dtype=object)


def number_column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as float64; NaN for what is no number, and where no run has the column."""
    return pd.to_numeric(column_or_blanks(frame, name), errors="coerce").astype("float64")


def is_blank(value: Any) -> bool:
    """Return whether a value is None, NaN or pandas' NA."""
    return value is None or value is pd.NA or value != value


def value_text(value: Any) -> str:
    """Return a value of a configuration as it is typed, on one line and `printable`; "" for a blank.

    >>> value_text(3.0), value_text(0.1), value_text(None), value_text("he_normal")
    ('3', '0.1', '', 'he_normal')
    """
    if is_blank(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else printable(value)


def run_names(paths: Iterable[str]) -> list[str]:
    """Return the last part of every path; where two agree, the two last parts."""
    parts = [Path(path).parts[-2:] for path in paths]
    counts = pd.Series([part[-1] for part in parts], dtype=object).value_counts()
    return [value_text(part[-1] if counts[part[-1]] == 1 else "/".join(part)) for part in parts]


def distinguishing_keys(runs: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the keys that affect results and differ, without init, act, depth, seed, rate and what follows from these.

    A key follows from its option (or the width from the depth) when it has one value for each value of the option.
    """
    keys = [key for key in keys if not is_incidental(key)]
    texts = pd.DataFrame({key: runs[key].map(value_text) for key in keys}, index=runs.index)

    def follows(key: str) -> bool:
        owner = "depth" if key == "width" else key.split(".")[0]  # a list of widths has the length of the depth
        return owner != key and owner in texts and bool(texts.groupby(owner)[key].nunique().max() == 1)

    return [key for key in keys if key not in _OWN_AXES and texts[key].nunique() > 1 and not follows(key)]


def run_labels(runs: pd.DataFrame, option: str, keys: Sequence[str]) -> list[str]:
    """Return `name, key=value, …` for every run, with the keys that differ among the runs of the same name.

    Args:
        runs: the runs.
        option: the option whose name begins the label, "" for labels of keys alone.
        keys: the keys that may be needed.
    """
    heads = [value_text(value) or "none" for value in runs[option]] if option else [""] * len(runs)
    labels = [[head] if head else [] for head in heads]
    for key in keys:
        texts = runs[key].map(value_text)
        differs = texts.groupby(heads).transform("nunique") > 1
        for label, text, shown in zip(labels, texts, differs, strict=True):
            if shown:
                label.append(f"{key.removeprefix(f'{option}.')}={text or 'none'}")
    return [", ".join(label) for label in labels]


def run_outcome(status: str, trained: Any, learning: Any = None) -> str:
    """Return how a run ended: a completed one trained, still learns or is stuck; without accuracies it is finished.

    Args:
        status: the run's status.
        trained: whether accuracy passed its bar, blank where there is none.
        learning: of a run that did not train, whether the loss still fell.

    >>> run_outcome("completed", True), run_outcome("completed", False, True), run_outcome("completed", False, False)
    ('trained', 'learning', 'stuck')
    >>> run_outcome("completed", None), run_outcome("diverged", None)
    ('finished', 'diverged')
    """
    if status != "completed":
        return status
    if is_blank(trained):
        return "finished"
    if trained in _TRUE_VALUES:
        return "trained"
    return "learning" if learning in _TRUE_VALUES else "stuck"


def problem_text(row: dict[str, Any]) -> str:
    """Return what is wrong with a run according to its summary."""
    parts = [value_text(row.get(key)) for key in ("reason", "error", "problem")]
    if row["status"] == "unfinished":
        parts.append("no summary.json: it still runs, or was stopped")
    return "; ".join(filter(None, parts))


def find_non_runs(roots: Sequence[Path], paths: Iterable[str]) -> list[tuple[Path, str]]:
    """Return the directories beside runs that hold no run, with the reason.

    Args:
        roots: directories that are searched, as are the parents of runs.
        paths: directories of runs.
    """
    runs = {Path(path) for path in paths}
    known = runs | {parent for path in runs for parent in path.parents}
    found = []
    for place in sorted({*roots, *(path.parent for path in runs)} - runs):
        try:
            children = sorted(place.iterdir()) if place.is_dir() else []
        except OSError as error:
            children = []
            found.append((place, f"it cannot be listed ({error_reason(error)})"))
        for child in children:
            if child.is_dir() and not child.name.startswith(".") and child.name != SWEEP_RUN and child not in known:
                link = "it is a symbolic link, which is not followed"
                found.append((child, link if child.is_symlink() else "it has neither config.yaml nor summary.json"))
    return found


def drop_repeated_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs without those that have the hash of another run (of what determines the result)."""
    order = runs.iloc[np.argsort(runs["status"].map(_STATUSES.index).to_numpy(dtype=int), kind="stable")]
    repeated = order["hash"].notna() & order.duplicated("hash")
    return order[~repeated].sort_index().reset_index(drop=True)


def fresh_seeds(runs: pd.DataFrame) -> pd.Series:
    """Return for every run whether its seed was not used to choose its cell's rate (bool [rows]).

    Runs of a race record it. In other sweeps a seed was used when its cell ran it at more than one rate.
    """
    inferred = runs.groupby([*CELL_COLUMNS, "seed"], dropna=False)["rate"].transform("nunique") <= 1
    part = column_or_blanks(runs, "race")
    return (inferred & (part != "tuning")) | (part == "final")


def at_best_rate(runs: pd.DataFrame) -> list[bool]:
    """Return for every run whether it represents its cell: it has the cell's best rate and a fresh seed.

    Where no run at the best rate has a fresh seed, all runs at that rate represent the cell. In a cell with one rate
    all runs do. The best rate has the least mean validation loss (without one, training loss) over the seeds that were
    run at several rates, lost seeds first. A cell whose further seeds were all run at one rate has been tuned already:
    that rate is its best.
    """
    loss = runs["val_loss"].fillna(runs["loss"]).where(runs["status"] == "completed", np.inf).fillna(np.inf)
    table = runs[[*CELL_COLUMNS, "rate"]].assign(loss=loss, fresh=fresh_seeds(runs))
    chosen = pd.Series(True, index=runs.index)
    for _, cell in table.dropna(subset="rate").groupby(CELL_COLUMNS, dropna=False, sort=False):
        if cell["rate"].nunique() < 2:
            continue
        fresh_rates = cell.loc[cell["fresh"], "rate"].unique()
        if len(fresh_rates) == 1 and not cell["fresh"].all():
            best = float(fresh_rates[0])
        else:
            tuning = cell if cell["fresh"].all() else cell[~cell["fresh"]]
            best = best_rate({float(str(rate)): part["loss"].tolist() for rate, part in tuning.groupby("rate")})
        at_best = cell["rate"] == best
        represents = at_best & cell["fresh"]
        chosen[cell.index] = represents if represents.any() else at_best
    return chosen.tolist()


def sorted_values(values: Iterable[Any]) -> list[Any]:
    """Return distinct values: numbers in their order, then texts in theirs, blanks last.

    >>> sorted_values([30, "x", 3, None, 10])
    [3, 10, 30, 'x', None]
    """

    def place(value: Any) -> tuple[int, float, str]:
        if is_blank(value):
            return (2, 0.0, "")
        if isinstance(value, (int, float, np.number)):
            return (0, float(value), "")
        return (1, 0.0, str(value))

    distinct = {("" if is_blank(value) else str(value)): value for value in values}
    return sorted(distinct.values(), key=place)
