"""run(configs, directories): the one place where all rooms meet."""

from initlab.experiment.build import impossible
from initlab.experiment.checkpoint import Unusable, forget, kept
from initlab.experiment.run import Keeping, run
from initlab.experiment.run_recorder import record_failure

__all__ = ["Keeping", "Unusable", "forget", "impossible", "kept", "record_failure", "run"]
