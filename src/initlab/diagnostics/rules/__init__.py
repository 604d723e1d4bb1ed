"""Rules over a measured network: which layers are at fault, why, and a remedy for each."""

from initlab.diagnostics.rules.judge import judge_network

__all__ = ["judge_network"]
