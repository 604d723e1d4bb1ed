"""From a module to the records that theory reads: chains, residual networks and `nn.Sequential`; else no answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from initlab.activations import Activation, activation
from initlab.inspection import NORMS
from initlab.models.layers import Dropout
from initlab.models.plain import Chain
from initlab.models.residual import ConvBlock, ResMLP, ResNet
from initlab.theory.nodes import BranchNode, LayerNode, Node, PoolNode, Taps


@dataclass(frozen=True)
class LayerLaw:
    """How the weight and bias of one layer are drawn.

    Attributes: `variance`, `mean` of an element of W; `bias_variance`; `orthogonal`: W is Haar-distributed; `centred`:
    a convolution's weights are 0 but at the centre tap; `known`: elements are random enough for mean-field theory
    (independent, orthogonal, or all zero; not a pattern).
    """

    variance: float
    mean: float = 0.0
    bias_variance: float = 0.0
    orthogonal: bool = False
    centred: bool = False
    known: bool = True


UNKNOWN_LAW = LayerLaw(math.nan, known=False)


def read_module(module: nn.Module, drawn: Mapping[str, LayerLaw], act: Activation | None = None) -> list[Node] | None:
    """Describe a network layer by layer in forward order; None for modules whose structure is not known.

    Arguments: `drawn`: name of a module that owns a weight -> how it is drawn. `act`: the activation of a network of
    ours; read from the module if left out. Layers behind a norm are described as such, and theory leaves them out.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> nodes = read_module(net, {"0": LayerLaw(0.25), "2": LayerLaw(0.125)})
    >>> [(n.name, n.fed_by, n.act.name if n.act else None) for n in nodes]
    [('0', 'data', 'Tanh'), ('2', 'activation', None)]
    """
    for kind, read in _READERS.items():
        if type(module) is kind:
            return read(module, drawn, act)
    return None


def _chain(module: Any, drawn: Mapping[str, LayerLaw], act: Activation | None) -> list[Node]:
    nodes: list[Node] = []
    keep = 1.0
    for k, owner in enumerate(module.hidden):
        fed_by = "norm" if module.norms is not None else "data" if k == 0 else "activation"
        nodes.append(layer_node(f"hidden.{k}", owner, drawn, fed_by, act or activation(module.acts[k]), keep))
        keep = _keep_fraction(module.dropouts[k]) if module.dropouts is not None else 1.0
    pool: list[Node] = [] if module.pool is None else [PoolNode()]
    return [*nodes, *pool, layer_node("readout", module.readout, drawn, "activation", None, keep)]


def _resmlp(module: Any, drawn: Mapping[str, LayerLaw], act: Activation | None) -> list[Node]:
    fed_by = "norm" if module.norm is not None else "residual"
    nodes: list[Node] = [layer_node("first", module.first, drawn, "data", None)]
    for k, block in enumerate(module.blocks):
        keep = _keep_fraction(block.dropout) if block.dropout is not None else 1.0
        inner = layer_node(f"blocks.{k}.inner", block.inner, drawn, fed_by, act or activation(block.act))
        outer = layer_node(f"blocks.{k}.outer", block.outer, drawn, "activation", None, keep)
        nodes.append(BranchNode((inner, outer), multiplier=block.branch.value))
    return [*nodes, layer_node("readout", module.readout, drawn, fed_by, None)]


def _resnet(module: Any, drawn: Mapping[str, LayerLaw], act: Activation | None) -> list[Node]:
    fed_by = "data" if module.norm is None else "norm"
    nodes: list[Node] = [layer_node("first", module.first, drawn, fed_by, act or activation(module.act))]
    for s, stage in enumerate(module.stages):
        for k, block in enumerate(stage):
            nodes.append(_conv_block(f"stages.{s}.{k}", block, drawn, act))
    return [*nodes, PoolNode(), layer_node("readout", module.readout, drawn, "activation", None)]


def _conv_block(name: str, block: ConvBlock, drawn: Mapping[str, LayerLaw], act: Activation | None) -> BranchNode:
    fed_by = "activation" if block.norm1 is None else "norm"
    first = layer_node(f"{name}.conv1", block.conv1, drawn, fed_by, act or activation(block.act1))
    second = layer_node(f"{name}.conv2", block.conv2, drawn, fed_by, None)
    shortcut = None
    if block.shortcut is not None:
        shortcut = layer_node(f"{name}.shortcut", block.shortcut, drawn, "activation", None)
    return BranchNode((first, second), float(block.branch.value), shortcut, act or activation(block.act2))


def _sequence(module: nn.Sequential, drawn: Mapping[str, LayerLaw], act: Activation | None) -> list[Node] | None:
    nodes: list[Node] = []
    fed_by, keep = "data", 1.0
    for name, child in module.named_children():
        last = nodes[-1] if nodes else None
        if isinstance(child, (nn.Linear, nn.modules.conv._ConvNd)):
            nodes.append(layer_node(name, child, drawn, fed_by, None, keep))
            fed_by, keep = "residual", 1.0  # without an activation between, what comes in is linear
        elif is_activation(child) and isinstance(last, LayerNode) and last.act is None and fed_by == "residual":
            nodes[-1] = LayerNode(**{**last.__dict__, "act": activation(child)})
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


_READERS: dict[type[nn.Module], Callable[[Any, Mapping[str, LayerLaw], Activation | None], list[Node] | None]] = {
    Chain: _chain,
    ResMLP: _resmlp,
    ResNet: _resnet,
    nn.Sequential: _sequence,
}


def is_activation(child: nn.Module) -> bool:
    """Say whether a module of torch's applies one function to every element.

    >>> is_activation(nn.GELU()), is_activation(nn.Softmax(-1))
    (True, False)
    """
    of_torch = type(child).__module__ == "torch.nn.modules.activation"
    return of_torch and not isinstance(child, (nn.Softmax, nn.LogSoftmax, nn.MultiheadAttention, nn.GLU, nn.RReLU))


def _keep_fraction(dropout: Any) -> float:
    return 1.0 - dropout.p if dropout.training else 1.0


def layer_node(
    name: str, owner: nn.Module, drawn: Mapping[str, LayerLaw], fed_by: str, act: Activation | None, keep: float = 1.0
) -> LayerNode:
    """Describe the layer of a module that owns a weight.

    >>> layer_node("a", nn.Conv2d(2, 3, 3, padding=1), {"a": LayerLaw(0.1)}, "data", None).taps.circular
    False
    """
    how = drawn.get(name, UNKNOWN_LAW)
    mean = how.mean if how.known else math.nan
    common: dict[str, Any] = {"bias_variance": how.bias_variance, "mean": mean, "orthogonal": how.orthogonal}
    common |= {"act": act, "keep": keep}
    if isinstance(owner, nn.Linear):
        return LayerNode(name, owner.in_features, owner.out_features, how.variance, fed_by=fed_by, **common)
    taps = _read_taps(owner, how.centred)
    if not isinstance(owner, nn.modules.conv._ConvNd) or taps is None:
        return LayerNode(name, 1, 1, math.nan, fed_by="unknown", **common)
    reach = math.prod(taps.kernel)
    # a centred weight is g²/n on one tap and 0 on the others, over which its promised variance is the average
    variance = how.variance * (math.prod(owner.kernel_size) / reach)
    return LayerNode(name, owner.in_channels * reach, owner.out_channels, variance, fed_by=fed_by, taps=taps, **common)


def _read_taps(owner: nn.Module, centred: bool) -> Taps | None:
    if not isinstance(owner, nn.modules.conv._ConvNd) or owner.transposed or owner.groups != 1:
        return None
    if set(owner.dilation) != {1} or owner.padding_mode not in ("zeros", "circular"):
        return None
    half = tuple(k // 2 for k in owner.kernel_size)
    padding = owner.padding if not isinstance(owner.padding, str) else half if owner.padding == "same" else None
    if padding is None or any(k % 2 == 0 for k in owner.kernel_size if owner.padding == "same" or centred):
        padding = (0,) * len(half) if owner.padding == "valid" and not centred else None
    if padding is None:
        return None
    if centred:
        ones = (1,) * len(half)
        return Taps(ones, tuple(owner.stride), (0,) * len(half)) if tuple(padding) == half else None
    return Taps(tuple(owner.kernel_size), tuple(owner.stride), tuple(padding), owner.padding_mode == "circular")


def hidden_sigmas(nodes: Sequence[Node]) -> tuple[float, float] | None:
    """σ_w and σ_b of the hidden layers that an activation feeds (medians); None where there is no plain chain.

    >>> nodes = [LayerNode("a", 4, 8, 0.25, act=None), LayerNode("b", 8, 8, 0.5, act=activation("tanh"))]
    >>> hidden_sigmas(nodes)
    (2.0, 0.0)
    """
    chain = [node for node in nodes if isinstance(node, LayerNode)]
    if len(chain) != len([node for node in nodes if not isinstance(node, PoolNode)]):
        return None
    middle = [x for x in chain if x.act is not None and x.answerable and x.fed_by == "activation"]
    if not middle:
        return None
    wide = sorted(x.variance * x.fan_in for x in middle)[len(middle) // 2]
    return math.sqrt(wide), math.sqrt(sorted(x.bias_variance for x in middle)[len(middle) // 2])
