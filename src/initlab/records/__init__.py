"""The run directory: its writer and its reader, so that the format is known once."""

# writing a run
# facts and tables
from initlab.records.columns import LayerRow, flatten, write_sweep
from initlab.records.environment import describe_environment

# TensorBoard alone (the run of a whole sweep)
from initlab.records.event_file import EventFile

# reading runs
from initlab.records.reader import load, load_histograms, load_layers, load_metrics, read_run, run_directories, tabulate
from initlab.records.writer import RunWriter

__all__ = [
    "EventFile",
    "LayerRow",
    "RunWriter",
    "describe_environment",
    "flatten",
    "load",
    "load_histograms",
    "load_layers",
    "load_metrics",
    "read_run",
    "run_directories",
    "tabulate",
    "write_sweep",
]
