"""What one network takes while it trains, in memory and work, and how many of them fit."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from initlab.config import Config
from initlab.config.checks import command_line_text
from initlab.errors import UserError
from initlab.experiment.build import build_activation, build_module, load_data, make_plan
from initlab.sweep.cells import Cell, cells_by_key
from initlab.system.resources import FLOPS_PER_CORE, GIB, MEMORY_SHARE, free_bytes
from initlab.training import OPTIMIZERS
from initlab.training.evaluation import EVAL_BATCH

FLOPS_PER_MULTIPLICATION = 6  # of a forward pass: it and its sum, and twice that in the backward pass
META_DEVICE_BYTES = 2**26  # parameters and buffers from which on a network is measured without allocating it
SECONDS_PER_NETWORK = 0.05  # to start a network, to record it and to end it
SECONDS_PER_STEP = 2e-5  # of a network beside its products


@dataclass(frozen=True)
class NetworkCost:
    """What one network takes while it trains.

    Attributes:
        bytes: memory with temporaries, which decides how many networks fit; infinite where it cannot be known.
        work: multiplications in the forward passes of all steps.
        steps: how many updates it makes.
        min_bytes: memory that no network trains without, which decides whether one can train at all; 0 where it cannot
            be known.
    """

    bytes: float
    work: int
    steps: int
    min_bytes: float = 0.0

    @property
    def work_per_step(self) -> float:
        """Multiplications in one forward pass."""
        return self.work / max(self.steps, 1)

    @property
    def compute_seconds(self) -> float:
        """About how long the arithmetic of the whole training takes on one core."""
        return FLOPS_PER_MULTIPLICATION * self.work / FLOPS_PER_CORE

    @property
    def step_seconds(self) -> float:
        """About how long one step takes on one core."""
        return SECONDS_PER_STEP + self.compute_seconds / max(self.steps, 1)


@dataclass
class CostCache:
    """The cost of one network of each architecture, estimated at its first use."""

    known: dict[str, NetworkCost] = field(default_factory=dict)

    def of(self, cell: Cell) -> NetworkCost:
        """Return what one network like this takes."""
        if cell.group_key not in self.known:
            self.known[cell.group_key] = estimate_cost(cell.config)
        return self.known[cell.group_key]


def estimate_cost(config: Config, call_own: bool = True) -> NetworkCost:
    """Estimate what one network of a group takes while it trains, from its parameters and activations.

    Memory: weights, gradients, the optimizer's slots and one temporary of each; every layer's output for one batch,
    kept for the backward pass, and gradients of the two largest; the same two for a batch of evaluation. The minimum:
    weights, gradients, slots and half of the outputs, for some layers keep their input alone. Work: what all layers
    multiply in a forward pass of every batch; the backward pass is about in proportion. Where the network cannot run
    without data (a user's own model), its activations are taken to be as large as its parameters, each of which
    multiplies once.

    Args:
        config: the network and its training.
        call_own: whether the forward pass of a user's own model may be called for it.
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
            layers = measure_layers(module, data.prepare(data.train_x[:2]), on_meta=weights * 4 > META_DEVICE_BYTES)
    outputs = [values for values, _ in layers]
    largest = sum(sorted(outputs)[-2:])
    needed = size * (copies * weights + batch * (sum(outputs) + largest) + EVAL_BATCH * largest)
    least = size * ((copies - 1) * weights + batch * sum(outputs) / 2)
    work = samples * max(sum(products for _, products in layers), weights, 1)
    return NetworkCost(needed, work, steps, least)


def measure_layers(module: nn.Module, samples: Tensor, on_meta: bool) -> list[tuple[int, int]]:
    """Return how many values every leaf module puts out for one sample, and how often it multiplies for that.

    A value is a product with one row of the weights, if there are any.

    Args:
        module: built on the meta device; its parameters and its hooks are changed.
        samples: a batch of inputs.
        on_meta: run the pass on the meta device, where nothing is allocated; torch first loads its compiler for that,
            which takes a second. Otherwise it runs with uninitialized weights.
    """
    layers: list[tuple[int, int]] = []

    def record(leaf: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            values, weight = output.numel() // len(samples), getattr(leaf, "weight", None)
            row = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            layers.append((values, values * row))

    for leaf in module.modules():
        if next(leaf.children(), None) is None:
            leaf.register_forward_hook(record)
    with torch.no_grad():
        if on_meta:
            module(samples.to("meta"))
        else:  # `to_empty` loads the compiler, too
            weights = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in module.named_parameters()}
            buffers = {name: torch.zeros(b.shape, dtype=b.dtype) for name, b in module.named_buffers()}
            functional_call(module, weights | buffers, (samples,))
    return layers


def require_memory(costs: Iterable[tuple[Config, NetworkCost]], at_a_time: int = 1) -> None:
    """Refuse a network that cannot train in the memory that is free; none is built to find out.

    Where `sweep.memory` gives how much a group may take, that much counts as free.

    Args:
        costs: configurations, and what one network of each takes.
        at_a_time: how many processes train one network each and share the memory.

    Raises:
        UserError: one network, or `at_a_time` of them, need more.
    """
    free: dict[str, float] = {}
    for config, cost in costs:
        if config.device not in free:
            free[config.device] = free_bytes(config.device)
        available = config.sweep.memory * GIB if config.sweep.memory else free[config.device]
        needed, shape = cost.min_bytes, describe_shape(config)
        if needed > available:
            gib = f"{available / GIB:.2f} GiB"
            raise UserError(
                f"{shape}: one network needs {needed / GIB:.2f} GiB to train with optim={config.optim['name']} and "
                f"train.batch_size={config.train.batch_size}, and "
                f"{f'sweep.memory allows {gib}' if config.sweep.memory else f'{gib} are free'}: choose a smaller one, "
                f"or say sweep.memory={math.ceil(needed / GIB)} if that much is free."
            )
        if needed * at_a_time > available and not config.sweep.memory:
            raise UserError(
                f"hydra.launcher.workers={at_a_time} train {at_a_time} networks at a time, of which one needs "
                f"{needed / GIB:.2f} GiB ({shape}), and {available / GIB:.2f} GiB are free: "
                f"say hydra.launcher.workers={int(available // needed)}."
            )


def describe_shape(config: Config) -> str:
    """Return the keys that decide how large a network is."""
    sizes = {"depth": config.depth, "width": config.width}
    shown = [f"{key}={command_line_text(value)}" for key, value in sizes.items() if value]
    return " ".join([f"model={config.model['name']}", *shown])


def max_group_size(config: Config, network_bytes: float, workers: int = 1) -> int:
    """Return how many networks may train together, by `sweep.max_group`, `sweep.memory` and what is free.

    Args:
        config: one of them.
        network_bytes: memory of one.
        workers: how many groups share the memory.
    """
    budget = config.sweep.memory * GIB if config.sweep.memory else MEMORY_SHARE * free_bytes(config.device) / workers
    fits = max(int(budget // network_bytes), 1)
    return min(fits, config.sweep.max_group) if config.sweep.max_group else fits


def estimate_seconds(cells: Sequence[Cell], costs: CostCache, cores: int) -> float:
    """Return about how long cells take together on some cores: their starts and records, steps and products."""
    each = ((len(alike), costs.of(alike[0])) for alike in cells_by_key(cells))
    return sum(
        count * (SECONDS_PER_NETWORK + SECONDS_PER_STEP * cost.steps + cost.compute_seconds / cores)
        for count, cost in each
    )
