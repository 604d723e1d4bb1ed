"""What the network measures: statistics per layer, by hooks that are always removed."""

from initlab.diagnostics.api import diagnose
from initlab.diagnostics.examine import INPUT, NETWORK, Diagnosis, examine, jacobians
from initlab.diagnostics.frame import DiagnosisFrame
from initlab.diagnostics.layer_recorder import HistogramKey, LayerRecorder, Row, first_bad_layers, layer_probes
from initlab.diagnostics.stats import STATS, Stat
from initlab.diagnostics.trace.records import Call, StreamSum

__all__ = [
    "INPUT",
    "NETWORK",
    "STATS",
    "Call",
    "Diagnosis",
    "DiagnosisFrame",
    "HistogramKey",
    "LayerRecorder",
    "Row",
    "Stat",
    "StreamSum",
    "diagnose",
    "examine",
    "first_bad_layers",
    "jacobians",
    "layer_probes",
]
