"""What a network measures: statistics of every layer on one batch, and what is wrong with them."""

from initlab.diagnostics.api import diagnose
from initlab.diagnostics.examine import Diagnosis, examine, jacobians
from initlab.diagnostics.frame import DiagnosisFrame
from initlab.diagnostics.layer_recorder import HistogramKey, LayerRecorder, first_bad_layers, layer_probes
from initlab.diagnostics.stats import STATS, Stat
from initlab.diagnostics.trace.records import Call

__all__ = [
    "STATS",
    "Call",
    "Diagnosis",
    "DiagnosisFrame",
    "HistogramKey",
    "LayerRecorder",
    "Stat",
    "diagnose",
    "examine",
    "first_bad_layers",
    "jacobians",
    "layer_probes",
]
