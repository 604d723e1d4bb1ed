"""Gains from theory: σ_w and σ_b at criticality, and AutoInit's gain of every layer."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import Impossible, UserError
from initlab.inspection import NORMS, Parameter
from initlab.inspection.torch_internals import ConvNd
from initlab.models.layers import Dropout, WeightLayer
from initlab.schemes import Scheme
from initlab.theory.critical import Critical, critical, default_critical
from initlab.theory.maps import moments
from initlab.theory.nodes import BranchNode, LayerNode, Node
from initlab.theory.read_module import is_activation, read_module


def bind_critical_point(scheme: Scheme, act: Activation, sigma_b: float | None) -> Scheme:
    """Return a critical scheme with σ_w as its gain and σ_b in its bias rule; any other scheme unchanged.

    Without `sigma_b` and q_star it is the critical point at σ_b = 0, or the doubly critical one where that is unstable.

    Args:
        scheme: any scheme.
        act: the activation.
        sigma_b: std of the biases, or None.

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
    """Mean and variance of a layer's input."""

    mean: float = 0.0
    variance: float = 1.0


def autoinit_gains(
    module: nn.Module, parameters: Sequence[Parameter], layers: Mapping[str, WeightLayer], act: Activation
) -> dict[str, float]:
    """Return AutoInit's gain of every weight layer: 1/√(µ² + ν) of its inputs, so that its outputs have variance 1.

    Data and outputs of a norm have mean 0 and variance 1; a layer gives N(0, 1); an activation of it gives the mean and
    variance of φ; dropout adds its noise; where a residual branch joins, means and variances add. A mean over the
    positions of a map is taken to keep both (equal positions), because the size of a map is not known before the data.
    Source: Bingham and Miikkulainen (2023).

    Args:
        module: a module of a known structure, or with a single weight.
        parameters: its parameters.
        layers: the declared layers by name; those that a norm feeds get inputs of mean 0 and variance 1.
        act: the activation of initlab's own models.

    Raises:
        Impossible: initlab does not know how the signal runs through the module.

    >>> from initlab.activations import ACTIVATIONS
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> {name: round(gain, 4) for name, gain in autoinit_gains(net, [], {}, ACTIVATIONS["relu"]).items()}
    {'0': 1.0, '2': 1.4142}
    """
    gains: dict[str, float] = {}
    if isinstance(module, nn.Sequential) and _propagate_sequence(module, gains):
        return gains
    nodes = read_module(module, {}, act)
    if nodes is None:
        names = {p.layer for p in parameters if p.is_weight}
        if len(names) == 1:
            return {names.pop(): 1.0}
        raise Impossible(
            f"init=autoinit needs to know how the signal runs through "
            f"{type(module).__name__}: use mlp, cnn, resmlp, resnet or nn.Sequential, or a scheme that depends on "
            "no other layer, such as init=he_normal."
        )
    normed = {name for name, layer in layers.items() if layer.fed_by == "norm"}
    _propagate_nodes(nodes, SignalMoments(), gains, normed)
    return gains


def _propagate_nodes(
    nodes: Iterable[Node], signal: SignalMoments, gains: dict[str, float], normed: Set[str]
) -> SignalMoments:
    for node in nodes:
        if isinstance(node, LayerNode):
            signal = _propagate_layer(node, signal, gains, normed)
        elif isinstance(node, BranchNode):
            branch = _propagate_nodes(node.layers, signal, gains, normed)
            direct = signal if node.shortcut is None else _propagate_layer(node.shortcut, signal, gains, normed)
            mean = direct.mean + node.multiplier * branch.mean
            signal = SignalMoments(mean, direct.variance + node.multiplier**2 * branch.variance)
            signal = _activation_moments(node.act, signal)
    return signal


def _propagate_layer(
    layer: LayerNode, signal: SignalMoments, gains: dict[str, float], normed: Set[str]
) -> SignalMoments:
    gains[layer.name] = _gain(layer.name, SignalMoments() if layer.name in normed else signal, layer.keep)
    return _activation_moments(layer.act, SignalMoments())


def _propagate_sequence(module: nn.Sequential, gains: dict[str, float]) -> bool:
    # Norms included; False where it holds an unknown module.
    signal, keep = SignalMoments(), 1.0
    for name, child in module.named_children():
        if isinstance(child, (nn.Linear, ConvNd)):
            gains[name] = _gain(name, signal, keep)
            signal, keep = SignalMoments(), 1.0
        elif is_activation(child):
            signal = _activation_moments(activation(child), signal)
        elif isinstance(child, NORMS):
            signal = SignalMoments()
        elif isinstance(child, (nn.Dropout, Dropout)):
            keep = 1.0 - child.p
        elif not isinstance(child, (nn.Flatten, nn.Identity, nn.AdaptiveAvgPool2d)):
            return False
    return True


def _gain(name: str, signal: SignalMoments, keep: float) -> float:
    square = (signal.variance + signal.mean**2) / keep
    if not 0 < square < math.inf:
        raise Impossible(f"init=autoinit finds inputs of mean square {square:g} at {name}, which no gain brings to 1.")
    return 1 / math.sqrt(square)


def _activation_moments(act: Activation | None, signal: SignalMoments) -> SignalMoments:
    # Moments of φ(N(µ, ν)): of φ shifted by µ, as a function of a centered variable.
    if act is None:
        return signal
    shifted = moments(act if signal.mean == 0 else _shift_activation(act, signal.mean), signal.variance)
    mean = float(shifted.mean)
    return SignalMoments(mean, float(shifted.square) - mean**2)


@lru_cache(maxsize=256)
def _shift_activation(act: Activation, by: float) -> Activation:
    return replace(
        act,
        name=f"{act.name}(x + {by:g})",
        phi=lambda x, **parameters: act.phi(x + by, **parameters),
        kinks=tuple(kink - by for kink in act.kinks),
    )
