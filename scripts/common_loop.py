"""The common way: an MLP on Fashion-MNIST with torchvision's data set, a DataLoader and TensorBoard's SummaryWriter.

    python scripts/common_loop.py --depth 3 --steps 100

Every step writes loss, accuracy, rate and gradient norm with `add_scalar`; at a few log-spaced steps `add_histogram`
writes every weight, gradient and activation. It imports nothing of initlab.
"""

import argparse
import gzip
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision import datasets, transforms

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530


def unpacked(source: Path, target: Path) -> Path:
    """Copy the idx files, decompressed, to where torchvision looks for them, and return its root."""
    raw = target / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{split}-{kind}-ubyte"
            packed = source / f"{name}.gz"
            content = gzip.decompress(packed.read_bytes()) if packed.exists() else (source / name).read_bytes()
            (raw / name).write_bytes(content)
    return target


def network(depth: int, width: int, act: str = "tanh") -> nn.Sequential:
    """Build `depth` hidden layers and a readout, Glorot-uniform weights and zero biases."""
    sizes = [784, *[width] * depth, 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU() if act == "relu" else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def kept_forward(net: nn.Sequential, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs and every module's output on the way, caught by hooks."""
    caught: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda m, args, out: caught.append(out.detach())) for module in net]
    logits = net(x)
    for hook in hooks:
        hook.remove()
    return logits, caught


def train(
    root: Path,
    logs: Path,
    *,
    depth: int,
    width: int,
    batch: int,
    steps: int,
    records: int = 10,
    workers: int = 0,
    lr: float = 0.01,
    momentum: float = 0.9,
    act: str = "tanh",
    test: bool = False,
) -> dict[str, Any]:
    """Train for `steps` updates, and `test` the network at the end; return wall and CPU seconds, and the final loss."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    data = datasets.FashionMNIST(str(root), train=True, transform=transform, download=False)
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)
    net = network(depth, width, act)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    recorded = {0, *(round(steps ** (k / max(records - 2, 1))) for k in range(records - 1))}
    wall, cpu = time.perf_counter(), time.process_time()
    with SummaryWriter(str(logs)) as writer:
        done = 0
        while done < steps:
            for x, y in loader:
                logits, activations = kept_forward(net, x) if done in recorded else (net(x), [])
                loss = nn.functional.cross_entropy(logits, y)
                optimizer.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(net.parameters(), math.inf)
                writer.add_scalar("train/loss", loss.item(), done)
                writer.add_scalar("train/accuracy", (logits.argmax(1) == y).float().mean().item(), done)
                writer.add_scalar("train/lr", optimizer.param_groups[0]["lr"], done)
                writer.add_scalar("train/grad_norm", norm.item(), done)
                if done in recorded:
                    for name, parameter in net.named_parameters():
                        if parameter.dim() > 1:
                            writer.add_histogram(f"weight/{name}", parameter, done)
                            writer.add_histogram(f"gradient/{name}", parameter.grad, done)
                    for k, activation in enumerate(activations):
                        writer.add_histogram(f"activation/{k}", activation, done)
                optimizer.step()
                done += 1
                if done == steps:
                    break
        if test:
            writer.add_scalar("test/accuracy", tested(net, root, transform, workers), done)
    return {
        "steps": steps,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "loss": loss.item(),
    }


def tested(net: nn.Module, root: Path, transform: Any, workers: int) -> float:
    """Return the fraction of the test set that a network gets right."""
    data = datasets.FashionMNIST(str(root), train=False, transform=transform, download=False)
    right = 0
    net.eval()
    with torch.no_grad():
        for x, y in DataLoader(data, batch_size=1000, num_workers=workers):
            right += int((net(x).argmax(1) == y).sum())
    return right / len(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3, help="hidden layers")
    parser.add_argument("--width", type=int, default=128, help="units per hidden layer")
    parser.add_argument("--batch", type=int, default=128, help="samples per update")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the training set")
    parser.add_argument("--steps", type=int, help="updates; wins over epochs")
    parser.add_argument("--records", type=int, default=10, help="log-spaced steps with histograms")
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of SGD with momentum 0.9")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the batches")
    parser.add_argument("--data-root", type=Path, default=DEBIAN, help="directory of the idx files, gzipped or not")
    parser.add_argument("--logs", type=Path, help="where the event files go (default: a temporary directory)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    updates = given.steps or max(math.ceil(given.epochs * (60_000 // given.batch)), 1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            unpacked(given.data_root, Path(folder)),
            given.logs or Path(folder) / "logs",
            depth=given.depth,
            width=given.width,
            batch=given.batch,
            steps=updates,
            records=given.records,
            workers=given.workers,
            lr=given.lr,
        )
    print(f"{updates} updates in {result['seconds']:.2f} s, {1e6 * result['seconds'] / updates:.0f} µs each")
