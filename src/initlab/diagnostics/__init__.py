"""What the network measures: statistics per layer, by hooks that are always removed."""

from initlab.diagnostics.calls import Call, Sum
from initlab.diagnostics.diagnose import INPUT, NETWORK, Diagnosis, examine, jacobians
from initlab.diagnostics.stats import STATS, Stat
from initlab.diagnostics.tape import HistogramKey, Row, Tape, first_bad_layers, taps

__all__ = [
    "INPUT",
    "NETWORK",
    "STATS",
    "Call",
    "Diagnosis",
    "HistogramKey",
    "Row",
    "Stat",
    "Sum",
    "Tape",
    "examine",
    "first_bad_layers",
    "jacobians",
    "taps",
]
