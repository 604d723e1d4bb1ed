"""From runs to a verdict: every criterion on all seeds and on two disjoint halves of them.

Training amplifies the rounding of a machine, so that the same seeds end at other numbers on another one, as far apart
as other seeds would. A criterion is decided only where that would hardly reverse it; else it is undecided by design.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from initlab.reproduce.measures import MEASURES
from initlab.reproduce.selection import Frames
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
    """One criterion as measured.

    Attributes:
        criterion: as specified.
        value: on all seeds.
        halves: on each half of the seeds.
        problem: why it could not be measured.
    """

    criterion: Criterion
    value: float
    halves: tuple[float, float]
    problem: str = ""

    @property
    def verdict(self) -> str:
        """Holds or not where both halves agree and are clear of the bound, else undecided."""
        return decide(self.criterion, self.halves)

    def row(self) -> dict[str, Any]:
        """Return one row of `verdict.json`."""
        measured = {"value": self.value, "halves": list(self.halves), "verdict": self.verdict}
        return asdict(self.criterion) | measured | ({"problem": self.problem} if self.problem else {})


def judge(experiment: Experiment, frames: Frames) -> list[JudgedCriterion]:
    """Judge every criterion of an experiment on its runs and their layer rows."""
    first, second = split_seeds(sorted(int(seed) for seed in frames.runs["seed"].unique()))
    samples = (frames, frames.of_seeds(first), frames.of_seeds(second))
    judged = []
    for criterion in experiment.criteria:
        measure = MEASURES[criterion.measure]
        try:
            value, *halves = (float(measure(sample, **criterion.arguments)) for sample in samples)
            judged.append(JudgedCriterion(criterion, value, (halves[0], halves[1])))
        except ValueError as reason:  # runs that failed or were left out: the verdict reports it, and cannot hold
            judged.append(JudgedCriterion(criterion, math.nan, (math.nan, math.nan), str(reason)))
    return judged


def split_seeds(seeds: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide seeds into two disjoint halves, every other one.

    >>> split_seeds([1, 2, 3, 4, 5])
    ([1, 3, 5], [2, 4])
    """
    return list(seeds[::2]), list(seeds[1::2])


def decide(criterion: Criterion, halves: Sequence[float]) -> str:
    """Return whether a criterion holds: on both halves, and on what lies `CLEARANCE` of their distance beyond each.

    >>> from initlab.reproduce.specification import Criterion
    >>> below = Criterion("", "median", {}, None, 1.5, "")
    >>> decide(below, (1.0, 1.2)), decide(below, (1.7, 2.0)), decide(below, (1.0, 1.4)), decide(below, (1.4, 1.6))
    ('holds', 'does not hold', 'undecided', 'undecided')
    """
    low, high = min(halves), max(halves)
    clearance = CLEARANCE * (high - low) if high > low else 0.0
    beyond = [low - clearance, high + clearance] if math.isfinite(clearance) else []
    holding = [criterion.holds(value) for value in (*halves, *beyond)]
    return HOLDS if all(holding) else UNDECIDED if any(holding) else FAILS


def weakest_verdict(verdicts: Sequence[str]) -> str:
    """Return the verdict of an experiment: the weakest of its criteria's.

    Where no criterion fails on both halves but one differs between them, more seeds could decide either way.

    >>> weakest_verdict(["holds", "undecided"]), weakest_verdict(["undecided", "does not hold"])
    ('undecided', 'does not hold')
    """
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def headline(untuned: str, tuned: str | None) -> str:
    """Return the final verdict, where rates were tuned as well.

    >>> headline("holds", "does not hold"), headline("does not hold", "holds"), headline("holds", None)
    ('holds only at the untuned rate', 'holds', 'holds')
    """
    if tuned is None:
        return untuned
    return UNTUNED_ONLY if untuned == HOLDS and tuned == FAILS else tuned
