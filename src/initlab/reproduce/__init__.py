"""Reproduce the field: experiments with criteria fixed beforehand, run on fresh seeds, end in verdicts."""

from initlab.reproduce.experiment import Criterion, Experiment, experiment, names
from initlab.reproduce.judge import Judged, judge
from initlab.reproduce.run import Verdict, reproduce

__all__ = ["Criterion", "Experiment", "Judged", "Verdict", "experiment", "judge", "names", "reproduce"]
