"""Rules over a measured network: which layers are at fault, why, and what would mend them."""

from initlab.diagnostics.rules.judge import judge
from initlab.report.findings.record import SEVERITIES, Verdict

__all__ = ["SEVERITIES", "Verdict", "judge"]
