"""`run(configs, directories)`: train networks of one architecture together and record each; all rooms meet here."""

from initlab.experiment.build import config_refusal
from initlab.experiment.run import Checkpointing, run

__all__ = ["Checkpointing", "config_refusal", "run"]
