"""Measured rows in, plain sentences out: where the signal dies, which layers are at fault, what would mend it."""

from initlab.causes.record import SEVERITIES, Verdict
from initlab.verdicts.diagnose import diagnose
from initlab.verdicts.frame import DiagnosisFrame
from initlab.verdicts.judge import judge

__all__ = ["SEVERITIES", "DiagnosisFrame", "Verdict", "diagnose", "judge"]
