"""Everything a page shows, gathered from run directories a few at a time, so that a thousand runs fit the memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.errors import UserError
from initlab.records import load, load_histograms, load_layers, load_metrics
from initlab.report.curves import Curves, planned_steps, targets
from initlab.report.diagnosis import diagnose, losses_of
from initlab.report.encoding import numbers
from initlab.report.histograms import Histograms, chosen, share
from initlab.report.layers import BUDGET, Blocks, Layers, blocks, is_grid
from initlab.report.pairs import cells, comparisons, judged_by, robustness, windows
from initlab.report.study import METRICS, TRAINABLE, Study, column, ordered, rows_of, study, text
from initlab.statistics.comparisons import ENOUGH

ANY_DEPTH = 1e4  # from which on the page says "any"
CHUNK = 50  # runs whose tables are in memory at once
NUMBERS = (*METRICS, "rate", "seconds", "steps", "first_bad_step", TRAINABLE)
TEXTS = ("name", "sweep", "scheme", "activation", "setting", "outcome", "path")


@dataclass(frozen=True)
class Gathered:
    """What the page gets (`payload`, plain values only) and the frames it rests on."""

    payload: dict[str, Any]
    study: Study
    cells: pd.DataFrame
    metric: str | None


def gather(paths: Sequence[Path]) -> Gathered:
    """Read all runs at or below `paths`.

    Raises:
        UserError: a path does not exist, or there is no run.
    """
    found = study(load(paths), paths)
    if found.runs.empty and found.unread.empty:
        where = ", ".join(map(str, paths))
        raise UserError(
            f"There is no run in {where}: give a run's or a sweep's directory, such as outputs/sweeps/NAME."
        )
    runs = found.runs
    metric = judged_by(runs)
    table = cells(runs, metric)
    usable = windows(runs)
    pairs = robustness(comparisons(runs, metric), usable) if metric else pd.DataFrame({"n": []})
    enough = pairs["n"] >= ENOUGH
    recorded, hollow = tables(runs)
    found = replace(found, unread=pd.concat([found.unread, hollow], ignore_index=True))
    payload = {
        "runs": run_columns(runs),
        "metric": metric,
        "rates": found.rates,
        "twice": found.twice,
        "unread": records(found.unread),
        "pairs": records(pairs[enough]),
        "few": sorted(pairs.loc[~enough, "n"].astype(int).tolist()),
        "windows": records(usable),
        "cells": records(table),
        **recorded,
    }
    return Gathered(payload, found, table, metric)


def tables(runs: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the tables of all runs; return the packed curves, layers, histograms and diagnoses, and what is unreadable.

    Tables that are there and hold nothing readable come back as rows of `Study.unread`.
    """
    hollow: list[dict[str, str]] = []
    asked = pd.to_numeric(column(runs, "train.target_loss"), errors="coerce").dropna().astype("float64").tolist()
    curves = Curves(targets(runs.loc[runs["status"] == "completed", "loss"].tolist(), asked))
    layers = Layers(BUDGET // max(len(runs), 1))
    of = share(len(runs))
    histograms = Histograms(of)
    diagnoses: dict[int, str] = {}
    planned = planned_steps(runs)
    rows = rows_of(runs)
    for start in range(0, len(runs), CHUNK):
        some = runs.iloc[start : start + CHUNK]
        metrics = by_path(curve_rows := load_metrics(some, keys=()))
        measured = by_path(layer_rows := load_layers(some, keys=()))
        bins = by_path(counted := load_histograms(some, keys=(), choose=lambda frame: chosen(frame, of)))
        lost = [("metrics.csv", curve_rows), ("layers.csv", layer_rows), ("histograms.csv", counted)]
        for number, path in zip(range(start, start + len(some)), some["path"], strict=True):
            block: Blocks | None = None
            for name, frame in lost:
                if (count := frame.attrs["lost"].get(path, 0)) and not rows[number]["problem"]:
                    hollow.append(told(rows[number], f"{count} lines of {name} cannot be read"))
            for name, known in (("metrics.csv", metrics), ("layers.csv", measured)):
                if path not in known and not rows[number]["problem"] and (Path(path) / name).exists():
                    hollow.append(told(rows[number], f"no line of {name} can be read"))
            if path in metrics:
                curves.add(number, metrics[path], planned[number])
            if path in measured and not is_grid(measured[path]):
                hollow.append(told(rows[number], "the rows of layers.csv are not of the same layers at the same steps"))
            elif path in measured:
                block = blocks(measured[path])
                layers.add(number, block)
            if path in bins:
                histograms.add(number, bins[path])
            if said := diagnose(rows[number], block, losses_of(rows[number], metrics.get(path))):
                diagnoses[number] = text(said)
    packed = {
        "curves": curves.packed(),
        "layers": layers.packed(),
        "histograms": histograms.packed(),
        "diagnoses": diagnoses,
    }
    return packed, pd.DataFrame(hollow, columns=["name", "status", "reason"])


def told(row: Mapping[str, Any], reason: str) -> dict[str, str]:
    """Return a row of `Study.unread` about one run."""
    return {"name": row["name"], "status": row["status"], "reason": reason}


def by_path(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a frame of many runs into one per run."""
    return {str(path): part for path, part in frame.groupby("path", sort=False)}


def run_columns(runs: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that the page knows of every run; texts as a list of distinct ones and codes."""
    found: dict[str, Any] = {"count": len(runs)}
    for name in TEXTS:
        codes, distinct = pd.factorize(pd.Series([text(value) for value in runs[name]], dtype=object), sort=True)
        found[name] = {"texts": distinct.tolist(), "codes": codes.tolist()}
    for name in ("depth", "seed"):
        values = ordered(runs[name])
        places = {text(value): place for place, value in enumerate(values)}
        found[name] = {
            "texts": [text(value) or "none" for value in values],
            "codes": [places[text(value)] for value in runs[name]],
        }
    for name in NUMBERS:
        if name in runs and runs[name].notna().any():
            column_of = pd.to_numeric(runs[name], errors="coerce").astype("float64")
            # At criticality depth is no limit, and the page knows no infinity.
            found[name] = numbers(column_of.clip(upper=ANY_DEPTH) if name == TRAINABLE else column_of)
    found["best_rate"] = [int(value) for value in runs["best_rate"]]
    return found


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a small frame as plain values, None for blanks."""
    return [{name: plain(value) for name, value in row.items()} for row in rows_of(frame)]


def plain(value: Any) -> Any:
    """Return a value that JSON knows."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        return numbers([value])[0]
    return text(value)


def described(payload: Mapping[str, Any]) -> dict[str, int]:
    """Count the runs of a page by how they ended, most frequent first."""
    found = payload["runs"]["outcome"]
    counts = np.bincount(np.asarray(found["codes"], dtype=np.intp), minlength=len(found["texts"]))
    return {found["texts"][k]: int(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}
