"""A lane: a dense chain computed one member after another by plain matrices, where these are large.

Layer by layer for all members, every result goes to memory and comes back. Member by member, activations and gradients
stay in the cache, in memory that every member uses again, and no tensor has to be put together from members. That pays
once products take longer than the calls around them; and what is computed alone cannot depend on neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.ensemble.blas import BOUNDARY, gemm, narrow_library
from initlab.ensemble.leaves import StackedElementwise, StackedFlatten, StackedLinear
from initlab.ensemble.tanh import tanh_
from initlab.models.plain import Chain

LARGE = 1e6  # operations of a layer's product from which on a lane pays


@dataclass(frozen=True)
class Slope:
    """One activation φ by plain calls, and how a gradient passes it: `ahead(z, φ)` and `back(δ, kept, φ)`.

    `kept` is z, or φ(z) where `in_place` is set: there `ahead` overwrites z. `back` may overwrite δ.
    """

    back: Callable[[Tensor, Tensor, Any], Tensor]
    ahead: Callable[[Tensor, Any], Tensor] = lambda z, phi: phi(z)
    in_place: bool = False


aten: Any = torch.ops.aten
SLOPES: dict[type[nn.Module], Slope] = {
    nn.Identity: Slope(lambda delta, y, phi: delta, lambda z, phi: z, True),
    nn.ReLU: Slope(
        lambda delta, y, phi: aten.threshold_backward.grad_input(delta, y, 0, grad_input=delta),
        lambda z, phi: z.relu_(),
        in_place=True,
    ),
    nn.Tanh: Slope(
        lambda delta, y, phi: aten.tanh_backward.grad_input(delta, y, grad_input=delta),
        lambda z, phi: tanh_(z),
        in_place=True,
    ),
    nn.GELU: Slope(lambda delta, z, phi: aten.gelu_backward.default(delta, z, approximate=phi.approximate)),
    nn.SiLU: Slope(lambda delta, z, phi: aten.silu_backward.default(delta, z)),
    nn.LeakyReLU: Slope(lambda delta, z, phi: aten.leaky_relu_backward.default(delta, z, phi.negative_slope, False)),
    nn.ELU: Slope(lambda delta, z, phi: aten.elu_backward.default(delta, phi.alpha, 1, 1, False, z)),
    nn.Softplus: Slope(lambda delta, z, phi: aten.softplus_backward.default(delta, z, phi.beta, phi.threshold)),
}


@dataclass(frozen=True)
class Room:
    """Memory for one pass: what each layer gives, and the gradient of it, for which two of a width take turns."""

    results: list[Tensor]
    deltas: list[Tensor]


@dataclass
class Lane:
    """The layers of a stacked chain, the readout last, as matrices of every member; `gradients` are those of one.

    Features are rows and samples columns, so that of a layer's three products two read their operands as they lie.
    `flat` is the memory of all gradients in one piece.
    """

    layers: list[StackedLinear]
    acts: list[nn.Module]
    parameters: Sequence[Tensor]
    weights: list[tuple[Tensor, ...]] = field(init=False)  # [out, in] by layer, then member
    biases: list[tuple[Tensor | None, ...]] = field(init=False)  # [out, 1]
    flat: Tensor = field(init=False)
    gradients: list[Tensor] = field(init=False)
    rooms: dict[int, Room] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Views of memory that updates change in place; the part asks for a new lane when members leave.
        self.weights = [layer.weight.detach().unbind() for layer in self.layers]
        none = (None,) * len(self.weights[0])
        self.biases = [
            none if layer.bias is None else layer.bias.detach().unsqueeze(2).unbind() for layer in self.layers
        ]
        self.flat, self.gradients = in_one_piece([p[0] for p in self.parameters])
        place = {id(p): k for k, p in enumerate(self.parameters)}
        found = [[self.gradients[place[id(p)]] for p in layer.parameters()] for layer in self.layers]
        self.sinks = [(weight, bias[0] if bias else None) for weight, *bias in found]
        self.slopes = [SLOPES[type(act)] for act in self.acts]

    def pays(self, batch: int) -> bool:
        """Are batches of this size large enough, on a CPU?"""
        shapes = [layer.weight.shape[1:] for layer in self.layers[:-1]]
        return self.flat.is_cpu and all(2 * batch * rows * columns >= LARGE for rows, columns in shapes)

    def ahead(self, x: Tensor, k: int) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs [classes, B] of member k on a batch [in, B], and what the way back needs.

        Its memory is taken again at the next call with as many samples; only the outputs are new.
        """
        kept, h, room = [x], x, self.room(x).results
        for layer, (act, slope) in enumerate(zip(self.acts, self.slopes, strict=True)):
            z, bias = room[layer], self.biases[layer][k]
            if layer == len(room) - 1:
                z = torch.empty_like(z)
            if bias is not None:
                z.copy_(bias)
            product(z, self.weights[layer][k], h, add=bias is not None)
            h = slope.ahead(z, act)
            kept += [z, h]
        return h, kept

    def back(self, delta: Tensor, kept: list[Tensor], k: int, x: Tensor) -> None:
        """Write the gradients of member k, from that of its outputs; x [B, in] is the batch as it comes."""
        deltas = self.room(kept[0]).deltas
        for layer in reversed(range(len(self.layers))):
            h, z = kept[2 * layer : 2 * layer + 2]
            delta = self.slopes[layer].back(delta, z, self.acts[layer])
            into_weight, into_bias = self.sinks[layer]
            if into_bias is not None:
                torch.sum(delta, 1, out=into_bias)
            if layer:
                product(into_weight, delta, h, turn_b=True)
                delta = product(deltas[layer - 1], self.weights[layer][k], delta, turn_a=True)
            else:
                product(into_weight, delta, x)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs of all members on a batch [B, *input_shape] as [N, B, classes]."""
        turned = x.flatten(1).t().contiguous()
        found = torch.stack([self.ahead(turned, k)[0].t() for k in range(len(self.weights[0]))])
        # Evaluations take more samples at a time, and are far between: their memory is given back.
        self.rooms.clear()
        return found

    def room(self, x: Tensor) -> Room:
        """Return the memory for a batch [in, B]."""
        count = x.shape[1]
        if count not in self.rooms:
            widths = [len(own[0]) for own in self.weights]
            pair = {(width, turn): x.new_empty(width, count) for width in widths for turn in (0, 1)}
            self.rooms[count] = Room(
                [x.new_empty(width, count) for width in widths],
                [pair[width, layer % 2] for layer, width in enumerate(widths)],
            )
        return self.rooms[count]


def product(out: Tensor, a: Tensor, b: Tensor, turn_a: bool = False, turn_b: bool = False, add: bool = False) -> Tensor:
    """Write a b of two matrices, the one or the other turned, or add it to what is there."""
    if a.dtype == torch.float32 and narrow_library():
        return gemm(out, a, b, turn_a, turn_b, add)
    a, b = a.t() if turn_a else a, b.t() if turn_b else b
    return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)


def in_one_piece(like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return zeroed memory and tensors of these shapes in it, each beginning on a boundary.

    >>> flat, (a, b) = in_one_piece([torch.ones(3), torch.ones(2, 2)])
    >>> flat.shape, a.shape, b.shape, b.storage_offset()
    (torch.Size([32]), torch.Size([3]), torch.Size([2, 2]), 16)
    """
    step = BOUNDARY // like[0].element_size()
    sizes = [-(-tensor.numel() // step) * step for tensor in like]
    flat = torch.zeros(sum(sizes), dtype=like[0].dtype, device=like[0].device)
    pieces = flat.split(sizes)
    return flat, [piece[: t.numel()].view(t.shape) for piece, t in zip(pieces, like, strict=True)]


@dataclass(frozen=True)
class Objective:
    """The loss of one member on labels [B] or values [B, C], and its gradient by the outputs, both of these [C, B].

    >>> loss, delta = Objective(torch.tensor([1]), classes=2, dtype=torch.float32)(torch.zeros(2, 1))
    >>> round(loss.item(), 4), delta.tolist()
    (0.6931, [[0.5], [-0.5]])
    """

    y: Tensor
    classes: int
    dtype: torch.dtype
    right: Tensor = field(init=False)  # the values, or 1 at every label: once for all members
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        values = self.y if self.y.is_floating_point() else F.one_hot(self.y, self.classes).to(self.dtype)
        object.__setattr__(self, "right", values.t().contiguous())
        object.__setattr__(self, "labels", self.y.unsqueeze(0))

    def __call__(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean cross-entropy or mean squared error, and the gradient."""
        if self.y.is_floating_point():
            off = outputs - self.right
            return off.square().mean(), off * (2 / off.numel())
        logs = torch.log_softmax(outputs, 0)
        loss = logs.gather(0, self.labels).mean().neg_()
        return loss, logs.exp_().sub_(self.right).mul_(1 / len(self.y))


def lane_of(module: nn.Module, parameters: Sequence[Tensor]) -> Lane | None:
    """Return the lane of a stacked module with these trained parameters; None where it is no chain of dense layers.

    >>> lane_of(nn.Linear(3, 2), []) is None
    True
    """
    if type(module) is not Chain or any((module.norms, module.dropouts, module.pool)):
        return None
    layers: list[Any] = [*module.hidden, module.readout]
    acts = [act.lone if isinstance(act, StackedElementwise) else act for act in module.acts]
    dense = isinstance(module.entry, StackedFlatten) and all(type(layer) is StackedLinear for layer in layers)
    if not dense or any(type(act) not in SLOPES for act in acts):
        return None
    trained = {id(p) for p in parameters}
    if {id(p) for layer in layers for p in layer.parameters()} != trained:
        return None
    return Lane(layers, [*acts, nn.Identity()], parameters)
