"""Reproduce the field: experiments with criteria fixed beforehand, run on fresh seeds, end in verdicts."""

from initlab.reproduce.judge import JudgedCriterion, judge
from initlab.reproduce.run import Verdict, reproduce
from initlab.reproduce.specification import Criterion, Experiment, experiment_names, load_experiment

__all__ = [
    "Criterion",
    "Experiment",
    "JudgedCriterion",
    "Verdict",
    "experiment_names",
    "judge",
    "load_experiment",
    "reproduce",
]
