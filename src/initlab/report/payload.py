"""Everything a page shows, read from run directories a few at a time, so that a thousand runs fit into memory."""

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
from initlab.report.figures import FIGURES
from initlab.report.histograms import HistogramCollector, histogram_selection, select_rows
from initlab.report.layers import MAX_PAGE_NUMBERS, LayerCollector, is_dense, layer_arrays
from initlab.report.pairs import add_window_widths, cell_summaries, compare_schemes, comparison_metric, rate_windows
from initlab.report.study import (
    METRIC_PREFERENCE,
    Study,
    build_study,
    number_column,
    row_dicts,
    sorted_values,
    value_text,
)
from initlab.statistics.comparisons import MIN_SEEDS

MAX_SHOWN_DEPTH = 1e4  # the page shows larger ones as "any"
RUNS_PER_CHUNK = 50  # runs whose tables are in memory at once
NUMBER_COLUMNS = (*METRIC_PREFERENCE, "rate", "seconds", "steps", "first_bad_step", "trainable_depth")
TEXT_COLUMNS = ("name", "sweep", "scheme", "activation", "setting", "outcome", "path")


@dataclass(frozen=True)
class ReportData:
    """The data of a page.

    Attributes:
        payload: plain values, written into the page.
        study: the runs.
        metric: by which schemes are compared; None where no run has one.
    """

    payload: dict[str, Any]
    study: Study
    metric: str | None


def collect_report_data(paths: Sequence[Path]) -> ReportData:
    """Read all runs at or below `paths`.

    Raises:
        UserError: a path does not exist, or there is no run.
    """
    study = build_study(load(paths), paths)
    runs = study.runs
    if runs.empty and study.unread.empty:
        where = ", ".join(map(str, paths))
        raise UserError(
            f"There is no run in {where}: give a run's or a sweep's directory, such as outputs/sweeps/NAME."
        )
    metric = comparison_metric(runs)
    windows = rate_windows(runs)
    pairs = add_window_widths(compare_schemes(runs, metric), windows) if metric else pd.DataFrame({"n": []})
    enough = pairs["n"] >= MIN_SEEDS
    tables, unreadable = read_run_tables(runs)
    study = replace(study, unread=pd.concat([study.unread, unreadable], ignore_index=True))
    payload = {
        "runs": run_columns(runs),
        "metric": metric,
        "rates": study.rates,
        "twice": study.twice,
        "unread": plain_records(study.unread),
        "pairs": plain_records(pairs[enough]),
        "few": sorted(pairs.loc[~enough, "n"].astype(int).tolist()),
        "windows": plain_records(windows),
        "cells": plain_records(cell_summaries(runs, metric)),
        "figures": {name: figure.data(runs) for name, figure in FIGURES.items() if figure.data is not None},
        **tables,
    }
    return ReportData(payload, study, metric)


def read_run_tables(runs: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """Read the tables of all runs.

    Returns:
        The curves, layers, histograms and diagnoses of the page, and a frame (name, status, reason) of runs with
        unreadable tables.
    """
    unreadable: list[tuple[str, str, str]] = []
    asked = number_column(runs, "train.target_loss").dropna().tolist()
    curves = CurveCollector(target_losses(runs.loc[runs["status"] == "completed", "loss"].tolist(), asked))
    layers = LayerCollector(MAX_PAGE_NUMBERS // max(len(runs), 1))
    selection = histogram_selection(len(runs))
    histograms = HistogramCollector(selection)
    diagnoses: dict[int, str] = {}
    planned = expected_steps(runs)
    for start in range(0, len(runs), RUNS_PER_CHUNK):
        chunk = runs.iloc[start : start + RUNS_PER_CHUNK]
        frames = {
            "metrics.csv": load_metrics(chunk, keys=()),
            "layers.csv": load_layers(chunk, keys=()),
            "histograms.csv": load_histograms(chunk, keys=(), choose=lambda frame: select_rows(frame, selection)),
        }
        tables = {name: dict(list(frame.groupby("path", sort=False))) for name, frame in frames.items()}
        for number, row in enumerate(row_dicts(chunk), start=start):
            path, problems = row["path"], []
            metrics, rows, counted = (tables[name].get(path) for name in frames)
            for name, frame in frames.items():
                if lost := frame.attrs["lost"].get(path, 0):
                    problems.append(f"{lost} lines of {name} cannot be read")
            for name, table in (("metrics.csv", metrics), ("layers.csv", rows)):
                if table is None and (Path(path) / name).exists():
                    problems.append(f"no line of {name} can be read")
            problems = [] if row["problem"] else problems
            if metrics is not None:
                curves.add(number, metrics, planned[number])
            if rows is not None and not is_dense(rows):
                problems.append("the rows of layers.csv are not of the same layers at the same steps")
                rows = None
            arrays = None if rows is None else layer_arrays(rows)
            if arrays is not None:
                layers.add(number, arrays)
            if counted is not None:
                histograms.add(number, counted)
            if diagnosis := explain_run(row, arrays, losses_of(row, metrics)):
                diagnoses[number] = value_text(diagnosis)
            unreadable += [(row["name"], row["status"], problem) for problem in problems]
    collected = {"curves": curves.payload(), "layers": layers.payload(), "histograms": histograms.payload()}
    return {**collected, "diagnoses": diagnoses}, pd.DataFrame(unreadable, columns=["name", "status", "reason"])


def run_columns(runs: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of every run; those of texts as a list of distinct ones, and codes."""
    columns: dict[str, Any] = {"count": len(runs)}
    for name in (*TEXT_COLUMNS, "depth", "seed"):
        texts = runs[name].map(value_text)
        order = [value_text(value) for value in sorted_values(runs[name] if name in ("depth", "seed") else texts)]
        blank = "none" if name in ("depth", "seed") else ""
        codes = texts.map({text: place for place, text in enumerate(order)})
        columns[name] = {"texts": [text or blank for text in order], "codes": codes.tolist()}
    for name in NUMBER_COLUMNS:
        numbers = number_column(runs, name)
        if numbers.notna().any():
            # At criticality the trainable depth is infinite, and JSON has no infinity.
            columns[name] = json_numbers(numbers.clip(upper=MAX_SHOWN_DEPTH) if name == "trainable_depth" else numbers)
    columns["best_rate"] = [int(value) for value in runs["best_rate"]]
    return columns


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a small frame as plain values, None for blank numbers."""

    def plain_value(value: Any) -> Any:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        return json_numbers([value])[0] if isinstance(value, (int, float, np.number)) else value_text(value)

    return [{name: plain_value(value) for name, value in row.items()} for row in row_dicts(frame)]


def outcome_counts(payload: Mapping[str, Any]) -> dict[str, int]:
    """Count the runs of a page by how they ended, most frequent first."""
    outcomes = payload["runs"]["outcome"]
    counts = pd.Series(outcomes["codes"], dtype=int).value_counts(sort=False).sort_index()
    return {outcomes["texts"][k]: int(n) for k, n in counts.sort_values(ascending=False, kind="stable").items()}
