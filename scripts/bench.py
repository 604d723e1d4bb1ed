"""Benchmarks, each a subcommand: ratios measured side by side in one run, with their spread.

    python scripts/bench.py overhead

A subcommand is a row of `SUBCOMMANDS` and a module beside this one with `arguments(parser)`, which declares its
options, and `run(given)`, which measures, prints as it goes and returns all figures for `--json`.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

SUBCOMMANDS = {
    "overhead": "bench_overhead",
    "ensemble": "bench_ensemble",
    "report": "bench_report",
    "theory": "bench_theory",
    "sweep": "bench_sweep",
    "cells": "bench_cells",
    "forecast": "bench_forecast",
    "init": "bench_init",
    "waiting": "bench_waiting",
}


def main() -> None:
    """Run the chosen benchmark."""
    sys.path.insert(0, str(Path(__file__).parent))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, home in SUBCOMMANDS.items():
        module = import_module(home)
        sub = commands.add_parser(name, help=(module.__doc__ or "").split("\n")[0])
        module.arguments(sub)
        sub.add_argument("--json", type=Path, help="write all figures there")
        sub.set_defaults(run=module.run)
    given = parser.parse_args()
    figures = given.run(given)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1, default=str))


if __name__ == "__main__":
    main()
