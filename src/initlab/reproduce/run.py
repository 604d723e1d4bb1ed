"""Run an experiment on fresh seeds, with rates tuned beside it where schemes are compared, and judge it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from initlab import __version__
from initlab.records import load_layers
from initlab.report.page import write_report
from initlab.report.svg import draw_cells, draw_layers
from initlab.reproduce.judge import headline, judge, weakest_verdict
from initlab.reproduce.selection import Frames
from initlab.reproduce.specification import Experiment, load_experiment
from initlab.sweep.api import sweep
from initlab.sweep.executors.process import keep_workers
from initlab.system.files import write_atomically
from initlab.system.resources import usable_cores

FIRST_SEED = 4000
"""Of the seeds that are judged, on which no rate was tuned (races choose rates on seeds from 1000)."""
FIGURE_HEADINGS = ("at the file's rate", "at each cell's own rate")
TUNING_SEEDS = {"quick": 2, "full": 3}
LOG_OVERRIDES = {"log.tensorboard": False, "log.histograms": 2}
"""A verdict needs layers at the start and at the end; `python train.py experiment=…` records as usual."""


@dataclass(frozen=True)
class Verdict:
    """The result of an experiment: what `verdict.json` holds, and the directory where it stands."""

    record: dict[str, Any]
    directory: Path


def reproduce(name: str, mode: str = "quick", root: str | Path = "outputs/reproduce", quiet: bool = False) -> Verdict:
    """Run one experiment, judge it, write `verdict.json` and `report.html` into `<root>/<name>-<mode>`.

    What was finished by an earlier call is not run again. An unknown name, or a directory that cannot be written, is a
    UserError.

    Args:
        name: an experiment that `experiment_names()` lists.
        mode: `quick` (at least 6 seeds per cell) or `full` (at least 10).
        root: where directories of experiments lie.
        quiet: show no progress.
    """
    start = time.monotonic()
    about = load_experiment(name)
    directory = Path(root) / f"{name}-{mode}"
    seeds = list(range(FIRST_SEED, FIRST_SEED + about.seeds_in(mode)))
    shared = {
        "experiment": name,
        **LOG_OVERRIDES,
        **about.overrides(mode),
        "sweep.root": str(directory.absolute()),
        "seed": seeds,
    }
    sweeps: dict[str, dict[str, Any]] = {"untuned": {}}
    if about.tune:
        sweeps["tuned"] = {"race": True, "tune.rates": list(about.tune), "tune.seeds": TUNING_SEEDS[mode]}
    with keep_workers():
        runs = {
            key: sweep({**shared, **own, "sweep.name": key}, executor=pick_executor(), quiet=quiet)
            for key, own in sweeps.items()
        }
    judged = {key: judge(about, Frames(frame, load_layers(frame, layer_keys(about)))) for key, frame in runs.items()}
    verdicts = {key: weakest_verdict([criterion.verdict for criterion in rows]) for key, rows in judged.items()}
    record = {
        "name": about.name,
        "paper": about.paper,
        "question": about.question,
        "claim": about.claim,
        "printed": about.printed,
        "verdict": headline(verdicts["untuned"], verdicts.get("tuned")),
        "untuned": verdicts["untuned"],
        "tuned": verdicts.get("tuned"),
        "criteria": [criterion.row() for criterion in judged["untuned"]],
        "tuned_criteria": [criterion.row() for criterion in judged["tuned"]] if about.tune else None,
        "rates": chosen_rates(runs["tuned"], about.axes) if about.tune else [],
        "remarks": about.remarks,
        "mode": mode,
        "seeds": seeds,
        "runs": sum(map(len, runs.values())),
        "seconds": round(time.monotonic() - start, 1),
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
    }
    text = json.dumps(json_safe(record), indent=1, ensure_ascii=False)
    write_atomically(directory / "verdict.json", text.encode())
    write_atomically(directory / "figure.svg", draw_figure(about, list(runs.values())))
    write_report([directory / key for key in runs], directory, title=f"{name}, {mode}: {record['verdict']}")
    return Verdict(record, directory)


def pick_executor() -> str:
    """Return the executor: a process on each core where there is no GPU, because Python bounds small groups.

    What is measured does not depend on it.
    """
    return "inline" if torch.cuda.is_available() or usable_cores() == 1 else "process"


def draw_figure(about: Experiment, frames: Sequence[pd.DataFrame]) -> bytes:
    """Draw what the first criterion is about, as SVG: its metric run by run, or its statistic layer by layer."""
    first = next((c.arguments for c in about.criteria if {"metric", "stat"} & set(c.arguments)), {"metric": "loss"})
    if "metric" in first:
        return draw_cells(list(zip(FIGURE_HEADINGS, frames, strict=False)), first["metric"], about.axes)
    return draw_layers(load_layers(frames[0], layer_keys(about)), first["stat"], about.axes)


def layer_keys(about: Experiment) -> list[str]:
    """Return the keys that rows of layers must carry to be judged."""
    return list(dict.fromkeys(["init", "act", "depth", "seed", *about.axes]))


def chosen_rates(runs: pd.DataFrame, axes: Sequence[str]) -> list[dict[str, Any]]:
    """Return of each cell its keys and the rate that the race chose for it.

    >>> chosen_rates(pd.DataFrame({"init": "zeros", "optim.lr": [0.1, 0.1], "seed": [1, 2]}), ["init"])
    [{'init': 'zeros', 'optim.lr': 0.1}]
    """
    keys = [*(axis for axis in axes if axis != "optim.lr"), "optim.lr"]
    # A key that a cell does not have, as init.q_star where another scheme is chosen, is left out.
    return [
        {str(key): value for key, value in row.items() if not pd.isna(value)}
        for row in runs[keys].drop_duplicates().to_dict("records")
    ]


def json_safe(value: Any) -> Any:
    """Return a value with the numbers that JSON does not have as text."""
    if isinstance(value, Mapping):
        return {key: json_safe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
