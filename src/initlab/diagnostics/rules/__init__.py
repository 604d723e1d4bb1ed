"""Rules over a measured network: which layers are at fault, why, and what would mend them."""

from initlab.diagnostics.rules.judge import judge_network
from initlab.report.findings.record import SEVERITIES, Finding

__all__ = ["SEVERITIES", "Finding", "judge_network"]
