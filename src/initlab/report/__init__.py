"""Tidy frames -> one self-contained page, tables for papers, and the sweep's own run in TensorBoard; no torch."""

from typing import Any

_MODULES = {
    "write_report": "write",
    "say_report": "say",
    "say_table": "say",
    "write_sweep_run": "tensorboard",
    "draw_cells": "figure",
    "draw_layers": "figure",
    "write_phases": "phases",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    # What draws for TensorBoard needs no plotly, and the other way round: each loads its own library alone.
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"initlab.report.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'initlab.report' has no attribute {name!r}")
