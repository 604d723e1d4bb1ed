"""A lane: a dense chain computed one member after another by plain matrices, where these are large.

Layer by layer for all members, every result goes to memory and comes back. Member by member, activations and gradients
stay in the cache, no tensor has to be put together from members, and a product takes its activation along. That pays
once products take longer than the calls around them; and what is computed alone cannot depend on neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.ensemble.leaves import StackedElementwise, StackedFlatten, StackedLinear
from initlab.ensemble.products import BOUNDARY, WIDE, linear_of_onednn, narrow_library
from initlab.models.plain import Chain

LARGE = 4e6  # operations of a layer's product from which on a lane pays


@dataclass(frozen=True)
class Slope:
    """How a gradient passes φ: `back(δ, kept, φ)`, with y = φ(z) kept where `fused` is set, else z.

    `fused` is what oneDNN calls φ at the end of a product.
    """

    back: Callable[[Tensor, Tensor, Any], Tensor]
    fused: str = ""


aten: Any = torch.ops.aten
LINEAR = Slope(lambda delta, y, phi: delta, "none")
SLOPES: dict[type[nn.Module], Slope] = {
    nn.Identity: LINEAR,
    # oneDNN's ReLU makes 0 of NaN: a network that diverged would go on.
    nn.ReLU: Slope(lambda delta, z, phi: aten.threshold_backward.default(delta, z, 0)),
    nn.Tanh: Slope(lambda delta, y, phi: aten.tanh_backward.default(delta, y), "tanh"),
    nn.GELU: Slope(lambda delta, z, phi: aten.gelu_backward.default(delta, z, approximate=phi.approximate)),
    nn.SiLU: Slope(lambda delta, z, phi: aten.silu_backward.default(delta, z)),
    nn.LeakyReLU: Slope(lambda delta, z, phi: aten.leaky_relu_backward.default(delta, z, phi.negative_slope, False)),
    nn.ELU: Slope(lambda delta, z, phi: aten.elu_backward.default(delta, phi.alpha, 1, 1, False, z)),
    nn.Softplus: Slope(lambda delta, z, phi: aten.softplus_backward.default(delta, z, phi.beta, phi.threshold)),
}


@dataclass
class Lane:
    """The layers of a stacked chain, the readout last, as matrices of every member; `gradients` are those of one.

    `flat` is the memory of all gradients in one piece.
    """

    layers: list[StackedLinear]
    acts: list[nn.Module]
    parameters: Sequence[Tensor]
    weights: list[tuple[Tensor, ...]] = field(init=False)  # by layer, then member
    turned: list[tuple[Tensor, ...]] = field(init=False)
    biases: list[tuple[Tensor | None, ...]] = field(init=False)
    flat: Tensor = field(init=False)
    gradients: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # Views of memory that updates change in place; the part asks for a new lane when members leave.
        self.weights = [layer.weight.detach().unbind() for layer in self.layers]
        self.turned = [layer.weight.detach().transpose(1, 2).unbind() for layer in self.layers]
        none = (None,) * len(self.weights[0])
        self.biases = [none if layer.bias is None else layer.bias.detach().unbind() for layer in self.layers]
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
        """Return the outputs [B, classes] of member k on a batch [B, in], and what the way back needs."""
        kept, h = [x], x
        for layer, (act, slope) in enumerate(zip(self.acts, self.slopes, strict=True)):
            z = affine(h, self.weights[layer][k], self.biases[layer][k], slope.fused)
            h = z if slope.fused else act(z)
            kept += [z, h]
        return h, kept

    def outputs(self, x: Tensor) -> Tensor:
        """Return the outputs of all members on a batch [B, *input_shape] as [N, B, classes]."""
        x = x.flatten(1)
        return torch.stack([self.ahead(x, k)[0] for k in range(len(self.weights[0]))])

    def back(self, delta: Tensor, kept: list[Tensor], k: int) -> None:
        """Write the gradients of member k, from that of its outputs."""
        for layer in reversed(range(len(self.layers))):
            h, z = kept[2 * layer : 2 * layer + 2]
            delta = self.slopes[layer].back(delta, z, self.acts[layer])
            into_weight, into_bias = self.sinks[layer]
            weight_gradient(delta, h, into_weight)
            if into_bias is not None:
                torch.sum(delta, 0, out=into_bias)
            if layer:
                delta = affine(delta, self.turned[layer][k], None, "none")


FUSED: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "tanh": torch.tanh}


def affine(h: Tensor, weight: Tensor, bias: Tensor | None, fused: str) -> Tensor:
    """Return φ(h Wᵀ + b) of two matrices; φ is the one that oneDNN would take along, or none."""
    if h.dtype == torch.float32 and 2 * len(h) * weight.numel() >= WIDE and narrow_library():
        product: Tensor = linear_of_onednn()(h, weight, bias, fused or "none", [], "")
        return product
    z = h @ weight.t() if bias is None else torch.addmm(bias, h, weight.t())
    return FUSED[fused or "none"](z)


def weight_gradient(delta: Tensor, h: Tensor, out: Tensor) -> None:
    """Write δᵀ h."""
    if h.dtype == torch.float32 and 2 * len(h) * out.numel() >= WIDE and narrow_library():
        out.copy_(linear_of_onednn()(delta.t(), h.t(), None, "none", [], ""))
    else:
        torch.mm(delta.t(), h, out=out)


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
    """The loss of one member on a batch of labels [B] or values [B, C], and its gradient by the outputs [B, C].

    >>> loss, delta = Objective(torch.tensor([1]), classes=2)(torch.zeros(1, 2))
    >>> round(loss.item(), 4), delta.tolist()
    (0.6931, [[0.5, -0.5]])
    """

    y: Tensor
    classes: int
    right: Tensor | None = field(init=False)  # 1 at every label, once for all members

    def __post_init__(self) -> None:
        right = None if self.y.is_floating_point() else F.one_hot(self.y, self.classes)
        object.__setattr__(self, "right", right)

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean cross-entropy or mean squared error, and the gradient."""
        if self.right is None:
            off = logits - self.y
            return off.square().mean(), off * (2 / off.numel())
        logs = torch.log_softmax(logits, 1)
        loss = F.nll_loss(logs, self.y)
        return loss, logs.exp_().sub_(self.right).mul_(1 / len(logs))


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
