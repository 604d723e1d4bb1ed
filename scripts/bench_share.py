"""What share of the machine's matrix-product rate training reaches: products that training needs, per second.

Side by side in one run: one process with a thread for every core, as a small grid is trained; a process of one
thread for every core, as a large one is; and the best rate of a square product of 1,024 to 4,096 on all cores.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import bench_ensemble
import torch
from worker_processes import WorkerProcesses

from initlab.ensemble import stack
from initlab.training import TrainingPlan, train

BAR = 0.5
SERVE = "import bench_share, torch; torch.set_num_threads(1); bench_share.serve()"


class Training:
    """Some networks of one kind, on random data, trained for as many updates as `plan` says whenever it is called."""

    def __init__(self, width: int, depth: int, act: str, batch: int, count: int, steps: int):
        self.data = bench_ensemble.make_data(batch)
        self.plan = TrainingPlan(steps, batch, "sgd", ({"lr": 0.01},) * count)
        self.ensemble = stack(bench_ensemble.make_networks(count, width, depth, act))
        self.products = bench_ensemble.needed_flops(width, depth, batch) * count * steps
        list(train(self.ensemble, self.data, replace(self.plan, steps=2)))

    def __call__(self) -> None:
        """Train them."""
        list(train(self.ensemble, self.data, self.plan))


def serve() -> None:
    """Make what the next line says, or train what was made, and say so."""
    made = None
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        if message == "train":
            assert made is not None
            made()
        else:
            made = Training(**message)
        print(json.dumps("done"), flush=True)


@contextmanager
def processes() -> Iterator[WorkerProcesses]:
    workers = WorkerProcesses(SERVE, torch.get_num_threads())
    try:
        yield workers
    finally:
        workers.close()


def shares(
    given: argparse.Namespace, workers: WorkerProcesses, width: int, acts: Sequence[str]
) -> dict[str, list[float]]:
    """Print the share of the machine's rate that training reaches over the grid's depths, by either of its libraries.

    torch.mm is what a training in torch can reach. On some processors oneDNN's product, which torch keeps for itself,
    is twice as fast: the share of that is given as well.
    """
    each = max(len(given.schemes) * given.seeds // len(workers.processes), 2)
    networks = each * len(workers.processes)
    found: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        seconds, products = {"threads": 0.0, "processes": 0.0}, 0
        for depth in given.depths:
            for act in acts:
                kind: dict[str, Any] = {"width": width, "depth": depth, "act": act, "batch": given.batch}
                kind["steps"] = given.engine_steps
                workers.seconds(kind | {"count": each})
                here = Training(**kind, count=networks)
                seconds["threads"] += bench_ensemble.timed(here)[0]
                seconds["processes"] += workers.seconds("train")
                products += here.products
        rates = bench_ensemble.matmul_rates(given.sizes)
        for side, taken in seconds.items():
            found.setdefault(f"{side}, of torch.mm's rate", []).append(products / taken / rates["torch.mm"])
            found.setdefault(f"{side}, of the best library's rate", []).append(products / taken / max(rates.values()))
    every = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    rates = ", ".join(f"{products / taken / 1e9:.0f} by {side}" for side, taken in seconds.items())
    print(f"width {width}: GFLOP/s during training {rates}; square products {every}")
    for name, values in found.items():
        middle = statistics.median(values)
        print(f"  share, {name}: {middle:.3f} ({min(values):.3f}–{max(values):.3f}), bar {BAR}: ", end="")
        print("met" if middle >= BAR else "MISSED", flush=True)
    return found
