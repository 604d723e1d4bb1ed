"""From a module to the nodes that theory reads: declared structures and `nn.Sequential`; else there is no answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from initlab.activations import Activation, activation
from initlab.inspection import NORMS
from initlab.inspection.torch_internals import ConvNd
from initlab.models.layers import Dropout, MeanPool, ResidualSum, WeightLayer
from initlab.theory.nodes import BranchNode, LayerNode, Node, PoolNode, Taps


@dataclass(frozen=True)
class LayerLaw:
    """How the weight W and the bias b of one layer are drawn.

    Attributes:
        variance, mean: of an element of W.
        bias_variance: of an element of b.
        orthogonal: W is Haar-distributed.
        centered: a convolution's weights are 0 except at the center tap.
        known: elements are random enough for mean-field theory (independent, orthogonal, or all zero; not a pattern).
    """

    variance: float
    mean: float = 0.0
    bias_variance: float = 0.0
    orthogonal: bool = False
    centered: bool = False
    known: bool = True


UNKNOWN_LAW = LayerLaw(math.nan, known=False)


def read_module(module: nn.Module, laws: Mapping[str, LayerLaw], act: Activation | None = None) -> list[Node] | None:
    """Describe a network layer by layer in forward order; None for modules whose structure is not known.

    A structure is known of an `nn.Sequential` and of a module that declares `structure`, as initlab's chains and
    residual networks do. Layers next to a norm are described as such, and theory leaves them out.

    Args:
        module: the network, on any device (`meta` too).
        laws: name of a module that owns a weight -> how it is drawn.
        act: the activation of a declared structure; read from the module if left out.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> nodes = read_module(net, {"0": LayerLaw(0.25), "2": LayerLaw(0.125)})
    >>> [(n.name, n.fed_by, n.act.name if n.act else None) for n in nodes]
    [('0', 'data', 'Tanh'), ('2', 'activation', None)]
    """
    if type(module) is nn.Sequential:
        return _read_sequential(module, laws)
    structure: Sequence[Any] | None = getattr(module, "structure", None)
    return None if structure is None else [_read_step(step, module, laws, act) for step in structure]


def _read_step(
    step: WeightLayer | ResidualSum | MeanPool, module: nn.Module, laws: Mapping[str, LayerLaw], act: Activation | None
) -> Node:
    def node(layer: WeightLayer) -> LayerNode:
        phi = layer.activation and (act or activation(module.get_submodule(layer.activation)))
        keep = _keep_fraction(module.get_submodule(layer.dropout)) if layer.dropout else 1.0
        fed_by = "norm" if layer.normed else layer.fed_by
        return layer_node(layer.name, module.get_submodule(layer.name), laws, fed_by, phi or None, keep)

    if isinstance(step, MeanPool):
        return PoolNode()
    if isinstance(step, WeightLayer):
        return node(step)
    *inner, last = map(node, step.layers)
    multiplier: Any = module.get_submodule(step.multiplier)
    shortcut = None if step.shortcut is None else node(step.shortcut)
    return BranchNode((*inner, replace(last, act=None)), float(multiplier.value), shortcut, last.act)


def _read_sequential(module: nn.Sequential, laws: Mapping[str, LayerLaw]) -> list[Node] | None:
    nodes: list[Node] = []
    fed_by, keep = "data", 1.0
    for name, child in module.named_children():
        last = nodes[-1] if nodes else None
        if isinstance(child, (nn.Linear, ConvNd)):
            nodes.append(layer_node(name, child, laws, fed_by, None, keep))
            fed_by, keep = "residual", 1.0  # without an activation between, the next input is linear
        elif is_activation(child) and isinstance(last, LayerNode) and last.act is None and fed_by == "residual":
            nodes[-1] = replace(last, act=activation(child))
            fed_by = "activation"
        elif isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            nodes.append(PoolNode())
        elif isinstance(child, (nn.Dropout, Dropout)):
            keep = _keep_fraction(child)
        elif isinstance(child, NORMS):
            fed_by = "norm"
        elif not isinstance(child, (nn.Flatten, nn.Identity)):
            return None
    return nodes


def is_activation(child: nn.Module) -> bool:
    """Return whether a module of torch's applies one function to every element.

    >>> is_activation(nn.GELU()), is_activation(nn.Softmax(-1))
    (True, False)
    """
    of_torch = type(child).__module__ == "torch.nn.modules.activation"
    return of_torch and not isinstance(child, (nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention, nn.GLU, nn.RReLU))


def _keep_fraction(dropout: Any) -> float:
    return 1.0 - dropout.p if dropout.training else 1.0


def layer_node(
    name: str, owner: nn.Module, laws: Mapping[str, LayerLaw], fed_by: str, act: Activation | None, keep: float = 1.0
) -> LayerNode:
    """Describe the layer of a module that owns a weight; one that theory cannot follow is fed by `unknown`.

    >>> layer_node("a", nn.Conv2d(2, 3, 3, padding=1), {"a": LayerLaw(0.1)}, "data", None).taps.circular
    False
    """
    law = laws.get(name, UNKNOWN_LAW)
    more: dict[str, Any] = {"mean": law.mean if law.known else math.nan, "bias_variance": law.bias_variance}
    more |= {"orthogonal": law.orthogonal, "act": act, "keep": keep}
    if isinstance(owner, nn.Linear):
        return LayerNode(name, owner.in_features, owner.out_features, law.variance, fed_by=fed_by, **more)
    taps = _read_taps(owner, law.centered)
    if not isinstance(owner, ConvNd) or taps is None:
        return LayerNode(name, 1, 1, math.nan, fed_by="unknown", **more)
    reach = math.prod(taps.kernel)
    # A centered weight is g²/n on one tap and 0 on the others; its promised variance is the average over all of them.
    variance = law.variance * (math.prod(owner.kernel_size) / reach)
    return LayerNode(name, owner.in_channels * reach, owner.out_channels, variance, fed_by=fed_by, taps=taps, **more)


def _read_taps(owner: nn.Module, centered: bool) -> Taps | None:
    if not isinstance(owner, ConvNd) or owner.transposed or owner.groups != 1:
        return None
    if set(owner.dilation) != {1} or owner.padding_mode not in ("zeros", "circular"):
        return None
    half = tuple(k // 2 for k in owner.kernel_size)
    if (centered or owner.padding == "same") and any(k % 2 == 0 for k in owner.kernel_size):
        return None
    named: dict[Any, Any] = {"same": half, "valid": (0,) * len(half)}
    padding = named.get(owner.padding, owner.padding)
    if centered:
        ones = (1,) * len(half)
        return Taps(ones, tuple(owner.stride), (0,) * len(half)) if tuple(padding) == half else None
    return Taps(tuple(owner.kernel_size), tuple(owner.stride), tuple(padding), owner.padding_mode == "circular")


def hidden_sigmas(nodes: Sequence[Node]) -> tuple[float, float] | None:
    """Return σ_w and σ_b of the hidden layers that an activation feeds (medians); None where there is no plain chain.

    >>> nodes = [LayerNode("a", 4, 8, 0.25, act=None), LayerNode("b", 8, 8, 0.5, act=activation("tanh"))]
    >>> hidden_sigmas(nodes)
    (2.0, 0.0)
    """
    if any(isinstance(node, BranchNode) for node in nodes):
        return None
    chain = [node for node in nodes if isinstance(node, LayerNode)]
    hidden = [x for x in chain if x.act is not None and x.answerable and x.fed_by == "activation"]
    if not hidden:
        return None
    middle = len(hidden) // 2
    weight = sorted(x.variance * x.fan_in for x in hidden)[middle]
    return math.sqrt(weight), math.sqrt(sorted(x.bias_variance for x in hidden)[middle])
