"""run(configs, directories): the one place where all rooms meet."""

from initlab.experiment.build import impossible
from initlab.experiment.checkpoint import Unusable, forget, kept
from initlab.experiment.member import record_failure
from initlab.experiment.run import Keeping, run

__all__ = ["Keeping", "Unusable", "forget", "impossible", "kept", "record_failure", "run"]
