"""The members of a stacked chain of dense layers, computed one after another without autograd.

Computed layer by layer for all members, every result goes to memory and comes back. Computed member by member,
activations and gradients stay in the cache, in memory that every member uses again. That is faster once products take
longer than the calls around them; and what is computed alone does not depend on neighbors.

Worth: computed layer by layer, training takes 1.8 to 2.1 times the CPU time (8 perceptrons of width 128 and depth 3 or
10, one thread, AMD EPYC of family 26 with AVX-512, torch 2.14.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from initlab.ensemble.cpu.activations import ACTIVATION_KERNELS
from initlab.ensemble.cpu.openblas import Matrix, as_matrix, gemm, openblas_is_faster
from initlab.ensemble.cpu.processor import fast_cpu_enabled
from initlab.ensemble.layers import StackedElementwise, StackedFlatten, StackedLinear
from initlab.ensemble.matmul import ALIGNMENT
from initlab.models.plain import Chain

MIN_LAYER_FLOPS = 1e6  # operations of a layer's product from which members in turn are faster


@dataclass(frozen=True)
class KeptTensors:
    """Tensors of K members on one batch, copied so that they can be measured.

    Values before and after activations, and gradients by the values before, [K, units, B] by layer; gradients by the
    parameters, [K, …].
    """

    before: list[Tensor]
    after: list[Tensor]
    deltas: list[Tensor]
    gradients: list[Tensor]

    def __getitem__(self, k: int | slice) -> "KeptTensors":
        """Return the tensors of one member, or of some."""
        return KeptTensors(**{name: [tensor[k] for tensor in own] for name, own in vars(self).items()})


@dataclass(frozen=True)
class Workspace:
    """Memory for one member's passes on batches of one size, which the members use in turn.

    Attributes:
        before: preactivations by layer, [units, B].
        after: activations by layer, the same memory where an activation works in place.
        deltas: gradients by the preactivations, by layer.
        gradients: gradients by the parameters.
        flat: the memory of all gradients.
        by_layer: the gradients of each layer's weight and bias.
        ones: [1, B].
    """

    before: list[Matrix]
    after: list[Matrix]
    deltas: list[Matrix]
    gradients: list[Tensor]
    flat: Tensor
    by_layer: list[tuple[Matrix, Matrix | None]]
    ones: Matrix


@dataclass
class SequentialMembers:
    """The layers of a stacked chain, the readout last, as matrices of every member.

    Features are rows and samples columns, so that of a layer's three products two read their operands as they lie.
    """

    layers: list[StackedLinear]
    acts: list[nn.Module]
    parameters: Sequence[Tensor]
    weights: list[list[Matrix]] = field(init=False)  # [out, in] by layer, then member
    biases: list[list[Matrix | None]] = field(init=False)  # [out, 1]

    def __post_init__(self) -> None:
        # Views of memory that updates change in place; the part makes new ones when members leave.
        self.weights = [[as_matrix(own) for own in layer.weight.detach().unbind()] for layer in self.layers]
        self.biases = [
            [
                None if layer.bias is None else as_matrix(layer.bias.detach()[k, :, None])
                for k in range(len(layer.weight))
            ]
            for layer in self.layers
        ]
        self.kernels = [ACTIVATION_KERNELS[type(act)] for act in self.acts]
        first = self.layers[0].weight
        self.multiply = gemm if first.dtype == torch.float32 and openblas_is_faster() else torch_product

    def is_faster(self, batch: int) -> bool:
        """Return whether batches of this size are large enough for members in turn to be faster."""
        shapes = [layer.weight.shape[1:] for layer in self.layers[:-1]]
        return all(2 * batch * rows * columns >= MIN_LAYER_FLOPS for rows, columns in shapes)

    def allocate(self, batch: int) -> Workspace:
        """Return memory for batches of this size."""
        like = self.layers[0].weight
        widths = [layer.weight.shape[1] for layer in self.layers]
        # The gradients of two layers of one width take turns.
        pair = {(width, turn): as_matrix(like.new_empty(width, batch)) for width in widths for turn in (0, 1)}
        before = [as_matrix(like.new_empty(width, batch)) for width in widths]
        pairs = zip(before, self.kernels, strict=True)
        flat, gradients = allocate_flat([p[0] for p in self.parameters])
        own = {id(p): as_matrix(g.view(len(g), -1)) for p, g in zip(self.parameters, gradients, strict=True)}
        return Workspace(
            before,
            [z if kernel.in_place else as_matrix(torch.empty_like(z.tensor)) for z, kernel in pairs],
            [pair[width, layer % 2] for layer, width in enumerate(widths)],
            gradients,
            flat,
            [(own[id(layer.weight)], own.get(id(layer.bias))) for layer in self.layers],
            as_matrix(like.new_ones(1, batch)),
        )

    def allocate_kept(self, members: int, batch: int) -> KeptTensors:
        """Return memory for what some members give on a batch of this size."""
        like = self.layers[0].weight
        before, after, deltas = (
            [like.new_empty(members, layer.weight.shape[1], batch) for layer in self.layers] for _ in range(3)
        )
        return KeptTensors(before, after, deltas, [p.new_empty(members, *p.shape[1:]) for p in self.parameters])

    def forward(self, x: Tensor, k: int, workspace: Workspace, kept: KeptTensors | None = None) -> Tensor:
        """Return the outputs [classes, B] of member k on a batch [B, in]; the next call overwrites them.

        Raises:
            ValueError: the batch does not fit the first layer.
        """
        first = self.weights[0][k]
        if x.shape[1] != first.columns or x.dtype != first.tensor.dtype:
            raise ValueError(
                f"samples of {x.shape[1]} values of {x.dtype} do not fit a first layer of {first.columns} inputs of "
                f"{first.tensor.dtype}: build the network for this data set, in the same precision."
            )
        inputs, transpose = as_matrix(x), True
        for layer, (kernel, act) in enumerate(zip(self.kernels, self.acts, strict=True)):
            z, y, bias = workspace.before[layer], workspace.after[layer], self.biases[layer][k]
            # By a product with ones: other operations of torch would have to be fetched into the cache.
            if bias is not None:
                self.multiply(z, bias, workspace.ones)
            self.multiply(z, self.weights[layer][k], inputs, transpose_b=transpose, add=bias is not None)
            if kept is not None:
                kept.before[layer].copy_(z.tensor)
            kernel.forward(z.tensor, y.tensor, act)
            if kept is not None:
                kept.after[layer].copy_(y.tensor)
            inputs, transpose = y, False
        return inputs.tensor

    def backward(self, x: Tensor, k: int, workspace: Workspace, kept: KeptTensors | None = None) -> None:
        """Write the gradients of member k by its parameters to the workspace.

        `x` is the batch [B, in] of the forward pass just before, `workspace.deltas[-1]` the gradient by the outputs.
        """
        for layer in reversed(range(len(self.layers))):
            delta, (weight, bias) = workspace.deltas[layer], workspace.by_layer[layer]
            self.kernels[layer].backward(delta.tensor, workspace.before[layer].tensor, self.acts[layer])
            if kept is not None:
                kept.deltas[layer].copy_(delta.tensor)
            if bias is not None:
                self.multiply(bias, delta, workspace.ones, transpose_b=True)
            if layer:
                self.multiply(weight, delta, workspace.after[layer - 1], transpose_b=True)
                self.multiply(workspace.deltas[layer - 1], self.weights[layer][k], delta, transpose_a=True)
            else:
                self.multiply(weight, delta, as_matrix(x))
        if kept is not None:
            for copy, gradient in zip(kept.gradients, workspace.gradients, strict=True):
                copy.copy_(gradient)

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs of all members on a batch [B, *input_shape] as [N, B, classes]."""
        x, workspace = x.flatten(1).contiguous(), self.allocate(len(x))
        return torch.stack([self.forward(x, k, workspace).t().clone() for k in range(len(self.weights[0]))])


def allocate_flat(like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return zeroed memory and tensors of these shapes in it, each beginning on a boundary.

    >>> flat, (a, b) = allocate_flat([torch.ones(3), torch.ones(2, 2)])
    >>> flat.shape, a.shape, b.shape, b.storage_offset()
    (torch.Size([32]), torch.Size([3]), torch.Size([2, 2]), 16)
    """
    step = ALIGNMENT // like[0].element_size()
    sizes = [-(-tensor.numel() // step) * step for tensor in like]
    flat = like[0].new_zeros(sum(sizes))
    pieces = zip(flat.split(sizes), like, strict=True)
    return flat, [piece[: tensor.numel()].view(tensor.shape) for piece, tensor in pieces]


def torch_product(
    out: Matrix, a: Matrix, b: Matrix, transpose_a: bool = False, transpose_b: bool = False, add: bool = False
) -> None:
    """Do by torch what `gemm` does by OpenBLAS."""
    first, second = a.tensor.t() if transpose_a else a.tensor, b.tensor.t() if transpose_b else b.tensor
    if add:
        torch.addmm(out.tensor, first, second, out=out.tensor)
    else:
        torch.mm(first, second, out=out.tensor)


def fast_path(part: Any) -> SequentialMembers | None:
    """Return the members of a part to be computed in turn; None where they are no chains of dense layers on a CPU.

    >>> from types import SimpleNamespace
    >>> fast_path(SimpleNamespace(module=nn.Linear(3, 2), parameters=[], stacked=False)) is None
    True
    """
    module = part.module
    if not part.stacked or type(module) is not Chain or not fast_cpu_enabled():
        return None
    if any((module.norms, module.dropouts, module.pool)) or not isinstance(module.entry, StackedFlatten):
        return None
    layers: list[Any] = [*module.hidden, module.readout]
    acts = [act.lone if isinstance(act, StackedElementwise) else act for act in module.acts]
    if any(type(layer) is not StackedLinear for layer in layers) or any(
        type(act) not in ACTIVATION_KERNELS for act in acts
    ):
        return None
    trained = {id(p) for p in part.parameters}
    if not layers[0].weight.is_cpu or {id(p) for layer in layers for p in layer.parameters()} != trained:
        return None
    return SequentialMembers(layers, [*acts, nn.Identity()], part.parameters)
