"""A lane: a dense chain computed one member after another by plain matrices, where these are large.

Layer by layer for all members, every result goes to memory and comes back. Member by member, activations and gradients
stay in the cache, in memory that every member uses again, and no tensor has to be put together from members. That pays
once products take longer than the calls around them; and what is computed alone cannot depend on neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.activation_kernels import ACTIVATION_KERNELS, do_nothing
from initlab.ensemble.cpu.openblas import (
    ALIGNMENT,
    Call,
    batch_gemm_call,
    broadcast_call,
    dot_call,
    gemm_call,
    openblas_is_faster,
    row_sums_call,
)
from initlab.ensemble.layers import StackedElementwise, StackedFlatten, StackedLinear
from initlab.models.plain import Chain

MIN_LAYER_FLOPS = 1e6  # operations of a layer's product from which on a lane pays


@dataclass(frozen=True)
class Pass:
    """What one member computes on a batch in one direction, as calls bound to memory, in order.

    Only the batch [B, in] is new every time: `by_batch`, the product with it, comes first ahead and last on the way
    back. `stops` say after how many calls what a layer gives is there (before or after its activation, or the
    gradient): its memory is soon taken again.
    """

    by_batch: Callable[[Tensor], Any]
    calls: Sequence[Call]
    stops: Sequence[tuple[int, str, int]]  # how many calls, the field of `Workspace` and `KeptTensors`, the layer

    def take(self, room: "Workspace", kept: "KeptTensors | None") -> None:
        """Make the calls, and copy what is to be kept."""
        begin = 0
        for end, what, layer in self.stops if kept is not None else ():
            for call in self.calls[begin:end]:
                call()
            getattr(kept, what)[layer].copy_(getattr(room, what)[layer])
            begin = end
        for call in self.calls[begin:]:
            call()


@dataclass(frozen=True)
class Workspace:
    """Memory for batches of one size, and the ways of the members through it, once they have been taken.

    What each layer gives, before and after its activation, and the gradient of it, for which two of a width take turns.
    """

    before: list[Tensor]
    after: list[Tensor]
    deltas: list[Tensor]
    ahead: dict[int, Pass] = field(init=False, default_factory=dict)
    back: dict[int, Pass] = field(init=False, default_factory=dict)


@dataclass(frozen=True)
class KeptTensors:
    """What layers gave on one batch, before and after their activations, and the gradients: for those who measure it.

    Of K members, [K, units, B] by layer and [K, …] by parameter; of one of them, a row of each.
    """

    before: list[Tensor]
    after: list[Tensor]
    deltas: list[Tensor]
    gradients: list[Tensor]

    def __getitem__(self, k: int | slice) -> "KeptTensors":
        """Return the rows of one member, or of some."""
        return KeptTensors(**{name: [tensor[k] for tensor in own] for name, own in vars(self).items()})


@dataclass
class SequentialMembers:
    """The layers of a stacked chain, the readout last, as matrices of every member; `gradients` are those of one.

    Features are rows and samples columns, so that of a layer's three products two read their operands as they lie.
    `flat` is the memory of all gradients in one piece, `squared` gives the square of their norm.
    """

    layers: list[StackedLinear]
    acts: list[nn.Module]
    parameters: Sequence[Tensor]
    weights: list[tuple[Tensor, ...]] = field(init=False)  # [out, in] by layer, then member
    biases: list[tuple[Tensor | None, ...]] = field(init=False)  # [out, 1]
    flat: Tensor = field(init=False)
    squared: Callable[[], float] = field(init=False)
    gradients: list[Tensor] = field(init=False)
    rooms: dict[int, Workspace] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Views of memory that updates change in place; the part asks for a new lane when members leave.
        self.weights = [layer.weight.detach().unbind() for layer in self.layers]
        none = (None,) * len(self.weights[0])
        self.biases = [
            none if layer.bias is None else layer.bias.detach().unsqueeze(2).unbind() for layer in self.layers
        ]
        self.flat, self.gradients = allocate_flat([p[0] for p in self.parameters])
        self.squared = dot_call(self.flat, self.flat)
        place = {id(p): k for k, p in enumerate(self.parameters)}
        found = [[self.gradients[place[id(p)]] for p in layer.parameters()] for layer in self.layers]
        self.sinks = [(weight, bias[0] if bias else None) for weight, *bias in found]
        self.slopes = [ACTIVATION_KERNELS[type(act)] for act in self.acts]

    def pays(self, batch: int) -> bool:
        """Are batches of this size large enough, on a CPU?"""
        shapes = [layer.weight.shape[1:] for layer in self.layers[:-1]]
        return self.flat.is_cpu and all(2 * batch * rows * columns >= MIN_LAYER_FLOPS for rows, columns in shapes)

    def ahead(self, x: Tensor, k: int, kept: KeptTensors | None = None) -> Tensor:
        """Return the outputs [classes, B] of member k on a batch [B, in]; the next call takes their memory again.

        What its layers give goes into `kept`, too.

        Raises ValueError for a batch that does not fit the first layer: a product by address would not notice.
        """
        inputs = self.weights[0][k].shape[1]
        if x.shape[1] != inputs or x.dtype != self.flat.dtype:
            raise ValueError(
                f"samples of {x.shape[1]} values of {x.dtype} do not fit a first layer of {inputs} inputs of "
                f"{self.flat.dtype}: build the network for this data set, in the same precision."
            )
        room = self.room(len(x))
        way = room.ahead.get(k) or room.ahead.setdefault(k, self.way_ahead(room, k))
        way.by_batch(x)
        way.take(room, kept)
        return room.after[-1]

    def back(self, x: Tensor, k: int, kept: KeptTensors | None = None) -> None:
        """Write the gradients of member k, on the batch [B, in] that it has just seen, from `delta` of its outputs."""
        room = self.room(len(x))
        way = room.back.get(k) or room.back.setdefault(k, self.way_back(room, k))
        way.take(room, kept)
        way.by_batch(x)
        if kept is not None:
            for copied, gradient in zip(kept.gradients, self.gradients, strict=True):
                copied.copy_(gradient)

    def keeps(self, gradients: list[Tensor], batch: int) -> KeptTensors:
        """Return memory for what some members give on a batch, as many as there is memory for `gradients` of [K, …]."""
        members = len(gradients[0])
        before, after, deltas = (
            [self.flat.new_empty(members, len(own[0]), batch) for own in self.weights] for _ in range(3)
        )
        return KeptTensors(before, after, deltas, gradients)

    def delta(self, batch: int) -> Tensor:
        """Return the memory for the gradient of the loss by the outputs [classes, B]."""
        return self.room(batch).deltas[-1]

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs of all members on a batch [B, *input_shape] as [N, B, classes]."""
        x = x.flatten(1).contiguous()
        found = x.new_empty(len(self.weights[0]), len(x), self.weights[-1][0].shape[0])
        for k, of_member in enumerate(found.unbind()):
            of_member.copy_(self.ahead(x, k).t())
        return found

    def room(self, count: int) -> Workspace:
        """Return the memory for batches of `count` samples."""
        if count not in self.rooms:
            widths = [len(own[0]) for own in self.weights]
            pair = {(width, turn): self.flat.new_empty(width, count) for width in widths for turn in (0, 1)}
            before = [self.flat.new_empty(width, count) for width in widths]
            self.rooms[count] = Workspace(
                before,
                [z if slope.in_place else torch.empty_like(z) for z, slope in zip(before, self.slopes, strict=True)],
                [pair[width, layer % 2] for layer, width in enumerate(widths)],
            )
        return self.rooms[count]

    def way_ahead(self, room: Workspace, k: int) -> Pass:
        """Bind the forward pass of member k to the memory of a room."""
        calls: list[Call] = []
        stops = []
        weights, biases = [own[k] for own in self.weights], [own[k] for own in self.biases]
        for layer, (slope, act) in enumerate(zip(self.slopes, self.acts, strict=True)):
            z, bias = room.before[layer], biases[layer]
            if layer:
                if bias is not None:
                    calls.append(broadcast_call(bias, z))
                calls.append(matmul_call(z, weights[layer], room.after[layer - 1], add=bias is not None))
            stops.append((len(calls), "before", layer))
            calls += skip_identity(slope.ahead(z, room.after[layer], act))
            stops.append((len(calls), "after", layer))
        by_batch = batch_matmul_call(room.before[0], weights[0], turn_b=True, bias=biases[0])
        return Pass(by_batch, calls, stops)

    def way_back(self, room: Workspace, k: int) -> Pass:
        """Bind the backward pass of member k to the memory of a room."""
        calls: list[Call] = []
        stops = []
        for layer in reversed(range(len(self.layers))):
            delta, (into_weight, into_bias) = room.deltas[layer], self.sinks[layer]
            calls += skip_identity(self.slopes[layer].back(delta, room.before[layer], self.acts[layer]))
            stops.append((len(calls), "deltas", layer))
            if into_bias is not None:
                calls.append(row_sums_call(delta, into_bias))
            if layer:
                calls.append(matmul_call(into_weight, delta, room.after[layer - 1], turn_b=True))
                calls.append(matmul_call(room.deltas[layer - 1], self.weights[layer][k], delta, turn_a=True))
        by_batch = batch_matmul_call(self.sinks[0][0], room.deltas[0])
        return Pass(by_batch, calls, stops)


def skip_identity(call: Call) -> list[Call]:
    """Return the call, unless it does nothing.

    >>> skip_identity(nothing)
    []
    """
    return [] if call is do_nothing else [call]


def matmul_call(
    out: Tensor, a: Tensor, b: Tensor, turn_a: bool = False, turn_b: bool = False, add: bool = False
) -> Call:
    """Return the call that writes a b, the one or the other turned, or adds it to what is there."""
    if a.dtype == torch.float32 and openblas_is_faster():
        return gemm_call(out, a, b, turn_a, turn_b, add)
    a, b = a.t() if turn_a else a, b.t() if turn_b else b
    return partial(torch.addmm, out, a, b, out=out) if add else partial(torch.mm, a, b, out=out)


def batch_matmul_call(out: Tensor, a: Tensor, turn_b: bool = False, bias: Tensor | None = None) -> Callable:
    """Return the call that writes a b (+ bias), where b or its transpose is the batch that it is given."""
    multiply: Callable[[Tensor], Any]
    if a.dtype == torch.float32 and openblas_is_faster():
        multiply = batch_gemm_call(out, a, turn_b, add=bias is not None)
    else:
        by_torch = partial(torch.mm, a, out=out) if bias is None else partial(torch.addmm, out, a, out=out)

        def multiply(x: Tensor) -> Any:
            return by_torch(x.t() if turn_b else x)

    if bias is None:
        return multiply

    shift = broadcast_call(bias, out)

    def shifted(x: Tensor) -> Any:
        shift()
        return multiply(x)

    return shifted


def allocate_flat(like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return zeroed memory and tensors of these shapes in it, each beginning on a boundary.

    >>> flat, (a, b) = allocate_flat([torch.ones(3), torch.ones(2, 2)])
    >>> flat.shape, a.shape, b.shape, b.storage_offset()
    (torch.Size([32]), torch.Size([3]), torch.Size([2, 2]), 16)
    """
    step = ALIGNMENT // like[0].element_size()
    sizes = [-(-tensor.numel() // step) * step for tensor in like]
    flat = torch.zeros(sum(sizes), dtype=like[0].dtype, device=like[0].device)
    pieces = flat.split(sizes)
    return flat, [piece[: t.numel()].view(t.shape) for piece, t in zip(pieces, like, strict=True)]


def sequential_members(module: nn.Module, parameters: Sequence[Tensor]) -> SequentialMembers | None:
    """Return the lane of a stacked module with these trained parameters; None where it is no chain of dense layers.

    >>> sequential_members(nn.Linear(3, 2), []) is None
    True
    """
    if type(module) is not Chain or any((module.norms, module.dropouts, module.pool)):
        return None
    layers: list[Any] = [*module.hidden, module.readout]
    acts = [act.lone if isinstance(act, StackedElementwise) else act for act in module.acts]
    dense = isinstance(module.entry, StackedFlatten) and all(type(layer) is StackedLinear for layer in layers)
    if not dense or any(type(act) not in ACTIVATION_KERNELS for act in acts):
        return None
    trained = {id(p) for p in parameters}
    if {id(p) for layer in layers for p in layer.parameters()} != trained:
        return None
    return SequentialMembers(layers, [*acts, nn.Identity()], parameters)
