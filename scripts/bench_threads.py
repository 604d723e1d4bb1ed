"""From which size on a lone network trains faster by two threads than by one.

    python scripts/bench.py threads

times steps of networks of growing size, by one thread and by several in turn, in one process; the fastest step counts,
for other programs only make a step longer. `multiplications` are those of a forward pass of one batch, by
which `threads=auto` decides (`initlab.sweep.threads`).
"""

import argparse
from pathlib import Path
from typing import Any

import torch

NETWORKS = {
    "mlp 64 × 3": ["depth=3", "width=64"],
    "mlp 128 × 5": ["depth=5", "width=128"],
    "mlp 128 × 20": ["depth=20", "width=128"],
    "mlp 256 × 5": ["depth=5", "width=256"],
    "mlp 512 × 5": ["depth=5", "width=512"],
    "mlp 1024 × 5": ["depth=5", "width=1024"],
    "mlp 2048 × 3": ["depth=3", "width=2048"],
    "cnn 4 × 3": ["model=cnn", "depth=3", "width=4"],
    "cnn 16 × 3": ["model=cnn", "depth=3", "width=16"],
    "resmlp 128 × 5": ["model=resmlp", "depth=5", "width=128"],
    "vit 32 × 2": ["model=vit", "depth=2", "width=32"],
    "gpt 32 × 2": ["model=gpt", "data=tiny_text", "depth=2", "width=32"],
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Say what may be chosen."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of every repeat, about")
    parser.add_argument("--only", default="", help="networks whose name begins so")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Time all networks, and print as it goes."""
    from initlab.config.compose import compose_config
    from initlab.sweep.cost import estimate_cost

    print(f"{'network':<16}{'multiplications':>16}{'1 thread':>12}{f'{given.threads} threads':>12}{'ratio':>8}")
    found = {}
    for name, overrides in NETWORKS.items():
        if not name.startswith(given.only):
            continue
        config = compose_config([*overrides, "device=cpu", "train.steps=1000000", "log.histograms=0", "log.every=10"])
        size = estimate_cost(config)
        best = {1: float("inf"), given.threads: float("inf")}
        for _ in range(given.repeats):
            for threads in best:
                best[threads] = min(best[threads], best_step(config, threads, given.seconds))
        ratio = best[given.threads] / best[1]
        found[name] = {"multiplications": size.work / size.steps, "best": best, "ratio": ratio}
        ms = "".join(f"{seconds * 1e3:>9.3f} ms" for seconds in best.values())
        print(f"{name:<16}{size.work / size.steps:>16.2e}{ms}{ratio:>8.2f}", flush=True)
    return found


def best_step(config: Any, threads: int, seconds: float) -> float:
    """Return the seconds of the fastest forward and backward pass, over about so many seconds."""
    from initlab.sweep.cells import Cell
    from initlab.sweep.dry_run import time_step

    torch.set_num_threads(threads)
    return time_step([Cell(0, config, Path(), "")], seconds, times=10**6)
