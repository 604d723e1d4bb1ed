"""Why a network does not train: one set of rules over rows per layer, for `diagnose`, `predict`, runs and the report.

Rules read plain numbers and names, and need no torch. A rule returns `Finding`s; its bounds are the same for measured
and predicted rows.
"""

from initlab.report.findings.network import LayerStats, NetworkInfo
from initlab.report.findings.record import SEVERITIES, Finding
from initlab.report.findings.start import find_start_causes
from initlab.report.findings.training import LoggedLosses, find_training_causes

__all__ = [
    "SEVERITIES",
    "Finding",
    "LayerStats",
    "LoggedLosses",
    "NetworkInfo",
    "find_start_causes",
    "find_training_causes",
]
