"""The per-layer forecast: what mean-field theory says each layer of a real network will measure before training.

Forward, second moments and products of pairs go through each layer (Poole et al. 2016), for maps position by position
(Xiao et al. 2018, *Dynamical isometry and a mean field theory of CNNs*):

    q_l = Var[W] Σ_inputs E[φ²] + Var[b]

Backward, the mean square gradient at the preactivations comes down from softmax cross-entropy (Schoenholz et al. 2017):

    δ²_l = E[φ′(√q_l z)²] · Var[W_{l+1}] · (connections to the layer above) · δ²_{l+1}

Residual branches add (Yang and Schoenholz 2017, *Mean field residual networks*). Where theory has no answer (norms,
unknown inputs, weights with a mean), rows are left out rather than guessed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr

from initlab.activations import Activation
from initlab.theory.dead_units import predict_dead_fraction
from initlab.theory.interpolation import InterpolatedMoments, through_activation
from initlab.theory.jacobian import JacobianChain
from initlab.theory.loss import logit_gradient
from initlab.theory.nodes import BranchNode, InputProducts, LayerNode, Node, PoolNode

COLUMNS = ("step", "layer", "index", "stat", "value", "source")


@dataclass(frozen=True)
class Signal:
    """What flows between layers: per sample and position, arrays [S, *map] and [P, *map].

    After a mean over positions only bounds on the second moment are known (`lowest`), and no products.
    """

    squares: np.ndarray
    products: np.ndarray | None
    means: np.ndarray
    lowest: np.ndarray | None = None


@dataclass
class NodeState:
    """What the forward pass met at one node, for the way back."""

    node: Node
    map: tuple[int, ...]
    q: np.ndarray | None = None
    lowest: np.ndarray | None = None
    products: np.ndarray | None = None
    response: InterpolatedMoments | None = None
    inner: list["NodeState"] = field(default_factory=list)
    shortcut: "NodeState | None" = None
    chain: JacobianChain | None = None
    gradient: float = math.nan


def forecast(nodes: Sequence[Node], inputs: InputProducts, classes: int | None = None) -> pd.DataFrame:
    """Predict q, c, mean, std, gradients, saturation, silence and Jacobians of every layer that theory can answer for.

    `grad_mean_square` is that of the loss gradient at the preactivations, for softmax cross-entropy averaged over
    `inputs.batch` samples; it needs `classes` and an answer for every layer up to the readout. `jacobian_mean` and
    `jacobian_var` are of the squared singular values of ∂h_l/∂input, in chains of dense layers.

    Returns a frame with the columns of `layers.csv`: step (0), layer, index (from 1), stat, value, source (predicted).

    >>> from initlab.activations import ACTIVATIONS
    >>> from initlab.theory.nodes import standard_inputs
    >>> he = LayerNode("hidden.0", fan_in=64, units=64, variance=2 / 64, act=ACTIVATIONS["relu"], fed_by="data")
    >>> forecast([he], standard_inputs(1.0)).query("stat == 'q'").value.round(9).tolist()
    [2.0]
    """
    rows: list[tuple[Any, ...]] = []
    for index, (layer, trace) in enumerate(layer_states(propagate(nodes, inputs, classes)), start=1):
        rows += [
            (0, layer.name, index, stat, value, "predicted") for stat, value in _layer_statistics(layer, trace, inputs)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def propagate(nodes: Sequence[Node], inputs: InputProducts, classes: int | None = None) -> list[NodeState]:
    """Send second moments and products forward and gradients back, and return what each node saw.

    Raises nothing: where theory has no answer, the fields of a trace stay empty.

    >>> from initlab.theory.nodes import standard_inputs
    >>> (trace,) = propagate([LayerNode("a", 2, 2, 0.5, fed_by="data")], standard_inputs(3.0))
    >>> trace.q.tolist()
    [3.0, 3.0]
    """
    signal: Signal | None = Signal(inputs.squares, inputs.products, np.zeros_like(inputs.squares))
    chain: JacobianChain | None = JacobianChain.start(inputs.squares)
    traces: list[NodeState] = []
    for node in nodes:
        trace, signal = _forward_node(node, signal, inputs)
        chain = (
            chain.through(node, trace.response)
            if chain and isinstance(node, LayerNode) and trace.q is not None
            else None
        )
        trace.chain = chain
        traces.append(trace)
    if classes is not None and signal is not None and isinstance(nodes[-1], LayerNode) and nodes[-1].act is None:
        _backward(traces, _readout_gradient(traces[-1], classes) / inputs.batch**2)
    return traces


def _forward_node(node: Node, signal: Signal | None, inputs: InputProducts) -> tuple[NodeState, Signal | None]:
    if signal is None:
        inner = [NodeState(layer, ()) for layer in node.layers] if isinstance(node, BranchNode) else []
        shortcut = NodeState(node.shortcut, ()) if isinstance(node, BranchNode) and node.shortcut else None
        return NodeState(node, (), inner=inner, shortcut=shortcut), None
    if isinstance(node, PoolNode):
        return NodeState(node, signal.squares.shape[1:]), _mean_over_positions(signal)
    if isinstance(node, LayerNode):
        trace = _preactivations(node, signal)
        return trace, _apply_activation(trace, node.act, inputs)
    return _forward_branch(node, signal, inputs)


def _preactivations(layer: LayerNode, signal: Signal) -> NodeState:
    """The preactivations of a layer: q and products, or nothing where theory has no answer."""
    trace = NodeState(layer, signal.squares.shape[1:])
    if not layer.answerable:
        return trace

    def through(x: np.ndarray, keep: float) -> np.ndarray:
        scale = layer.variance * layer.fan_in / keep
        if layer.taps is None:
            return scale * x.reshape(len(x), -1).mean(axis=1) + layer.bias_variance
        summed = layer.taps.sum(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return scale / math.prod(layer.taps.kernel) * summed + layer.bias_variance

    trace.q = through(signal.squares, layer.keep)
    trace.products = None if signal.products is None else through(signal.products, 1.0)
    trace.lowest = None if signal.lowest is None else through(signal.lowest, layer.keep)
    return trace


def _apply_activation(trace: NodeState, act: Activation | None, inputs: InputProducts) -> Signal | None:
    """What the next layer sees; the trace keeps the response for the way back."""
    if trace.q is None:
        return None
    if act is None:
        return Signal(trace.q, trace.products, np.zeros_like(trace.q), trace.lowest)
    if trace.lowest is not None:
        return None  # after a pooled layer q is not known well enough to go on
    trace.response, crossed = through_activation(act, trace.q, trace.products, inputs.pairs)
    return Signal(trace.response.square, crossed, trace.response.mean)


def _mean_over_positions(signal: Signal) -> Signal:
    axes = tuple(range(1, signal.squares.ndim))
    if not axes or math.prod(signal.squares.shape[1:]) == 1:
        products = None if signal.products is None else signal.products.reshape(len(signal.products))
        return Signal(signal.squares.reshape(-1), products, signal.means.reshape(-1))
    # positions of one map are correlated by an amount theory does not follow: between not at all and fully
    means, squares = signal.means.mean(axis=axes), signal.squares.mean(axis=axes)
    spread = (signal.squares - signal.means**2).mean(axis=axes)
    return Signal(squares, None, means, means**2 + spread / math.prod(signal.squares.shape[1:]))


def _forward_branch(node: BranchNode, signal: Signal, inputs: InputProducts) -> tuple[NodeState, Signal | None]:
    trace = NodeState(node, signal.squares.shape[1:])
    along: Signal | None = signal
    for layer in node.layers:
        inner, along = _forward_node(layer, along, inputs)
        trace.inner.append(inner)
    direct: Signal | None = signal
    if node.shortcut is not None:
        trace.shortcut, direct = _forward_node(node.shortcut, signal, inputs)
    # the last layer of the branch has weights of its own and mean 0: the sum has no cross term
    if along is None or direct is None or node.layers[-1].act is not None:
        return trace, None
    weight = node.multiplier**2
    trace.q = direct.squares + weight * along.squares
    if along.products is not None and direct.products is not None:
        trace.products = direct.products + weight * along.products
    if node.act is None:
        return trace, Signal(trace.q, trace.products, direct.means)
    if node.shortcut is None:
        return trace, None  # what comes through φ and an identity is no Gaussian: its sum's q is known, φ of it is not
    return trace, _apply_activation(trace, node.act, inputs)


def _readout_gradient(readout: NodeState, classes: int) -> np.ndarray:
    if readout.q is None:
        return np.full(1, np.nan)
    highest = logit_gradient(readout.q, classes)
    if readout.lowest is None:
        return highest
    return np.sqrt(highest * logit_gradient(readout.lowest, classes))


def _backward(traces: list[NodeState], gradient: np.ndarray) -> np.ndarray:
    """Bring the mean square gradient at the output of the last node down to the input of the first."""
    for trace in reversed(traces):
        node = trace.node
        if isinstance(node, PoolNode):
            positions = math.prod(trace.map)
            gradient = np.broadcast_to(
                gradient.reshape(-1, *[1] * len(trace.map)) / positions**2, (len(gradient), *trace.map)
            )
        elif isinstance(node, LayerNode):
            gradient = gradient if trace.response is None else gradient * trace.response.slope_square
            trace.gradient = float(gradient.mean())
            gradient = _gradient_at_inputs(node, gradient, trace.map)
        else:
            gradient = gradient if trace.response is None else gradient * trace.response.slope_square
            direct = gradient if trace.shortcut is None else _backward([trace.shortcut], gradient)
            along = _backward(trace.inner, node.multiplier**2 * gradient)
            if node.act is not None:  # the branch's last preactivation is then the sum itself
                trace.inner[-1].gradient = float(gradient.mean())
            gradient = direct + along
    return gradient


def _gradient_at_inputs(layer: LayerNode, gradient: np.ndarray, map_: tuple[int, ...]) -> np.ndarray:
    """Mean square gradient at a layer's inputs, from that at its preactivations: the adjoint of its sums."""
    scale = layer.variance * layer.units / layer.keep
    if layer.taps is None:
        return scale * np.broadcast_to(gradient.reshape(-1, *[1] * len(map_)), (len(gradient), *map_))
    place = torch.zeros(len(gradient), *map_, dtype=torch.float64, requires_grad=True)
    above = torch.from_numpy(np.ascontiguousarray(gradient))
    (below,) = torch.autograd.grad((layer.taps.sum(place) * above).sum(), place)
    return scale * below.numpy()


def layer_states(traces: Sequence[NodeState]) -> list[tuple[LayerNode, NodeState]]:
    """Every layer with its trace, in forward order; the shortcut of a branch after its layers."""
    found: list[tuple[LayerNode, NodeState]] = []
    for trace in traces:
        if isinstance(trace.node, LayerNode):
            found.append((trace.node, trace))
        elif isinstance(trace.node, BranchNode):
            inner = layer_states(trace.inner)
            if trace.node.act is not None and trace.q is not None:
                layer, last = inner[-1]
                whole = NodeState(layer, last.map, trace.q, None, trace.products, gradient=last.gradient)
                inner[-1] = (replace(layer, act=trace.node.act), whole)
            found += inner + layer_states([trace.shortcut] if trace.shortcut else [])
    return found


def _layer_statistics(layer: LayerNode, trace: NodeState, inputs: InputProducts) -> list[tuple[str, float]]:
    """The statistics of one layer's preactivations, as far as they are known."""
    found: list[tuple[str, float]] = []
    if trace.q is not None and trace.lowest is None:
        q = float(trace.q.mean())
        found += [("q", q), ("mean", 0.0), ("std", math.sqrt(q))]
        c = _mean_correlation(trace, inputs)
        if math.isfinite(c):
            found.append(("c", c))
        if layer.act is not None:
            if layer.act.saturation is not None:
                found.append(("saturated_fraction", _fraction_outside(trace.q, layer.act.saturation)))
            silent = predict_dead_fraction(layer.act, trace.q, c, inputs.batch)
            if silent is not None:
                found.append(("dead_fraction", silent))
    if math.isfinite(trace.gradient):
        found.append(("grad_mean_square", trace.gradient))
    if trace.chain is not None:
        found += [("jacobian_mean", trace.chain.mean), ("jacobian_var", trace.chain.variance)]
    return found


def _mean_correlation(trace: NodeState, inputs: InputProducts) -> float:
    """Mean over pairs of the cosine between their preactivations, whole maps as one vector."""
    if trace.q is None or trace.products is None:
        return math.nan
    lengths = trace.q.reshape(len(trace.q), -1).sum(axis=1)
    norms = np.sqrt(lengths[inputs.pairs[:, 0]] * lengths[inputs.pairs[:, 1]])
    if not (norms > 0).all():
        return math.nan
    return float((trace.products.reshape(len(norms), -1).sum(axis=1) / norms).mean())


def _fraction_outside(q: np.ndarray, interval: tuple[float, float]) -> float:
    low, high = interval
    std = np.sqrt(np.maximum(q, np.finfo(float).tiny))
    return float((ndtr(low / std) + ndtr(-high / std)).mean())
