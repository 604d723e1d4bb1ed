"""run(configs, directories): the one place where all rooms meet."""

from initlab.experiment.build import impossible
from initlab.experiment.checkpoint import Unusable
from initlab.experiment.member import record_failure
from initlab.experiment.run import Keeping, run

__all__ = ["Keeping", "Unusable", "impossible", "record_failure", "run"]
