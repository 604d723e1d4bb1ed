"""run(configs, directories): the one place where all rooms meet."""

from initlab.experiment.build import impossible
from initlab.experiment.run import run

__all__ = ["impossible", "run"]
