"""Why a network does not train: one set of rules over rows per layer, for `diagnose`, `predict`, runs and the report.

Rules read plain numbers and names, and need no torch. A rule returns records of `Verdict`; bounds are the same wherever
the rows come from, measured or predicted.
"""

from initlab.report.findings.network import Network, Reading
from initlab.report.findings.record import SEVERITIES, Verdict
from initlab.report.findings.start import of_start
from initlab.report.findings.training import Losses, of_training

__all__ = ["SEVERITIES", "Losses", "Network", "Reading", "Verdict", "of_start", "of_training"]
