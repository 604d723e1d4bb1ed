"""The loop over an ensemble, its optimizers and schedules: a generator that yields and logs nothing."""

from initlab.training.events import Evaluation, Event, Pause, Snapshot, State, Steps, Stopped, TrainingPlan
from initlab.training.loop import train
from initlab.training.optimizers import OPTIMIZERS, Optimizer
from initlab.training.schedules import SCHEDULES, log_spaced, rate_factor

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Evaluation",
    "Event",
    "Optimizer",
    "Pause",
    "Snapshot",
    "State",
    "Steps",
    "Stopped",
    "TrainingPlan",
    "log_spaced",
    "rate_factor",
    "train",
]
