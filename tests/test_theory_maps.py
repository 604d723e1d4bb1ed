"""Convolutions followed position by position, beside networks of plain torch; what finite width does to them."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_theory_propagation import CLASSES, Case, batch, column, measured, one_thread, widths_error
from torch import Tensor
from torch.nn import functional as F

from initlab.activations import activation
from initlab.theory import critical
from initlab.theory.nodes import LayerNode, Taps, measure_inputs
from initlab.theory.propagation import forecast

__all__ = ["one_thread"]  # a fixture that applies here, too

SIZE, SAMPLES = 6, 8
TANH = critical("tanh", sigma_b=0.3)


@dataclass(frozen=True)
class Stack:
    """Convolutions 3 × 3 with stride 1: `sigma_w`² = fan_in · Var[W]; `delta`: orthogonal at the centre tap."""

    act: str
    sigma_w: float
    sigma_b: float = 0.0
    circular: bool = True
    delta: bool = False


STACKS = {
    "relu, circular": Stack("relu", math.sqrt(2)),
    "relu, zeros": Stack("relu", math.sqrt(2), circular=False),
    "tanh, critical": Stack("tanh", TANH.sigma_w, TANH.sigma_b),
    "elu, zeros": Stack("elu", 1.2, circular=False),
    "tanh, delta-orthogonal": Stack("tanh", TANH.sigma_w, TANH.sigma_b, delta=True),
}


def described(stack: Stack, channels: int, depth: int) -> list[LayerNode]:
    taps = Taps((1, 1), (1, 1), (0, 0)) if stack.delta else Taps((3, 3), (1, 1), (1, 1), stack.circular)
    layers = []
    for k in range(depth):
        fan_in = math.prod(taps.kernel) * (3 if k == 0 else channels)
        how = {"bias_variance": stack.sigma_b**2, "act": activation(stack.act), "taps": taps}
        fed_by = "data" if k == 0 else "activation"
        layers.append(LayerNode(f"conv.{k}", fan_in, channels, stack.sigma_w**2 / fan_in, fed_by=fed_by, **how))
    inputs = channels * SIZE**2
    return [*layers, LayerNode("readout", inputs, CLASSES, 1 / inputs)]


def weight(stack: Stack, inputs: int, channels: int, generator: torch.Generator) -> Tensor:
    if not stack.delta:
        return torch.randn(channels, inputs, 3, 3, generator=generator) * stack.sigma_w / math.sqrt(9 * inputs)
    w = torch.zeros(channels, inputs, 3, 3)
    q = torch.nn.init.orthogonal_(torch.empty(channels, inputs), generator=generator)
    w[:, :, 1, 1] = stack.sigma_w * q * math.sqrt(max(channels / inputs, 1))
    return w


def simulated(stack: Stack, x: Tensor, channels: int, depth: int, networks: int, gradients: bool = True) -> np.ndarray:
    """[networks, 2, layers]: second moments and mean square gradients; the latter 0 if they are not asked for."""
    found, record = [], activation(stack.act)
    mode = "circular" if stack.circular else "constant"
    for seed in range(networks):
        g = torch.Generator().manual_seed(seed)
        h, kept = x, []
        for _ in range(depth):
            bias = stack.sigma_b * torch.randn(channels, generator=g)
            h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode=mode), weight(stack, h.shape[1], channels, g), bias)
            kept.append(h.requires_grad_() if gradients else h)
            h = record(h)
        if not gradients:
            found.append([[float(h.double().square().mean()) for h in kept], [0.0] * depth])
            continue
        readout = torch.randn(CLASSES, channels * SIZE**2, generator=g) / math.sqrt(channels * SIZE**2)
        kept.append((h.flatten(1) @ readout.T).requires_grad_())
        found.append(measured(kept, F.cross_entropy(kept[-1], torch.randint(CLASSES, (len(x),), generator=g))))
    return np.array(found)


def check(stack: Stack, channels: int, depth: int, networks: int) -> None:
    x = batch(SAMPLES, 3, SIZE, SIZE)
    frame = forecast(described(stack, channels, depth), measure_inputs(x, maps=True), CLASSES)
    found = simulated(stack, x, channels, depth, networks)
    q, gradient = column(frame, "q"), column(frame, "grad_mean_square")
    # As for dense layers of so many units: all positions of a channel are taken to move together, which is the worst.
    sizes = (3 * 9, *[channels] * depth)
    dense = Case(stack.act, "", lambda n, m: stack.sigma_w**2 / n, bias=stack.sigma_b**2, sizes=sizes)
    allowed = np.maximum(0.05, 3 * widths_error(dense, q, networks))
    off = np.abs(found[:, 0].mean(axis=0) / q - 1)[:-1]
    assert (off <= allowed[:-1]).all(), (off, allowed)
    assert np.abs(np.log10(found[:, 1].mean(axis=0) / gradient)).max() <= 0.15


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_convolutions_are_those_of_networks(stack):
    check(stack, channels=96, depth=12, networks=16)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_wide_convolutions_are_those_of_networks(stack):
    check(stack, channels=500, depth=12, networks=16)


@pytest.mark.parametrize("circular", [True, False])
def test_what_a_relu_network_is_off_by_is_finite_width(circular):
    """No bias at any width, and a variance of ln q that falls like 1/channels: single networks are off, not theory."""
    stack, depth, networks = Stack("relu", math.sqrt(2), circular=circular), 8, 250
    x = batch(4, 3, SIZE, SIZE)
    scaled = {}
    for channels in (16, 64):
        frame = forecast(described(stack, channels, depth), measure_inputs(x, maps=True), CLASSES)
        ratio = simulated(stack, x, channels, depth, networks, gradients=False)[:, 0] / column(frame, "q")[:depth]
        error = ratio.std(axis=0, ddof=1) / math.sqrt(networks)
        # 8 layers that follow each other, 4 settings: 4 standard errors are passed by chance in 1 of 1,000
        assert (np.abs(ratio.mean(axis=0) - 1) <= 4 * error).all()
        scaled[channels] = channels * np.log(ratio[:, -1]).var(ddof=1)
    # the ratio of two variances of 250 each has a relative standard error of √(4/250) = 13 %; 4 of them
    assert scaled[64] / scaled[16] == pytest.approx(1, abs=0.5)
    assert scaled[64] <= 5 * depth  # ∏(1 + 5/n): no more than for dense layers
