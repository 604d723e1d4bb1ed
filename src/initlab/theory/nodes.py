"""A network as theory sees it: records of what each layer is fed, how many inputs it sums, and how it is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.activations import Activation
from initlab.errors import UserError


@dataclass(frozen=True)
class Taps:
    """Geometry of a convolution: kernel, stride and padding along each axis of the map.

    With `circular` padding all positions sum as many inputs. With zero padding a position at the edge sums fewer, and
    theory follows the second moment of each position by itself.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    circular: bool = True

    def sum(self, x: Tensor) -> Tensor:
        """Return Σ over the taps of `x` [N, *map]: [N, *output map]."""
        maps = x.unsqueeze(1)
        if self.circular:
            wrapped = [n for pad in reversed(self.padding) for n in (pad, pad)]
            maps = F.pad(maps, wrapped, mode="circular")
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        padding = (0,) * len(self.kernel) if self.circular else self.padding
        return convolve(maps, ones, stride=self.stride, padding=padding).squeeze(1)


@dataclass(frozen=True)
class LayerNode:
    """One weight layer: h_i = Σ_j W_ij x_j + b_i, then φ(h).

    Attributes:
        name: the module that owns the weight.
        fan_in: inputs summed by a unit in the interior of a map.
        units: output units, or channels.
        variance, mean: of an element of W.
        bias_variance: of an element of b.
        orthogonal: W is Haar-distributed (up to a factor) instead of having independent elements.
        act: the activation that follows, or None.
        fed_by: `data`, `activation` or `residual`; for any other (`norm`, `unknown`) theory has no answer.
        taps: geometry of a convolution; None for a dense layer, which sums over all positions of its input.
        keep: fraction of the inputs that dropout keeps (and divides by).
    """

    name: str
    fan_in: float
    units: int
    variance: float
    bias_variance: float = 0.0
    mean: float = 0.0
    orthogonal: bool = False
    act: Activation | None = None
    fed_by: str = "activation"
    taps: Taps | None = None
    keep: float = 1.0

    @property
    def answerable(self) -> bool:
        """Whether mean-field theory holds: weights of mean 0, and an input of known statistics."""
        known = math.isfinite(self.variance) and self.mean == 0
        return known and self.fed_by in ("data", "activation", "residual")


@dataclass(frozen=True)
class BranchNode:
    """x ↦ φ(shortcut(x) + multiplier · layers(x)); the shortcut is the identity and φ absent unless given.

    Behind φ of a sum with an identity, theory has no answer: x itself came through a φ and is not Gaussian.
    """

    layers: tuple[LayerNode, ...]
    multiplier: float = 1.0
    shortcut: LayerNode | None = None
    act: Activation | None = None


@dataclass(frozen=True)
class PoolNode:
    """Mean over all positions of a map."""


Node: TypeAlias = LayerNode | BranchNode | PoolNode


@dataclass(frozen=True)
class InputProducts:
    """What the network is fed: second moments of S samples, and products of pairs of them, per position of a map.

    Attributes:
        squares: mean over channels of x², [S, *map].
        products: mean over channels of x_i x_j, [P, *map].
        pairs: the samples i and j, [P, 2].
        batch: samples whose mean is the loss.
    """

    squares: np.ndarray
    products: np.ndarray
    pairs: np.ndarray = field(default_factory=lambda: np.array([[0, 1]]))
    batch: int = 1


def standard_inputs(
    second_moment: float = 1.0,
    correlation: float | Sequence[float] = 0.0,
    batch: int = 1,
    positions: tuple[int, ...] = (),
) -> InputProducts:
    """Return samples of this second moment, the first paired with one of each correlation: standardized data.

    Args:
        second_moment: mean square of an input, at least 0.
        correlation: one correlation in [−1, 1], or several.
        batch: samples whose mean is the loss.
        positions: shape of the map, every position of which is alike; () without one.

    Raises:
        UserError: a second moment or a correlation that cannot be.

    >>> standard_inputs(2.0, 0.25).products.tolist()
    [0.5]
    """
    if not (math.isfinite(second_moment) and second_moment >= 0):
        raise UserError(f"second_moment={second_moment} must be a finite number ≥ 0: the mean square of the inputs.")
    correlations = np.atleast_1d(np.asarray(correlation, dtype=np.float64))
    if not (np.abs(correlations) <= 1).all():
        raise UserError(f"correlation={correlation} must lie in [-1, 1].")
    products = (second_moment * correlations).reshape(-1, *[1] * len(positions)) * np.ones(positions)
    pairs = np.array([[0, k] for k in range(1, len(correlations) + 1)])
    return InputProducts(np.full((len(correlations) + 1, *positions), second_moment), products, pairs, batch)


def measure_inputs(
    x: Any, *, maps: bool = False, samples: int = 256, pairs: int = 256, batch: int | None = None
) -> InputProducts:
    """Measure the inputs of a network from a batch `x` [S, *shape]; with `maps`, per position of [S, C, *map].

    Each of the first `samples` samples is paired with the next one, the last with the first, at most `pairs` times.

    Args:
        x: the batch, of any dtype and device.
        maps: keep the positions of a map apart.
        samples: samples that are measured at most.
        pairs: pairs at most.
        batch: samples whose mean is the loss; those of `x` if left out.

    Raises:
        UserError: `x` has no axis of samples.

    >>> measure_inputs(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).products.tolist()
    [0.0, 0.0]
    """
    data = torch.as_tensor(x).detach().to("cpu", torch.float64)
    if data.dim() < 2 or not len(data):
        raise UserError(f"a batch of inputs must have a first axis of samples, and this has shape {list(data.shape)}.")
    size = len(data) if batch is None else batch
    data = data[:samples]
    data = data if maps and data.dim() > 2 else data.flatten(1)
    index = np.arange(min(len(data), pairs))
    ring = np.stack([index, (index + 1) % len(data)], axis=1)
    products = (data[ring[:, 0]] * data[ring[:, 1]]).mean(1)
    return InputProducts(data.square().mean(1).numpy(), products.numpy(), ring, size)


def layer_nodes(nodes: Sequence[Node]) -> list[LayerNode]:
    """Return every layer in forward order, the shortcut of a branch after its layers.

    >>> layer = LayerNode("a", 1, 1, 1.0)
    >>> [x.name for x in layer_nodes([layer, BranchNode((layer,))])]
    ['a', 'a']
    """
    layers: list[LayerNode] = []
    for node in nodes:
        if isinstance(node, LayerNode):
            layers.append(node)
        elif isinstance(node, BranchNode):
            layers += [*node.layers, *([node.shortcut] if node.shortcut else [])]
    return layers
