"""What `initialize_` costs beside a bare torch.nn.init loop over the same parameters, and what an audit costs.

    python scripts/bench.py init
    python scripts/bench.py init --models billion        # 10⁹ parameters, memory too: run it alone

Each model is initialized alternately by `initialize_(model, "he_normal", measure=False)` and by a loop that calls
`torch.nn.init.kaiming_normal_` on the same weights, `ones_` and `zeros_` on the rest, as training scripts have it. One
thread. The ratio is that of process times (other processes on the machine do not count), the median over pairs with
its quartiles.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BAR = 1.1
AUDIT_SECONDS = 5.0
MEMORY = 1.2
MODELS = ("resnet50", "vit_l_16", "billion")
DEFAULT = ("resnet50", "vit_l_16")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pairs", type=int, default=15, help="alternating pairs (default 15)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT))
    parser.add_argument("--one", help=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every model in a separate process."""
    figures = []
    for name in given.models:
        code = f"import bench_init; bench_init.measure_model({name!r}, {given.pairs})"
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); {code}"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        figures.append(json.loads(out.splitlines()[-1]))
        print(summary_line(figures[-1]), flush=True)
    return figures


def summary_line(found: dict[str, Any]) -> str:
    """Return one model's figures as text."""
    if "memory" in found:
        return (
            f"{found['model']}: {found['parameters'] / 1e9:.2f}·10⁹ parameters in {found['seconds']:.1f} s; peak "
            f"memory {found['memory']:.2f} × the weights (bar {MEMORY}), {found['before']:.2f} before any was drawn"
        )
    low, middle, high = found["ratio"]
    return (
        f"{found['model']}: {found['parameters'] / 1e6:.0f}·10⁶ parameters; bare loop {found['bare']:.3f} s, "
        f"initialize_ {found['ours']:.3f} s of processor time; ratio {middle:.3f} [{low:.3f}, {high:.3f}] (bar {BAR}); "
        f"measured rows {found['rows']:.3f} s more; audit {found['audit']:.2f} s (bar {AUDIT_SECONDS:g} on ResNet-50)"
    )


def measure_model(name: str, pairs: int) -> None:
    """Measure one model and print its figures as a line of JSON."""
    import torch

    torch.set_num_threads(1)
    print(json.dumps(billion() if name == "billion" else compare_with_bare(name, pairs)))


def compare_with_bare(name: str, pairs: int) -> dict[str, Any]:
    """Time `initialize_` and the loop alternately, then rows and the audit."""
    import torch
    from torchvision import models

    import initlab

    with torch.device("meta"):
        net = models.get_model(name, weights=None)
    net.to_empty(device="cpu")
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # the pages are there before anything is timed

    def ours() -> None:
        initlab.initialize_(net, "he_normal", measure=False)

    timed(ours), timed(lambda: fill_bare(net))
    times = [(timed(lambda: fill_bare(net)), timed(ours)) for _ in range(pairs)]
    ours_and_rows = statistics.median(timed(lambda: initlab.initialize_(net, "he_normal")) for _ in range(3))
    audit = statistics.median(timed(lambda: initlab.audit(net, "he_normal")) for _ in range(3))
    low, middle, high = statistics.quantiles([ours / bare for bare, ours in times], n=4)
    loop, mine = (statistics.median(side) for side in zip(*times, strict=True))
    return {
        "model": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "bare": loop,
        "ours": mine,
        "ratio": [low, middle, high],
        "rows": ours_and_rows - mine,
        "audit": audit,
    }


def fill_bare(net: Any) -> None:
    """Initialize as a training script does: a loop over modules with torch.nn.init."""
    from torch import nn

    for module in net.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.dim() > 1:
                nn.init.kaiming_normal_(p)
            elif name == "weight":
                nn.init.ones_(p)
            else:
                nn.init.zeros_(p)


def timed(work: Callable[[], object]) -> float:
    """Return seconds of processor time."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def billion() -> dict[str, Any]:
    """Initialize a transformer of 10⁹ parameters from the meta device; memory at its peak over that of the weights."""
    import torch
    from torch import nn

    import initlab

    before = peak_memory()
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(2048, 16, 8192, batch_first=True)
        net = nn.ModuleDict(
            {
                "table": nn.Embedding(32000, 2048),
                "layers": nn.TransformerEncoder(layer, 19, enable_nested_tensor=False),
                "head": nn.Linear(2048, 128),
            }
        )
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    start = time.perf_counter()
    initlab.initialize_(net, "glorot_normal", device="cpu", measure=False)
    seconds = time.perf_counter() - start
    return {
        "model": "transformer",
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": seconds,
        "memory": peak_memory() / size,
        "before": before / size,
    }


def peak_memory() -> int:
    """Return the largest resident memory so far, in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
