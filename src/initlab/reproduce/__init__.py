"""Reproduce the field: experiments with criteria fixed beforehand, run on fresh seeds, end in verdicts."""

from initlab.reproduce.judge import Judged, judge
from initlab.reproduce.run import Verdict, reproduce
from initlab.reproduce.specification import Criterion, Experiment, experiment, names

__all__ = ["Criterion", "Experiment", "Judged", "Verdict", "experiment", "judge", "names", "reproduce"]
