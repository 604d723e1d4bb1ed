"""What records cost beside a loop written by hand.

    python scripts/bench.py overhead

trains an MLP for one epoch of Fashion-MNIST by `initlab.experiment.run` with every record on (default log settings)
and by `bare_loop.train`, alternately. Neither side evaluates on whole splits. The time per step is taken from the
first update to the end of the run, so on initlab's side it holds all that is written, `summary.json` included; on
neither side does it hold reading the data and building the network, which the line "whole run" adds for initlab.
"""

import argparse
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bare_loop
import torch

BARS = {3: 1.2, 20: 1.15}
PEAK_SIZES = (1024, 2048, 4096)


def training_set(folder: str) -> tuple[Any, Any]:
    """Return all of Fashion-MNIST's training images and, for `run` wants a test set, the first of them again."""
    images, labels = (bare_loop._bytes(Path(folder) / f"train-{k}-ubyte") for k in ("images-idx3", "labels-idx1"))
    x = torch.frombuffer(bytearray(images), dtype=torch.uint8, offset=16).view(-1, 28, 28)
    y = torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=8).long()
    return (x, y), (x[:1], y[:1])


def run_initlab(given: argparse.Namespace, depth: int, steps: int) -> dict[str, float]:
    """Train through the one door with its default records; return seconds of the steps and of the whole run."""
    from initlab import experiment
    from initlab.config import Config
    from initlab.config.schema import TrainConfig

    config = Config(
        init={"name": "glorot_uniform"},
        act={"name": "tanh"},
        data={
            "name": "custom",
            "target": "bench_overhead:training_set",
            "folder": str(given.data_root),
            "validation": 0.0,
        },
        optim={"name": "sgd", "lr": 0.01, "momentum": 0.9},
        depth=depth,
        width=given.width,
        train=TrainConfig(steps=steps, batch_size=given.batch),
        device="cpu",
        threads=given.threads,
    )
    marks: list[tuple[float, float]] = []

    def watch(_: dict[str, Any]) -> None:
        if not marks:  # the evaluation of step 0: everything is built, nothing trained
            marks.append(now())

    with tempfile.TemporaryDirectory() as folder:
        start = now()
        (summary,) = experiment.run([config], [Path(folder) / "run"], watch=watch)
        end = now()
        written = sum(path.stat().st_size for path in (Path(folder) / "run").iterdir())
    if summary["status"] != "completed":
        raise SystemExit(f"initlab's run is {summary['status']}: {summary.get('error')}")
    return {
        "seconds": end[0] - marks[0][0],
        "cpu_seconds": end[1] - marks[0][1],
        "whole_seconds": end[0] - start[0],
        "bytes": written,
        "loss": summary["loss"],
    }


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Compare, and print as it goes."""
    torch.set_num_threads(given.threads)
    x, y = bare_loop.read(given.data_root, "train")
    steps = given.steps or len(x) // given.batch
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {given.threads} threads")
    print(f"mlp of width {given.width}, batch {given.batch}, {steps} steps, {given.repeats} repeats; medians (min–max)")
    found: dict[str, Any] = {"threads": given.threads, "steps": steps, "depths": {}}
    for depth in given.depths:
        sides: dict[str, Callable[[int], dict[str, float]]] = {
            "bare loop": lambda n, depth=depth: bare_loop.train(
                x, y, depth=depth, width=given.width, batch=given.batch, steps=n
            ),
            "initlab": lambda n, depth=depth: run_initlab(given, depth, n),
        }
        found["depths"][depth] = compare(depth, sides, steps, given)
    if given.common_steps:
        found["common"] = common(given, found["depths"])
    found["peak_gflops"] = {size: matrix_peak(size) for size in PEAK_SIZES}
    print("fp32 matrix product:", ", ".join(f"{n}: {g:.0f} GFLOP/s" for n, g in found["peak_gflops"].items()))
    return found


def compare(depth: int, sides: dict[str, Callable], steps: int, given: argparse.Namespace) -> dict[str, Any]:
    """Run both sides alternately, first one then the other in front, and print the ratios."""
    for side in sides.values():
        side(min(steps, 30))  # imports, allocator, caches
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(given.repeats):
        for name in sorted(sides, reverse=repeat % 2 == 1):
            taken[name].append(sides[name](steps))
    pairs = list(zip(taken["initlab"], taken["bare loop"], strict=True))
    ratios = sorted(ours["seconds"] / bare["seconds"] for ours, bare in pairs)
    cpu = sorted(ours["cpu_seconds"] / bare["cpu_seconds"] for ours, bare in pairs)
    print(f"depth {depth}")
    for name, runs in taken.items():
        print(f"  {name:10} {spread([1e6 * r['seconds'] / steps for r in runs])} µs per step")
    whole = [1e6 * r["whole_seconds"] / steps for r in taken["initlab"]]
    print(f"  {'whole run':10} {spread(whole)} µs per step with building and opening the run")
    bar = BARS.get(depth)
    verdict = "" if bar is None else f", bar {bar}: {'met' if statistics.median(ratios) <= bar else 'MISSED'}"
    print(f"  ratio      {statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f}){verdict}")
    print(f"  CPU time   {statistics.median(cpu):.3f} ({cpu[0]:.3f}–{cpu[-1]:.3f})")
    return {"taken": taken, "ratios": ratios, "cpu_ratios": cpu}


def common(given: argparse.Namespace, depths: dict[int, Any]) -> dict[int, float]:
    """Time the common loop over fewer steps, and set its time per step beside the bare loop's."""
    import common_loop

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        root = common_loop.unpacked(given.data_root, Path(folder))
        for depth, measured in depths.items():
            n = given.common_steps
            options = {"depth": depth, "width": given.width, "batch": given.batch}
            common_loop.train(root, Path(folder) / f"warm{depth}", steps=3, records=2, **options)
            # Records scaled with the steps, so that a step carries as many of them as in a whole epoch.
            records = max(round(10 * n / measured["taken"]["bare loop"][0]["steps"]), 1)
            taken = common_loop.train(root, Path(folder) / f"logs{depth}", steps=n, records=records, **options)
            bare = statistics.median(r["seconds"] / r["steps"] for r in measured["taken"]["bare loop"])
            found[depth] = taken["seconds"] / n / bare
            print(
                f"common loop at depth {depth}: {1e6 * taken['seconds'] / n:.0f} µs per step over {n} steps "
                f"with {records} of 10 records, {found[depth]:.1f} bare loops"
            )
    return found


def matrix_peak(size: int) -> float:
    """Return the best rate of an fp32 matrix product of this size in GFLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = math.inf
    for _ in range(3 if size > 2048 else 8):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sub.add_argument("--depths", type=int, nargs="+", default=[3, 20], help="hidden layers")
    sub.add_argument("--width", type=int, default=128, help="units per hidden layer")
    sub.add_argument("--batch", type=int, default=128, help="samples per update")
    sub.add_argument("--steps", type=int, help="updates (default: one epoch)")
    sub.add_argument("--repeats", type=int, default=5, help="runs of each side")
    sub.add_argument("--threads", type=int, default=2, help="torch threads")
    sub.add_argument("--common-steps", type=int, default=60, help="updates of the common loop; 0: leave it out")
    sub.add_argument("--data-root", type=Path, default=bare_loop.DEBIAN, help="directory of Fashion-MNIST's idx files")
