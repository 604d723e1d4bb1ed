"""What a whole grid costs by the real command line, beside the common way and beside loops written by hand.

    python scripts/bench.py sweep      # 160 networks, one epoch of Fashion-MNIST each; --quick: does it run?

In one run, taking turns: (a) `train.py -m` over 8 schemes × tanh, relu × 2 depths × 5 seeds with every record on, from
the start of the process to its end, by default (several processes: the grid is large) and in one process (`inline`);
(b) `common_app.py`, Hydra's basic launcher around torchvision's data set, a DataLoader and `add_histogram`, a few whole
jobs of the same grid, imports left out; (c) `bare_grid.py`, the same grid by loops with everything in memory and no
records, in two processes of one thread each, from their start to their end. All three test every network at the end.
They are given per network, for the mean over the grid's depths and activations.

Then the share of the machine's matrix-product rate that training reaches (`bench_share.py`), and where the rest goes.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bare_grid
import bare_loop
import bench_ensemble
import torch
from bench_share import processes, shares

from initlab.ensemble import stack
from initlab.ensemble.cpu import activations, loss, sequential
from initlab.training import TrainingPlan, train

HOME = Path(__file__).parent
SCHEMES = ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_normal", "orthogonal", "torch_default")
SCHEMES = (*SCHEMES, "normal_rule")
ACTS = ("tanh", "relu")
BARS = {"common loop": 20.0, "bare loop": 1.4}
TRAINING = "bare loop's training"
EXECUTORS = {"initlab": "auto", "initlab, inline": "inline"}
TRAINING_IMAGES = 60_000
KINDS = {
    "products": ("mm", "bmm", "addmm", "baddbmm"),
    "activations": ("tanh", "tanh_backward", "relu", "relu_", "tanh_", "threshold_backward", "clamp_min", "clamp_min_"),
    "update": ("_fused_sgd_",),
    "gradient norms": ("linalg_vector_norm", "_foreach_norm", "dot"),
    "loss and accuracy": (
        *("_log_softmax", "_log_softmax_backward_data", "nll_loss_forward", "nll_loss2d_forward", "exp", "add"),
        *("nll_loss2d_backward", "argmax", "mean", "eq", "stack", "one_hot"),
    ),
    "bias gradients": ("sum",),
    "batches and copies": ("copy_", "index_select", "clone", "mul_", "add_"),
}
# Functions that torch's profiler does not see where they are not torch's: of OpenBLAS, of numpy.
UNSEEN = [
    ("products", sequential, "gemm"),
    ("activations", activations, "tanh_"),
    ("loss and accuracy", loss.MemberLoss, "count_right"),
]


def ours(given: argparse.Namespace, folder: Path, *others: str) -> float:
    """Run the grid by the command line; return seconds per network, everything included."""
    grid = [f"init={','.join(given.schemes)}", f"act={','.join(ACTS)}", f"depth={','.join(map(str, given.depths))}"]
    grid += [f"seed=range({given.seeds})", f"width={given.width}", f"train.batch_size={given.batch}"]
    grid += [f"train.steps={given.steps}", "data=fashion_mnist", f"data.root={given.data_root}", "data.validation=0"]
    grid += [f"sweep.root={folder}", "sweep.name=grid", "optim=sgd", "device=cpu"]
    command = [sys.executable, str(HOME.parent / "train.py"), "-m", *grid, *others]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    ended = [json.loads(path.read_text())["status"] for path in (folder / "grid").glob("*/summary.json")]
    if done.returncode or len(ended) != networks(given) or not set(ended) <= {"completed", "diverged"}:
        raise SystemExit(f"the sweep failed:\n{done.stdout}\n{done.stderr}")
    shutil.rmtree(folder / "grid")
    return seconds / len(ended)


def networks(given: argparse.Namespace) -> int:
    return len(given.schemes) * len(ACTS) * len(given.depths) * given.seeds


def common(given: argparse.Namespace, root: Path, folder: Path) -> float:
    """Run one whole job for each depth and activation by Hydra's own launcher; return seconds per network."""
    axes = [f"depth={','.join(map(str, given.depths))}", f"act={','.join(ACTS)}"]
    facts = [f"root={root}", f"width={given.width}", f"batch={given.batch}", f"steps={given.steps}"]
    command = [sys.executable, str(HOME / "common_app.py"), "-m", *axes, *facts, f"hydra.sweep.dir={folder / 'common'}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("all ")]
    if done.returncode or not found:
        raise SystemExit(f"the common loop failed:\n{done.stdout}\n{done.stderr}")
    shutil.rmtree(folder / "common")
    return found[0] / len(given.depths) / len(ACTS)


def measured(given: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Let them take turns, there and back; return the seconds per network of every round."""
    import common_loop

    by_hand = argparse.Namespace(**vars(given), networks=networks(given), acts=ACTS, trial_steps=min(given.steps, 300))
    root = common_loop.unpacked(given.data_root, folder / "torchvision")
    update, tried = bare_grid.fastest_update(by_hand)
    trials = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in tried.items())
    print(f"bare loop: torch.optim.SGD, its {update} update, the faster one here ({trials})")
    taken: dict[str, list[float]] = {side: [] for side in (*EXECUTORS, *BARS, TRAINING)}

    def bare() -> float:
        seconds, training = bare_grid.run(by_hand, update)
        taken[TRAINING].append(max(training) / by_hand.networks)
        return seconds / by_hand.networks

    sides: dict[str, Callable[[], float]]
    sides = {side: partial(ours, given, folder, f"hydra.launcher.executor={EXECUTORS[side]}") for side in EXECUTORS}
    turns = {"bare loop": bare, **sides, "common loop": partial(common, given, root, folder)}
    for turn in range(given.rounds):
        for side in list(turns)[:: -1 if turn % 2 else 1]:
            taken[side].append(turns[side]())
    return taken


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print seconds per network and the ratios of each round."""
    with tempfile.TemporaryDirectory() as name:
        taken = measured(given, Path(name))
        unrecorded = ours(given, Path(name), "log.histograms=0", "log.every=1000000000", "log.tensorboard=false")
    print(f"seconds per network, {given.steps} steps each: median (smallest–largest) of {given.rounds} rounds")
    notes = dict.fromkeys(EXECUTORS, f"all {networks(given)} networks, start to end of the command, a test at the end")
    jobs = len(given.depths) * len(ACTS)
    notes["common loop"] = f"{jobs} whole jobs, Hydra's basic launcher and a test included, imports left out"
    notes["bare loop"] = f"all {networks(given)} networks, two processes of one thread, no records, a test at the end"
    notes[TRAINING] = "imports and the reading of the data left out"
    for side, seconds in taken.items():
        print(f"  {side:20} {spread(seconds)}   {notes[side]}")
    records = 1 - unrecorded / statistics.median(taken["initlab"])
    print(f"  without rows, histograms, TensorBoard {unrecorded:.3f}: records are {records:.0%} of the time")
    ratios = {
        f"{side} / {own}": [other / each for each, other in zip(taken[own], taken[side], strict=True)]
        for side in (*BARS, TRAINING)
        for own in EXECUTORS
    }
    for name, found in ratios.items():
        bar = BARS.get(name.split(" / ")[0])
        print(f"  {name}: {spread(found)}" + (f", bar {bar}: {verdict(found, bar)}" if bar else ""))
    return {"seconds": taken, "ratios": ratios, "unrecorded": unrecorded}


@dataclass
class Stopwatch:
    """A function that torch's profiler does not see, and the seconds that its calls took."""

    function: Callable[..., Any]
    seconds: float = 0.0

    def timed(self) -> Callable[..., Any]:
        """Return the function, its time noted."""

        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return self.function(*given, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def breakdown(given: argparse.Namespace, depth: int, act: str) -> dict[str, float]:
    """Print where a thread's time goes during training, by torch's profiler: shares of the whole."""
    from torch.profiler import ProfilerActivity, profile

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, count = bench_ensemble.make_data(given.batch), min(16, len(given.schemes) * given.seeds)
    ensemble = stack(bench_ensemble.make_networks(count, given.width, depth, act))
    plan = TrainingPlan(10, given.batch, "sgd", ({"lr": 0.01},) * count)
    beside = [(kind, place, name, Stopwatch(getattr(place, name))) for kind, place, name in UNSEEN]
    with ExitStack() as patches:
        for _, place, name, watch in beside:
            patches.enter_context(patch.object(place, name, watch.timed()))
        list(train(ensemble, data, plan))
        for *_, watch in beside:
            watch.seconds = 0.0
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            clock, _ = bench_ensemble.timed(lambda: list(train(ensemble, data, plan)))
    torch.set_num_threads(threads)
    own = {event.key.split("::")[-1]: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    found = {kind: sum(own.get(name, 0.0) for name in names) / clock for kind, names in KINDS.items()}
    for kind, _, _, watch in beside:
        found[kind] += watch.seconds / clock
    found["views, calls, Python"] = 1 - sum(found.values())
    print(f"depth {depth}, {act}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in found.items()))
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def verdict(values: Sequence[float], bar: float) -> str:
    return "met" if statistics.median(values) >= bar else "MISSED"


def arguments(sub: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sub.add_argument("--quick", action="store_true", help="8 networks and 30 steps, one round: does it run?")
    sub.add_argument("--schemes", nargs="+", default=list(SCHEMES))
    sub.add_argument("--depths", type=int, nargs="+", default=[3, 10])
    sub.add_argument("--seeds", type=int, default=5)
    sub.add_argument("--width", type=int, default=128)
    sub.add_argument("--widths", type=int, nargs="+", default=[128, 256], help="for the share of the machine's rate")
    sub.add_argument("--batch", type=int, default=128)
    sub.add_argument("--steps", type=int, help="default: one epoch")
    sub.add_argument("--engine-steps", type=int, default=32, help="steps whose rate is measured")
    sub.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096], help="of the square products")
    sub.add_argument("--rounds", type=int, default=3)
    sub.add_argument("--data-root", type=Path, default=bare_loop.DEBIAN, help="directory of Fashion-MNIST's idx files")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print as it goes."""
    if given.quick:
        given.schemes, given.seeds, given.rounds, given.engine_steps = given.schemes[:2], 1, 1, 4
        given.widths, given.sizes = given.widths[:1], given.sizes[:1]
    given.steps = given.steps or (30 if given.quick else TRAINING_IMAGES // given.batch)
    setting = f"{torch.get_num_threads()} threads, {networks(given)} networks of width {given.width}"
    print(f"torch {torch.__version__}, {setting}")
    found: dict[str, Any] = {"compared": compare(given)}
    with processes() as workers:
        found["shares"] = {width: shares(given, workers, width, ACTS) for width in given.widths}
    print("where the time of training goes, one thread, under the profiler:")
    found["breakdown"] = {f"{d} {act}": breakdown(given, d, act) for d in given.depths for act in ACTS}
    return found
