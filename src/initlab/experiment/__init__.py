"""run(configs, directories): the one place where all rooms meet."""

from initlab.experiment.build import config_refusal
from initlab.experiment.checkpoint import UnusableCheckpoint, existing_checkpoints, remove_checkpoints
from initlab.experiment.run import Checkpointing, run
from initlab.experiment.run_recorder import record_failure

__all__ = [
    "Checkpointing",
    "UnusableCheckpoint",
    "config_refusal",
    "existing_checkpoints",
    "record_failure",
    "remove_checkpoints",
    "run",
]
