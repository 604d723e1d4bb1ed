"""How many networks fit: what one of them takes while it trains, memory and work."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.config import Config
from initlab.experiment.build import build_module, load_data, make_plan, pick_activation
from initlab.sweep.machine import GIB, SHARE, free_bytes
from initlab.training import OPTIMIZERS
from initlab.training.evaluation import EVAL_BATCH


@dataclass(frozen=True)
class Size:
    """What one network takes while it trains: bytes of memory; multiplications in all its steps; the steps."""

    bytes: float
    work: int
    steps: int


def network_bytes(config: Config) -> float:
    """Estimate the memory that one network of a group takes while it trains."""
    return network_size(config).bytes


def network_size(config: Config) -> Size:
    """Estimate what one network of a group takes while it trains, from its parameters and activations.

    Memory: weights, gradients, the optimizer's slots and one temporary of each; every layer's output for one batch,
    kept for the backward pass, and gradients of the two largest; the same two for a batch of evaluation. Work: what all
    layers multiply in a forward pass of every batch; the backward pass is about in proportion. Where the network cannot
    be run without data (a user's own model), its activations are taken to be as large as its parameters, each of which
    multiplies once.
    """
    data = load_data(config, torch.device("cpu"))
    batch = config.train.batch_size
    steps = make_plan([config], data, None).steps
    samples = batch * steps
    try:
        with torch.device("meta"):
            module = build_module(config, data, pick_activation(config))
    except (Exception, SystemExit):
        # A user's own model that cannot be built without memory, or at all: it runs alone, where a bug is recorded.
        return Size(math.inf, samples, steps)
    size = 8 if config.precision == "fp64" else 4
    weights = sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())
    copies = 3 + len(OPTIMIZERS[config.optim["name"]].slots)
    try:
        layers = run_layers(module, data.prepare(data.train_x[:2]))
    except (Exception, SystemExit):
        # A user's own model may do anything where its weights are not set; the estimate is only an estimate.
        layers = [(weights // batch + 1, weights)]
    outputs = [values for values, _ in layers]
    largest = sum(sorted(outputs)[-2:])
    needed = size * (copies * weights + batch * (sum(outputs) + largest) + EVAL_BATCH * largest)
    return Size(needed, samples * max(sum(products for _, products in layers), weights, 1), steps)


def run_layers(module: nn.Module, samples: Tensor) -> list[tuple[int, int]]:
    """Return how many values every leaf module puts out and how often it multiplies for that, for one sample.

    They are found by a pass with whatever is in memory: a value is a product with one row of the weights, if there are.

    On the meta device the pass would allocate nothing, but torch first loads its compiler for that: two seconds.
    """
    found: list[tuple[int, int]] = []

    def note(leaf: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            values, weight = output.numel() // len(samples), getattr(leaf, "weight", None)
            row = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            found.append((values, values * row))

    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # `to_empty` loads it, too
    for buffer in module.buffers():
        buffer.zero_()
    with hooked(module, note), torch.no_grad():
        module(samples)
    return found


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """Call a hook after every leaf module, for the while."""
    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def largest_group(config: Config, workers: int = 1, taken: float | None = None) -> int:
    """Return how many networks of this kind may train together, by `sweep.max_group`, `sweep.memory` and what is free.

    Arguments: `workers` that share the memory; `taken`, bytes of one of them where they have been estimated.
    """
    taken = network_bytes(config) if taken is None else taken
    budget = config.sweep.memory * GIB if config.sweep.memory else SHARE * free_bytes(config.device) / workers
    fits = max(int(budget // taken), 1)
    return min(fits, config.sweep.max_group) if config.sweep.max_group else fits
