"""What the network measures: statistics per layer, by hooks that are always removed."""

from initlab.diagnostics.stats import STATS, Stat
from initlab.diagnostics.tape import HistogramKey, Row, Tape, first_bad_layers, taps

__all__ = ["STATS", "HistogramKey", "Row", "Stat", "Tape", "first_bad_layers", "taps"]
