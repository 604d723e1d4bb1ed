"""Grids of runs: plan, run, tabulate. No Hydra here: the launcher is a thin face on it."""

from initlab.sweep.run import Sweep
from initlab.sweep.table import axes, cells, rewrite

__all__ = ["Sweep", "axes", "cells", "rewrite"]
