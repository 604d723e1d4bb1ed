"""The yardstick: an MLP on Fashion-MNIST as one writes it by hand, with torch.optim and without any records.

    python scripts/bare_loop.py --depth 3 --epochs 1

Images are read once, normalized once and kept in memory as floats; a batch is one indexing operation. Nothing is
measured while it trains but the time. It imports nothing of initlab.
"""

import argparse
import gzip
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MEAN, STD = 0.2860, 0.3530


def read(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read images [n, 784] as normalized floats, and labels [n], from idx files, gzipped or not."""
    images, labels = (_bytes(root / f"{split}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    x = torch.from_numpy(np.frombuffer(images, np.uint8, offset=16).copy()).view(-1, 784)
    y = torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy()).long()
    return x.float().div_(255).sub_(MEAN).div_(STD), y


def network(depth: int, width: int, act: str = "tanh") -> nn.Module:
    """Build `depth` hidden layers and a readout, Glorot-uniform weights and zero biases."""
    sizes = [784, *[width] * depth, 10]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU() if act == "relu" else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def train(
    x: Tensor,
    y: Tensor,
    *,
    depth: int,
    width: int,
    batch: int,
    steps: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    act: str = "tanh",
    fused: bool = False,
    test: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Any]:
    """Train for `steps` updates; return wall and CPU seconds of the loop, and the final loss.

    `fused` takes torch's update in one kernel, which is not what SGD does on a CPU unless it is asked to;
    `test` is a set of images and labels whose accuracy is measured at the end.
    """
    net = network(depth, width, act)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, fused=fused)
    wall, cpu = time.perf_counter(), time.process_time()
    per_epoch = len(x) // batch
    done = 0
    while done < steps:
        order = torch.randperm(len(x))
        for k in range(min(per_epoch, steps - done)):
            index = order[k * batch : (k + 1) * batch]
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    if test is not None:
        with torch.no_grad():
            (net(test[0]).argmax(1) == test[1]).float().mean().item()
    return {
        "steps": steps,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "loss": loss.item(),
    }


def _bytes(path: Path) -> bytes:
    packed = path.with_name(path.name + ".gz")
    return path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=3, help="hidden layers")
    parser.add_argument("--width", type=int, default=128, help="units per hidden layer")
    parser.add_argument("--batch", type=int, default=128, help="samples per update")
    parser.add_argument("--epochs", type=float, default=1, help="passes over the training set")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of SGD with momentum 0.9")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the batches")
    parser.add_argument("--data-root", type=Path, default=DEBIAN, help="directory of the idx files, gzipped or not")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    images, labels = read(given.data_root, "train")
    updates = max(math.ceil(given.epochs * (len(images) // given.batch)), 1)
    result = train(images, labels, depth=given.depth, width=given.width, batch=given.batch, steps=updates, lr=given.lr)
    print(f"{updates} updates in {result['seconds']:.2f} s, {1e6 * result['seconds'] / updates:.0f} µs each")
