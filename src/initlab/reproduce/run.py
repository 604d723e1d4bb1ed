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
from initlab.report.svg import draw_cells, draw_layers
from initlab.report.write import write_report
from initlab.reproduce.judge import JudgedCriterion, headline, judge, overall_verdict
from initlab.reproduce.specification import Experiment, load_experiment
from initlab.sweep import sweep
from initlab.sweep.executors.process import keep_workers
from initlab.system.files import write_atomically
from initlab.system.resources import usable_cores

FIRST_SEED = 4000
"""First seed of those that are judged: nobody tuned anything on them (races choose rates on seeds from 1000)."""
FIGURE_HEADINGS = ("at the file's rate", "at each cell's own rate")
TUNING_SEEDS = {"quick": 2, "full": 3}
LOG_OVERRIDES = {"log.tensorboard": False, "log.histograms": 2}
"""A verdict needs layers at the start and at the end; `python train.py experiment=…` records as usual."""


@dataclass(frozen=True)
class Verdict:
    """What an experiment came to: `tuned` criteria and verdict are None where no rate was tuned."""

    experiment: Experiment
    mode: str
    headline: str
    untuned: str
    tuned: str | None
    criteria: list[JudgedCriterion]
    tuned_criteria: list[JudgedCriterion] | None
    rates: list[dict[str, Any]]
    seeds: list[int]
    runs: int
    seconds: float
    made: str
    directory: Path

    def record(self) -> dict[str, Any]:
        """Return what `verdict.json` holds."""
        about = self.experiment
        return {
            "name": about.name,
            "paper": about.paper,
            "question": about.question,
            "claim": about.claim,
            "printed": about.printed,
            "verdict": self.headline,
            "untuned": self.untuned,
            "tuned": self.tuned,
            "criteria": [j.row() for j in self.criteria],
            "tuned_criteria": None if self.tuned_criteria is None else [j.row() for j in self.tuned_criteria],
            "rates": self.rates,
            "remarks": about.remarks,
            "mode": self.mode,
            "seeds": self.seeds,
            "runs": self.runs,
            "seconds": round(self.seconds, 1),
            "date": self.made,
            "version": __version__,
        }


def reproduce(name: str, mode: str = "quick", root: str | Path = "outputs/reproduce", quiet: bool = False) -> Verdict:
    """Run one experiment, judge it, write `verdict.json` and `report.html` into `<root>/<name>-<mode>`.

    What was finished by an earlier call is not run again.

    Args:
        name: an experiment that `names()` lists.
        mode: `quick` (at least 6 seeds per cell) or `full` (at least 10).
        root: where directories of experiments lie.
        quiet: show no progress.

    Raises:
        UserError: there is no such experiment, or the directory cannot be written.
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
    with keep_workers():
        frames = [sweep({**shared, "sweep.name": "untuned"}, executor=pick_executor(), quiet=quiet)]
        rates: list[dict[str, Any]] = []
        if about.tune:
            how = {"race": True, "tune.rates": list(about.tune), "tune.seeds": TUNING_SEEDS[mode]}
            frames.append(sweep({**shared, **how, "sweep.name": "tuned"}, executor=pick_executor(), quiet=quiet))
            rates = chosen_rates(frames[1], about.axes)
    found = [judge(about, runs, load_layers(runs, layer_keys(about))) for runs in frames]
    verdicts = [overall_verdict(each) for each in found]
    verdict = Verdict(
        experiment=about,
        mode=mode,
        headline=headline(verdicts[0], verdicts[1] if about.tune else None),
        untuned=verdicts[0],
        tuned=verdicts[1] if about.tune else None,
        criteria=found[0],
        tuned_criteria=found[1] if about.tune else None,
        rates=rates,
        seeds=seeds,
        runs=sum(map(len, frames)),
        seconds=time.monotonic() - start,
        made=time.strftime("%Y-%m-%d"),
        directory=directory,
    )
    text = json.dumps(json_safe(verdict.record()), indent=1, ensure_ascii=False)
    write_atomically(directory / "verdict.json", text.encode())
    write_atomically(directory / "figure.svg", draw_figure(about, frames))
    sweeps = [directory / name for name in ("untuned", "tuned")[: len(frames)]]
    write_report(sweeps, directory, title=f"{about.name}, {mode}: {verdict.headline}")
    return verdict


def pick_executor() -> str:
    """Return how groups are computed: small ones are bound by Python, so a process on each core where there is no card.

    What is measured does not depend on it.
    """
    return "inline" if torch.cuda.is_available() or usable_cores() == 1 else "process"


def draw_figure(about: Experiment, frames: Sequence[pd.DataFrame]) -> bytes:
    """Draw what the first criterion speaks of: its metric run by run, or its statistic layer by layer."""
    first = next((c.arguments for c in about.criteria if {"metric", "stat"} & set(c.arguments)), {"metric": "loss"})
    if "metric" in first:
        return draw_cells(list(zip(FIGURE_HEADINGS, frames, strict=False)), first["metric"], about.axes)
    return draw_layers(load_layers(frames[0], layer_keys(about)), first["stat"], about.axes)


def layer_keys(about: Experiment) -> list[str]:
    """List the keys that rows of layers must carry to be judged."""
    return list(dict.fromkeys(["init", "act", "depth", "seed", *about.axes]))


def chosen_rates(runs: pd.DataFrame, axes: Sequence[str]) -> list[dict[str, Any]]:
    """Return of each cell its keys and the rate that the race found for it.

    >>> chosen_rates(pd.DataFrame({"init": "zeros", "optim.lr": [0.1, 0.1], "seed": [1, 2]}), ["init"])
    [{'init': 'zeros', 'optim.lr': 0.1}]
    """
    keys = [*(axis for axis in axes if axis != "optim.lr"), "optim.lr"]
    # A key that a cell has not, as init.q_star where another scheme is chosen, is none of its own.
    return [
        {str(key): value for key, value in row.items() if not pd.isna(value)}
        for row in runs[keys].drop_duplicates().to_dict("records")
    ]


def json_safe(value: Any) -> Any:
    """Write what JSON has no number for as text."""
    if isinstance(value, Mapping):
        return {key: json_safe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
