"""Tidy frames -> one self-contained page, tables for papers, and the sweep's own run in TensorBoard; no torch."""

from importlib import import_module
from typing import Any

_MODULES = {
    "write_report": "page",
    "FIGURES": "figures",
    "ReportFigure": "figures",
    "write_sweep_run": "tensorboard",
    "draw_cells": "svg",
    "draw_layers": "svg",
    "write_phases": "phases",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    # Only the page needs plotly, only images need matplotlib: each is imported at its first use.
    if name in _MODULES:
        return getattr(import_module(f"initlab.report.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'initlab.report' has no attribute {name!r}")
