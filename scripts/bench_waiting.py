"""What bounded waiting of OpenMP's threads costs where the machine is idle, and gains where it is busy.

    python scripts/bench.py waiting

trains one network by the console's command, in turn with initlab's bound and with the library's own default; first on
the machine as it is, which should be idle, then beside as many busy processes as there are cores. Prints the median
seconds and CPU seconds of each, and the ratio bound / default.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

# The defaults of libgomp and libomp.
DEFAULT = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
COMMAND = [sys.executable, "-c", "import sys; from initlab.cli.main import main; sys.exit(main())", "train"]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind")
    parser.add_argument("--busy-rounds", type=int, default=2, help="runs of each kind beside busy processes")
    parser.add_argument("overrides", nargs="*", default=["init=glorot_uniform", "act=tanh", "train.steps=300"])


def timed(overrides: list[str], setting: dict[str, str]) -> tuple[float, float]:
    """Return seconds and CPU seconds of one run."""
    environment = {key: value for key, value in os.environ.items() if key not in DEFAULT} | setting
    with tempfile.TemporaryDirectory() as place:
        before, began = os.times(), time.perf_counter()
        subprocess.run(
            [*COMMAND, *overrides, f"hydra.run.dir={place}/run"], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu


def spin() -> None:
    while True:
        pass


def compared(overrides: list[str], rounds: int) -> dict[str, float]:
    """Run both kinds in turn and return the medians."""
    found: dict[str, list[tuple[float, float]]] = {"bound": [], "default": []}
    for _ in range(rounds):
        found["bound"].append(timed(overrides, {}))
        found["default"].append(timed(overrides, DEFAULT))
    medians = {}
    for name, runs in found.items():
        for k, unit in enumerate(("seconds", "cpu")):
            medians[f"{name} {unit}"] = statistics.median(run[k] for run in runs)
    for unit in ("seconds", "cpu"):
        medians[f"ratio {unit}"] = medians[f"bound {unit}"] / medians[f"default {unit}"]
    return medians


def run(given: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"idle": compared(given.overrides, given.rounds)}
    print("idle:", {name: round(value, 3) for name, value in figures["idle"].items()}, flush=True)
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others:
        other.start()
    try:
        figures["busy"] = compared(given.overrides, given.busy_rounds)
    finally:
        for other in others:
            other.kill()
    print("busy:", {name: round(value, 3) for name, value in figures["busy"].items()})
    return figures
