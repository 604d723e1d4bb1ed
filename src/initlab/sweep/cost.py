"""How many networks fit: what one of them takes while it trains, memory and work."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.config import Config
from initlab.config.checks import command_line_text
from initlab.errors import UserError
from initlab.experiment.build import build_activation, build_module, load_data, make_plan
from initlab.system.resources import GIB, MEMORY_SHARE, free_bytes
from initlab.training import OPTIMIZERS
from initlab.training.evaluation import EVAL_BATCH

FLOPS_PER_MULTIPLICATION = 6  # operations for a multiplication forward: it and its sum, twice that backward
META_DEVICE_BYTES = 2**26  # bytes of parameters and buffers from which on a network is followed without allocating it


@dataclass(frozen=True)
class NetworkCost:
    """What one network takes while it trains: bytes of memory; multiplications in all its steps; the steps.

    `bytes` includes temporaries and decides how many networks fit; `least` is what no network trains without, and
    decides whether one can train at all. A network whose size cannot be known has infinite `bytes` and `least` 0.
    """

    bytes: float
    work: int
    steps: int
    least: float = 0.0


def network_bytes(config: Config) -> float:
    """Estimate the memory that one network of a group takes while it trains."""
    return estimate_cost(config).bytes


def estimate_cost(config: Config, call_own: bool = True) -> NetworkCost:
    """Estimate what one network of a group takes while it trains, from its parameters and activations.

    Memory: weights, gradients, the optimizer's slots and one temporary of each; every layer's output for one batch,
    kept for the backward pass, and gradients of the two largest; the same two for a batch of evaluation. The least that
    it needs: weights, gradients, slots and half of the outputs, for some layers keep their input alone. Work: what all
    layers multiply in a forward pass of every batch; the backward pass is about in proportion. Where the network cannot
    be run without data (a user's own model), its activations are taken to be as large as its parameters, each of which
    multiplies once.

    Arguments: `call_own`: whether the forward pass of a user's own model may be called for it.
    """
    data = load_data(config, torch.device("cpu"))
    batch = config.train.batch_size
    steps = make_plan([config], data, None).steps
    samples = batch * steps
    try:
        with torch.device("meta"):
            module = build_module(config, data, build_activation(config))
    except (Exception, SystemExit):
        # A user's own model that cannot be built without memory, or at all: it runs alone, where a bug is recorded.
        return NetworkCost(math.inf, samples, steps)
    size = 8 if config.precision == "fp64" else 4
    weights = sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in module.buffers())
    copies = 3 + len(OPTIMIZERS[config.optim["name"]].slots)
    layers = [(weights // batch + 1, weights)]  # where the layers cannot be seen
    if call_own or config.model["name"] != "custom":
        # A user's own model may do anything where its weights are not set; the estimate is only an estimate.
        with suppress(Exception, SystemExit):
            layers = measure_layers(module, data.prepare(data.train_x[:2]), large=weights * 4 > META_DEVICE_BYTES)
    outputs = [values for values, _ in layers]
    largest = sum(sorted(outputs)[-2:])
    needed = size * (copies * weights + batch * (sum(outputs) + largest) + EVAL_BATCH * largest)
    least = size * ((copies - 1) * weights + batch * sum(outputs) / 2)
    return NetworkCost(needed, samples * max(sum(products for _, products in layers), weights, 1), steps, least)


def estimate_single_run(config: Config) -> NetworkCost:
    """Estimate what a single run takes; nothing calls a user's own model before the run itself does."""
    return estimate_cost(config, call_own=False)


def require_memory(
    cells: Iterable[Config], sizes: Callable[[Config], NetworkCost] = estimate_cost, at_a_time: int = 1
) -> None:
    """Raise UserError for a network that cannot train in the memory that is free; none is built to find out.

    Where the user says how much a group may take (`sweep.memory`), that is believed to be free.

    Arguments: `cells`, the configurations; `sizes`, what a network of each takes; `at_a_time`, how many processes
    train one and share the memory.
    """
    free: dict[str, float] = {}
    for config in cells:
        if config.device not in free:
            free[config.device] = free_bytes(config.device)
        there = config.sweep.memory * GIB if config.sweep.memory else free[config.device]
        needed = sizes(config).least
        if needed > there:
            raise UserError(too_large_message(config, needed, there))
        if needed * at_a_time > there and not config.sweep.memory:
            raise UserError(
                f"hydra.launcher.workers={at_a_time} train {at_a_time} networks at a time, of which one needs "
                f"{needed / GIB:.2f} GiB ({describe_shape(config)}), and {there / GIB:.2f} GiB are free: "
                f"say hydra.launcher.workers={int(there // needed)}."
            )


def too_large_message(config: Config, needed: float, there: float) -> str:
    """Say how much memory one network needs and how much is free, and what to change."""
    granted = "sweep.memory allows" if config.sweep.memory else "are free"
    free = f"{granted} {there / GIB:.2f} GiB" if config.sweep.memory else f"{there / GIB:.2f} GiB {granted}"
    return (
        f"{describe_shape(config)}: one network needs {needed / GIB:.2f} GiB to train with optim={config.optim['name']} and "
        f"train.batch_size={config.train.batch_size}, and {free}: choose a smaller one, "
        f"or say sweep.memory={math.ceil(needed / GIB)} if that much is free."
    )


def describe_shape(config: Config) -> str:
    """Say what decides how large a network is."""
    shape = [f"model={config.model['name']}"]
    shape += [
        f"{key}={command_line_text(value)}"
        for key, value in (("depth", config.depth), ("width", config.width))
        if value
    ]
    return " ".join(shape)


def measure_layers(module: nn.Module, samples: Tensor, large: bool = False) -> list[tuple[int, int]]:
    """Return how many values every leaf module puts out and how often it multiplies for that, for one sample.

    They are found by a pass with whatever is in memory: a value is a product with one row of the weights, if there are.
    A `large` network is followed on the meta device, where nothing is allocated; torch first loads its compiler for
    that, which takes a second.
    """
    found: list[tuple[int, int]] = []

    def note(leaf: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            values, weight = output.numel() // len(samples), getattr(leaf, "weight", None)
            row = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            found.append((values, values * row))

    if large:
        samples = samples.to("meta")
    else:
        module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # `to_empty` loads it, too
        for buffer in module.buffers():
            buffer.zero_()
    with leaf_hooks(module, note), torch.no_grad():
        module(samples)
    return found


@contextmanager
def leaf_hooks(module: nn.Module, hook: Any) -> Iterator[None]:
    """Call a hook after every leaf module, for the while."""
    leaves = [m for m in module.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def max_group_size(config: Config, workers: int = 1, taken: float | None = None) -> int:
    """Return how many networks of this kind may train together, by `sweep.max_group`, `sweep.memory` and what is free.

    Arguments: `workers` that share the memory; `taken`, bytes of one of them where they have been estimated.
    """
    taken = network_bytes(config) if taken is None else taken
    budget = config.sweep.memory * GIB if config.sweep.memory else MEMORY_SHARE * free_bytes(config.device) / workers
    fits = max(int(budget // taken), 1)
    return min(fits, config.sweep.max_group) if config.sweep.max_group else fits
