"""What the network measures: statistics per layer, by hooks that are always removed."""

from initlab.diagnostics.api import diagnose
from initlab.diagnostics.examine import INPUT, NETWORK, Diagnosis, examine, jacobians
from initlab.diagnostics.frame import DiagnosisFrame
from initlab.diagnostics.layer_recorder import HistogramKey, Row, Tape, first_bad_layers, taps
from initlab.diagnostics.stats import STATS, Stat
from initlab.diagnostics.trace.records import Call, Sum

__all__ = [
    "INPUT",
    "NETWORK",
    "STATS",
    "Call",
    "Diagnosis",
    "DiagnosisFrame",
    "HistogramKey",
    "Row",
    "Stat",
    "Sum",
    "Tape",
    "diagnose",
    "examine",
    "first_bad_layers",
    "jacobians",
    "taps",
]
