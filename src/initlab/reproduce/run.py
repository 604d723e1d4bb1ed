"""Run an experiment on fresh seeds, with rates tuned beside it where schemes are compared, and judge it."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from initlab import __version__
from initlab.records import load, load_layers
from initlab.records.files import replace
from initlab.report import write_report
from initlab.reproduce.experiment import Experiment, experiment
from initlab.reproduce.judge import Judged, headline, judge, overall
from initlab.sweep import sweep

FRESH = 2000
"""First seed of those that are judged: nobody tuned anything on them (races choose rates on seeds from 1000)."""
TUNING_SEEDS = {"quick": 1, "full": 3}


@dataclass(frozen=True)
class Verdict:
    """What an experiment came to: `tuned` criteria and verdict are None where no rate was tuned."""

    experiment: Experiment
    mode: str
    headline: str
    untuned: str
    tuned: str | None
    criteria: list[Judged]
    tuned_criteria: list[Judged] | None
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
    about = experiment(name)
    directory = Path(root) / f"{name}-{mode}"
    seeds = list(range(FRESH, FRESH + about.seeds_in(mode)))
    shared = {"experiment": name, **about.overrides(mode), "sweep.root": str(directory.absolute())}
    sweep({**shared, "seed": seeds, "sweep.name": "untuned"}, quiet=quiet)
    parts = [directory / "untuned"]
    rates: list[dict[str, Any]] = []
    if about.tune:
        how = {"race": True, "tune.rates": list(about.tune), "tune.seeds": TUNING_SEEDS[mode]}
        sweep({**shared, **how, "seed": seeds, "sweep.name": "tuned"}, quiet=quiet)
        parts.append(directory / "tuned")
        rates = chosen_rates(compared(directory / "tuned", seeds), about.axes)
    found = [judged_at(about, part, seeds) for part in parts]
    verdicts = [overall(each) for each in found]
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
        runs=sum(len(load(part)) for part in parts),
        seconds=time.monotonic() - start,
        made=time.strftime("%Y-%m-%d"),
        directory=directory,
    )
    text = json.dumps(finite(verdict.record()), indent=1, ensure_ascii=False)
    replace(directory / "verdict.json", text.encode())
    write_report(parts, directory)
    return verdict


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


def compared(directory: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Return the runs that are judged: those of these seeds (an earlier call may have left others), no tuning ones."""
    runs = load(directory)
    return runs[runs["seed"].isin(seeds)]


def judged_at(about: Experiment, directory: Path, seeds: Sequence[int]) -> list[Judged]:
    """Judge the runs of one sweep: those of these seeds, for an earlier call may have left others."""
    runs = compared(directory, seeds)
    keys = list(dict.fromkeys(["init", "act", "depth", "seed", *about.axes]))
    return judge(about, runs, load_layers(runs, keys))


def finite(value: Any) -> Any:
    """Write what JSON has no number for as text."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
