"""Time stacked training against a plain loop and the machine's own matrix products, side by side.

For every width, depth and number of networks: milliseconds per network and step of `initlab.training.train` on an
ensemble, of a hand-written loop over the same networks one by one (data in memory, nn.Module, torch.optim.SGD), and
the shares of torch.mm's and of the machine's best float32 matrix-product rate that the ensemble reaches, counting only
the products that training needs. All take turns, and medians over the rounds are shown, so that other work on the
machine weighs on all.

    python scripts/bench.py ensemble --width 32 64 128 256 --depth 3 10 --networks 16 160
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from initlab.data import Dataset
from initlab.ensemble import stack
from initlab.initialize import fill_
from initlab.models import build
from initlab.training import TrainingPlan, train

INPUTS, CLASSES = 784, 10


def make_data(batch: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (16 * batch, INPUTS), dtype=torch.uint8, generator=generator)
    y = torch.randint(CLASSES, (16 * batch,), generator=generator)
    return Dataset("random", x, y, x[:0], y[:0], x[:0], y[:0], CLASSES, (0.5,), (0.3,))


def make_networks(count: int, width: int, depth: int, act: str) -> list[nn.Module]:
    shape = {"depth": depth, "width": width, "act": act, "input_shape": (INPUTS,), "classes": CLASSES}
    networks = [build("mlp", **shape) for _ in range(count)]
    for seed, network in enumerate(networks):
        fill_(network, "glorot_normal", act=act, seed=seed)
    return networks


def needed_flops(width: int, depth: int, batch: int) -> int:
    """Count forward, weight-gradient and, but for the first layer, input-gradient products of one network's step."""
    return 2 * batch * (2 * INPUTS * width + 3 * (depth - 1) * width**2 + 3 * width * CLASSES)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock and of all cores' work."""
    clock, cores = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cores


def matmul_rates(sizes: Sequence[int] = (1024, 2048, 4096)) -> dict[str, float]:
    """Return the best rate of a square product over a few sizes, in operations per second, by library.

    torch.mm is not always the fastest at hand: on some processors oneDNN, beside it, is twice as fast.
    """
    products: dict[str, Callable[..., object]] = {"torch.mm": torch.mm}
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["oneDNN"] = lambda a, b: torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], "")
    best = dict.fromkeys(products, 0.0)
    for n in sizes:
        a, b = torch.randn(n, n), torch.randn(n, n)
        for _ in range(2 if n > 2048 else 5):
            for name, product in products.items():
                seconds, _ = timed(lambda a=a, b=b, product=product: product(a, b))
                best[name] = max(best[name], 2 * n**3 / seconds)
    return best


def plain_loop(networks: Sequence[nn.Module], data: Dataset, batch: int, steps: int) -> None:
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for step in range(steps):
            at = step % 16 * batch
            x = (data.train_x[at : at + batch].float() / 255 - 0.5) / 0.3
            loss = nn.functional.cross_entropy(network(x), data.train_y[at : at + batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()


def measure(width: int, depth: int, count: int, given: argparse.Namespace) -> str:
    data = make_data(given.batch)
    steps = max(2, min(given.steps, int(given.steps * 64 / count)))
    plan = TrainingPlan(steps, given.batch, given.optimizer, ({"lr": 0.01},) * count, log_every=given.log_every)
    ensemble = stack(make_networks(count, width, depth, given.act))
    few = make_networks(min(count, given.plain), width, depth, given.act)
    rounds: list[tuple[float, ...]] = []
    list(train(ensemble, data, plan))
    for _ in range(given.rounds):
        clock, cores = timed(lambda: list(train(ensemble, data, plan)))
        lone, lone_cores = timed(lambda: plain_loop(few, data, given.batch, steps))
        each, lone_each = 1e3 / count / steps, 1e3 / len(few) / steps
        rates = matmul_rates()
        peaks = rates["torch.mm"], max(rates.values())
        rounds.append((clock * each, lone * lone_each, cores * each, lone_cores * lone_each, *peaks))
    ours, lone, cores, lone_cores, mm, peak = (statistics.median(column) for column in zip(*rounds, strict=True))
    rate = needed_flops(width, depth, given.batch) / ours * 1e3
    return (
        f"{width:5} {depth:5} {count:8} {ours:9.3f} {lone:9.3f} {lone / ours:6.2f} "
        f"{cores:9.3f} {lone_cores:9.3f} {rate / 1e9:7.0f} {mm / 1e9:7.0f} {peak / 1e9:7.0f} "
        f"{rate / mm:5.2f} {rate / peak:5.2f}"
    )


def arguments(sub: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sub.add_argument("--width", type=int, nargs="+", default=[32, 64, 128, 256])
    sub.add_argument("--depth", type=int, nargs="+", default=[3, 10, 30])
    sub.add_argument("--networks", type=int, nargs="+", default=[10, 100])
    sub.add_argument("--plain", type=int, default=8, help="networks of the plain loop")
    sub.add_argument("--batch", type=int, default=128)
    sub.add_argument("--steps", type=int, default=16, help="fewer where there are more than 64 networks")
    sub.add_argument("--rounds", type=int, default=5)
    sub.add_argument("--act", default="tanh")
    sub.add_argument("--optimizer", default="sgd")
    sub.add_argument("--log-every", type=int, default=1)
    sub.add_argument("--threads", type=int, default=0, help="0: as torch decides")


def run(given: argparse.Namespace) -> list[str]:
    """Measure every size, and print as it goes."""
    if given.threads:
        torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms per network and step; cores: their time")
    print(
        "width depth networks  ensemble     plain  ratio     cores plain cores GFLOP/s      mm    best shares of both"
    )
    lines = []
    for width in given.width:
        for depth in given.depth:
            for count in given.networks:
                lines.append(measure(width, depth, count, given))
                print(lines[-1], flush=True)
    return lines
