"""Everything a page shows, gathered from run directories a few at a time, so that a thousand runs fit the memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from initlab.errors import UserError
from initlab.records import load, load_histograms, load_layers, load_metrics
from initlab.report.curves import CurveCollector, expected_steps, target_losses
from initlab.report.diagnosis import explain_run, losses_of
from initlab.report.encoding import json_numbers
from initlab.report.histograms import HistogramCollector, histogram_selection, select_rows
from initlab.report.layers import MAX_PAGE_NUMBERS, LayerArrays, LayerCollector, is_dense, layer_arrays
from initlab.report.pairs import add_window_widths, cell_summaries, compare_schemes, comparison_metric, rate_windows
from initlab.report.study import (
    METRIC_PREFERENCE,
    TRAINABLE_DEPTH,
    Study,
    build_study,
    column_or_blanks,
    row_dicts,
    sorted_values,
    value_text,
)
from initlab.statistics.comparisons import MIN_SEEDS

MAX_SHOWN_DEPTH = 1e4  # from which on the page says "any"
RUNS_PER_CHUNK = 50  # runs whose tables are in memory at once
NUMBER_COLUMNS = (*METRIC_PREFERENCE, "rate", "seconds", "steps", "first_bad_step", TRAINABLE_DEPTH)
TEXT_COLUMNS = ("name", "sweep", "scheme", "activation", "setting", "outcome", "path")


@dataclass(frozen=True)
class ReportData:
    """What the page gets (`payload`, plain values only) and the frames it rests on."""

    payload: dict[str, Any]
    study: Study
    cells: pd.DataFrame
    metric: str | None


def collect_report_data(paths: Sequence[Path]) -> ReportData:
    """Read all runs at or below `paths`.

    Raises:
        UserError: a path does not exist, or there is no run.
    """
    found = build_study(load(paths), paths)
    if found.runs.empty and found.unread.empty:
        where = ", ".join(map(str, paths))
        raise UserError(
            f"There is no run in {where}: give a run's or a sweep's directory, such as outputs/sweeps/NAME."
        )
    runs = found.runs
    metric = comparison_metric(runs)
    table = cell_summaries(runs, metric)
    usable = rate_windows(runs)
    pairs = add_window_widths(compare_schemes(runs, metric), usable) if metric else pd.DataFrame({"n": []})
    enough = pairs["n"] >= MIN_SEEDS
    recorded, hollow = read_run_tables(runs)
    found = replace(found, unread=pd.concat([found.unread, hollow], ignore_index=True))
    payload = {
        "runs": run_columns(runs),
        "metric": metric,
        "rates": found.rates,
        "twice": found.twice,
        "unread": plain_records(found.unread),
        "pairs": plain_records(pairs[enough]),
        "few": sorted(pairs.loc[~enough, "n"].astype(int).tolist()),
        "windows": plain_records(usable),
        "cells": plain_records(table),
        **recorded,
    }
    return ReportData(payload, found, table, metric)


def read_run_tables(runs: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the tables of all runs; return the packed curves, layers, histograms and diagnoses, and what is unreadable.

    Tables that are there and hold nothing readable come back as rows of `Study.unread`.
    """
    hollow: list[dict[str, str]] = []
    asked = (
        pd.to_numeric(column_or_blanks(runs, "train.target_loss"), errors="coerce").dropna().astype("float64").tolist()
    )
    curves = CurveCollector(target_losses(runs.loc[runs["status"] == "completed", "loss"].tolist(), asked))
    layers = LayerCollector(MAX_PAGE_NUMBERS // max(len(runs), 1))
    of = histogram_selection(len(runs))
    histograms = HistogramCollector(of)
    diagnoses: dict[int, str] = {}
    planned = expected_steps(runs)
    rows = row_dicts(runs)
    for start in range(0, len(runs), RUNS_PER_CHUNK):
        some = runs.iloc[start : start + RUNS_PER_CHUNK]
        metrics = split_by_path(curve_rows := load_metrics(some, keys=()))
        measured = split_by_path(layer_rows := load_layers(some, keys=()))
        bins = split_by_path(counted := load_histograms(some, keys=(), choose=lambda frame: select_rows(frame, of)))
        lost = [("metrics.csv", curve_rows), ("layers.csv", layer_rows), ("histograms.csv", counted)]
        for number, path in zip(range(start, start + len(some)), some["path"], strict=True):
            block: LayerArrays | None = None
            for name, frame in lost:
                if (count := frame.attrs["lost"].get(path, 0)) and not rows[number]["problem"]:
                    hollow.append(unread_row(rows[number], f"{count} lines of {name} cannot be read"))
            for name, known in (("metrics.csv", metrics), ("layers.csv", measured)):
                if path not in known and not rows[number]["problem"] and (Path(path) / name).exists():
                    hollow.append(unread_row(rows[number], f"no line of {name} can be read"))
            if path in metrics:
                curves.add(number, metrics[path], planned[number])
            if path in measured and not is_dense(measured[path]):
                hollow.append(
                    unread_row(rows[number], "the rows of layers.csv are not of the same layers at the same steps")
                )
            elif path in measured:
                block = layer_arrays(measured[path])
                layers.add(number, block)
            if path in bins:
                histograms.add(number, bins[path])
            if said := explain_run(rows[number], block, losses_of(rows[number], metrics.get(path))):
                diagnoses[number] = value_text(said)
    packed = {
        "curves": curves.packed(),
        "layers": layers.packed(),
        "histograms": histograms.packed(),
        "diagnoses": diagnoses,
    }
    return packed, pd.DataFrame(hollow, columns=["name", "status", "reason"])


def unread_row(row: Mapping[str, Any], reason: str) -> dict[str, str]:
    """Return a row of `Study.unread` about one run."""
    return {"name": row["name"], "status": row["status"], "reason": reason}


def split_by_path(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a frame of many runs into one per run."""
    return {str(path): part for path, part in frame.groupby("path", sort=False)}


def run_columns(runs: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that the page knows of every run; texts as a list of distinct ones and codes."""
    found: dict[str, Any] = {"count": len(runs)}
    for name in TEXT_COLUMNS:
        codes, distinct = pd.factorize(pd.Series([value_text(value) for value in runs[name]], dtype=object), sort=True)
        found[name] = {"texts": distinct.tolist(), "codes": codes.tolist()}
    for name in ("depth", "seed"):
        values = sorted_values(runs[name])
        places = {value_text(value): place for place, value in enumerate(values)}
        found[name] = {
            "texts": [value_text(value) or "none" for value in values],
            "codes": [places[value_text(value)] for value in runs[name]],
        }
    for name in NUMBER_COLUMNS:
        if name in runs and runs[name].notna().any():
            column_of = pd.to_numeric(runs[name], errors="coerce").astype("float64")
            # At criticality depth is no limit, and the page knows no infinity.
            found[name] = json_numbers(column_of.clip(upper=MAX_SHOWN_DEPTH) if name == TRAINABLE_DEPTH else column_of)
    found["best_rate"] = [int(value) for value in runs["best_rate"]]
    return found


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a small frame as plain values, None for blanks."""
    return [{name: plain_value(value) for name, value in row.items()} for row in row_dicts(frame)]


def plain_value(value: Any) -> Any:
    """Return a value that JSON knows."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, float, np.number)):
        return json_numbers([value])[0]
    return value_text(value)


def outcome_counts(payload: Mapping[str, Any]) -> dict[str, int]:
    """Count the runs of a page by how they ended, most frequent first."""
    found = payload["runs"]["outcome"]
    counts = np.bincount(np.asarray(found["codes"], dtype=np.intp), minlength=len(found["texts"]))
    return {found["texts"][k]: int(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}
