"""What theory decides before a scheme fills: σ_w and σ_b at criticality, and AutoInit's gain of every layer."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import Impossible, UserError
from initlab.inspection import NORMS, Parameter
from initlab.models.layers import Dropout, WeightLayer
from initlab.schemes import Scheme
from initlab.theory.critical import Critical, critical, default_critical
from initlab.theory.maps import moments
from initlab.theory.nodes import BranchNode, LayerNode, Node
from initlab.theory.read_module import is_activation, read_module


def bind_critical_point(scheme: Scheme, act: Activation, sigma_b: float | None) -> Scheme:
    """Return a critical scheme with σ_w as its gain and σ_b in its bias rule; any other scheme as it is.

    Nothing given means the critical point at σ_b = 0, or the doubly critical one where the first repels.

    Raises:
        UserError: both `init.sigma_b` and `init.q_star` are given.
        Impossible: the activation has no critical point there.

    >>> from initlab.activations import ACTIVATIONS
    >>> from initlab.schemes import SCHEMES
    >>> tanh = ACTIVATIONS["tanh"]
    >>> round(bind_critical_point(SCHEMES["critical"], tanh, 0.3).gain(tanh, None), 4)
    1.3956
    """
    if scheme.derived != "critical":
        return scheme
    bias = scheme.parameters["sigma_b"] if sigma_b is None else sigma_b
    q_star = scheme.parameters["q_star"]
    if bias is not None and q_star is not None:
        raise UserError(
            f"init.sigma_b={bias:g} and init.q_star={q_star:g} cannot both be given for init={scheme.name}: "
            "each determines the other, leave one out."
        )
    try:
        point = _cached_critical_point(act, bias, q_star)
    except UserError as reason:  # in a grid, a cell that cannot exist
        raise Impossible(f"init={scheme.name} cannot be: {reason}") from reason

    def sigma_w(*_: object, **__: object) -> float:
        return point.sigma_w

    bound = {**scheme.parameters, "sigma_b": point.sigma_b}
    return replace(scheme, own_gain=sigma_w, parameters=bound, bias=scheme.bias if point.sigma_b else None)


@lru_cache(maxsize=1024)
def _cached_critical_point(act: Activation, sigma_b: float | None, q_star: float | None) -> Critical:
    if sigma_b is None and q_star is None:
        return default_critical(act)
    return critical(act, sigma_b=sigma_b, q_star=q_star)


class SignalMoments(NamedTuple):
    """Mean and variance of what a layer is fed."""

    mean: float = 0.0
    variance: float = 1.0


def autoinit_gains(
    module: nn.Module, parameters: Sequence[Parameter], layers: Mapping[str, WeightLayer], act: Activation
) -> dict[str, float]:
    """Return AutoInit's gain of every weight layer: 1/√(µ² + ν) of its inputs, so that its outputs have variance 1.

    Data and what comes out of a norm have mean 0 and variance 1; a layer gives N(0, 1); an activation of it gives the
    mean and variance of φ; dropout adds its noise; where a residual branch joins, means and variances add. A mean over
    the positions of a map is taken to keep both (positions that say the same), because the size of a map is not known
    before the data. Source: Bingham and Miikkulainen (2023).

    Raises:
        Impossible: initlab does not know how the signal runs through the module.

    >>> from initlab.activations import ACTIVATIONS
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> {name: round(gain, 4) for name, gain in autoinit_gains(net, [], {}, ACTIVATIONS["relu"]).items()}
    {'0': 1.0, '2': 1.4142}
    """
    found: dict[str, float] = {}
    if isinstance(module, nn.Sequential) and _propagate_sequence(module, found):
        return found
    nodes = read_module(module, {}, act)
    if nodes is None:
        alone = {p.layer for p in parameters if p.is_weight}
        if len(alone) == 1:
            return {alone.pop(): 1.0}
        raise Impossible(
            f"init=autoinit follows the signal from layer to layer and does not know how it runs through "
            f"{type(module).__name__}: use mlp, cnn, resmlp, resnet or nn.Sequential, or a scheme that looks at no "
            "other layer, such as init=he_normal."
        )
    _propagate_nodes(
        nodes, SignalMoments(), found, normed={name for name, layer in layers.items() if layer.fed_by == "norm"}
    )
    return found


def _propagate_nodes(
    nodes: Iterable[Node], flow: SignalMoments, found: dict[str, float], normed: Set[str]
) -> SignalMoments:
    for node in nodes:
        if isinstance(node, LayerNode):
            flow = _propagate_layer(node, flow, found, normed)
        elif isinstance(node, BranchNode):
            along = _propagate_nodes(node.layers, flow, found, normed)
            direct = flow if node.shortcut is None else _propagate_layer(node.shortcut, flow, found, normed)
            mean = direct.mean + node.multiplier * along.mean
            total = SignalMoments(mean, direct.variance + node.multiplier**2 * along.variance)
            flow = total if node.act is None else _activation_moments(node.act, total)
    return flow


def _propagate_layer(layer: LayerNode, flow: SignalMoments, found: dict[str, float], normed: Set[str]) -> SignalMoments:
    found[layer.name] = _gain(layer.name, SignalMoments() if layer.name in normed else flow, layer.keep)
    return SignalMoments() if layer.act is None else _activation_moments(layer.act, SignalMoments())


def _propagate_sequence(module: nn.Sequential, found: dict[str, float]) -> bool:
    """Follow a plain sequence, norms included; False where it holds a module that initlab does not know."""
    flow, keep = SignalMoments(), 1.0
    for name, child in module.named_children():
        if isinstance(child, (nn.Linear, nn.modules.conv._ConvNd)):
            found[name] = _gain(name, flow, keep)
            flow, keep = SignalMoments(), 1.0
        elif is_activation(child):
            flow = _activation_moments(activation(child), flow)
        elif isinstance(child, NORMS):
            flow = SignalMoments()
        elif isinstance(child, (nn.Dropout, Dropout)):
            keep = 1.0 - child.p
        elif not isinstance(child, (nn.Flatten, nn.Identity, nn.AdaptiveAvgPool2d)):
            return False
    return True


def _gain(name: str, flow: SignalMoments, keep: float) -> float:
    square = (flow.variance + flow.mean**2) / keep
    if not 0 < square < math.inf:
        raise Impossible(f"init=autoinit finds inputs of mean square {square:g} at {name}, which no gain brings to 1.")
    return 1 / math.sqrt(square)


def _activation_moments(act: Activation, flow: SignalMoments) -> SignalMoments:
    """Moments of φ(N(µ, ν)): of φ shifted by µ, as a function of a centred variable."""
    here = moments(act if flow.mean == 0 else _shift_activation(act, flow.mean), flow.variance)
    mean = float(here.mean)
    return SignalMoments(mean, float(here.square) - mean**2)


@lru_cache(maxsize=256)
def _shift_activation(act: Activation, by: float) -> Activation:
    phi = act.phi

    return replace(
        act,
        name=f"{act.name}(x + {by:g})",
        phi=lambda x, **parameters: phi(x + by, **parameters),
        kinks=tuple(kink - by for kink in act.kinks),
    )
