"""From runs to a verdict: every criterion on all seeds and on two disjoint halves of them.

Training amplifies the rounding of a machine, so that the same seeds end at other numbers on another one, as far apart
as other seeds would. A criterion is decided only where that would hardly turn it round; else it is undecided by design.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from initlab.reproduce.measures import MEASURES
from initlab.reproduce.specification import Criterion, Experiment

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
CLEARANCE = 0.5
"""How far from its bound a decided criterion's halves must lie, as a part of the distance between them.

With m their mean and e half their distance, which is the standard error of m, the bound lies outside m ± 2 e. A claim
whose m is the bound itself is decided in 30 % of cases, in 15 % either way (Student's t of one degree of freedom); that
two machines decide it in opposite ways takes both: 4 % of pairs, 12 % if halves only had to agree.
"""
UNTUNED_ONLY = "holds only at the untuned rate"


@dataclass(frozen=True)
class JudgedCriterion:
    """One criterion as measured: on all seeds and on each half; `problem` says why it could not be."""

    criterion: Criterion
    value: float
    halves: tuple[float, float]
    problem: str = ""

    @property
    def verdict(self) -> str:
        """Holds or not where both halves agree and are clear of the bound, else undecided."""
        return decide(self.criterion, self.halves)

    def row(self) -> dict[str, Any]:
        """Return it as one row of `verdict.json`."""
        about = asdict(self.criterion)
        return about | {"value": self.value, "halves": list(self.halves), "verdict": self.verdict} | self._problem()

    def _problem(self) -> dict[str, str]:
        return {"problem": self.problem} if self.problem else {}


def judge(experiment: Experiment, runs: pd.DataFrame, layers: pd.DataFrame) -> list[JudgedCriterion]:
    """Judge every criterion of an experiment on its runs and their layer rows."""
    first, second = split_seeds(sorted(int(seed) for seed in runs["seed"].unique()))
    return [_judge_criterion(criterion, runs, layers, first, second) for criterion in experiment.criteria]


def split_seeds(seeds: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cut seeds into two disjoint halves, every other one.

    >>> split_seeds([1, 2, 3, 4, 5])
    ([1, 3, 5], [2, 4])
    """
    return list(seeds[::2]), list(seeds[1::2])


def _judge_criterion(
    criterion: Criterion, runs: pd.DataFrame, layers: pd.DataFrame, first: Sequence[int], second: Sequence[int]
) -> JudgedCriterion:
    def measured(seeds: Sequence[int] | None) -> float:
        some, rows = (f if seeds is None else f[f["seed"].isin(seeds)] for f in (runs, layers))
        return float(MEASURES[criterion.measure](some, rows, **criterion.arguments))

    try:
        return JudgedCriterion(criterion, measured(None), (measured(first), measured(second)))
    except ValueError as reason:  # runs that failed or were left out: said in the verdict, which cannot hold
        return JudgedCriterion(criterion, math.nan, (math.nan, math.nan), str(reason))


def decide(criterion: Criterion, halves: Sequence[float]) -> str:
    """Say whether a criterion holds: on both halves, and on what lies `CLEARANCE` of their distance beyond each.

    >>> from initlab.reproduce.specification import Criterion
    >>> below = Criterion("", "median", {}, None, 1.5, "")
    >>> decide(below, (1.0, 1.2)), decide(below, (1.7, 2.0)), decide(below, (1.0, 1.4)), decide(below, (1.4, 1.6))
    ('holds', 'does not hold', 'undecided', 'undecided')
    """
    low, high = min(halves), max(halves)
    apart = CLEARANCE * (high - low) if high > low else 0.0
    beyond = [low - apart, high + apart] if math.isfinite(apart) else []
    return combine_halves([criterion.holds(value) for value in (*halves, *beyond)])


def combine_halves(holding: Sequence[bool]) -> str:
    """Say what halves that were judged apart say together.

    >>> combine_halves([True, True]), combine_halves([False, False]), combine_halves([True, False])
    ('holds', 'does not hold', 'undecided')
    """
    return HOLDS if all(holding) else UNDECIDED if any(holding) else FAILS


def overall_verdict(judged: Sequence[JudgedCriterion]) -> str:
    """Return the verdict of an experiment: its weakest criterion's.

    Where no criterion fails on both halves but one flips between them, more seeds could say either.
    """
    return weakest_verdict([each.verdict for each in judged])


def weakest_verdict(verdicts: Sequence[str]) -> str:
    """Return the weakest of several verdicts.

    >>> weakest_verdict(["holds", "undecided"]), weakest_verdict(["undecided", "does not hold"])
    ('undecided', 'does not hold')
    """
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def headline(untuned: str, tuned: str | None) -> str:
    """Return the last word, where rates were tuned as well.

    >>> headline("holds", "does not hold"), headline("does not hold", "holds"), headline("holds", None)
    ('holds only at the untuned rate', 'holds', 'holds')
    """
    if tuned is None:
        return untuned
    return UNTUNED_ONLY if untuned == HOLDS and tuned == FAILS else tuned
