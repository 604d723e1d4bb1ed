"""The per-layer forecast: what mean-field theory predicts of each layer of a real network before training.

Forward, second moments and products of pairs go through each layer (Poole et al. 2016), for maps position by position
(Xiao et al. 2018, *Dynamical isometry and a mean field theory of CNNs*):

    q_l = Var[W] Σ_inputs E[φ²] + Var[b]

Backward, the mean square gradient at the preactivations comes down from softmax cross-entropy (Schoenholz et al. 2017):

    δ²_l = E[φ′(√q_l z)²] · Var[W_{l+1}] · (connections to the layer above) · δ²_{l+1}

Residual branches add (Yang and Schoenholz 2017, *Mean field residual networks*). Where theory has no answer (norms,
unknown inputs, weights with a mean), there are no rows.
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
    """What is known at one node: its preactivations from the forward pass, its gradient from the backward pass.

    Attributes:
        node: the node.
        map: shape of the map at its input; () without one.
        q: second moments of its preactivations [S, *map]; None where theory has no answer.
        lowest: lower bounds of them, behind a mean over positions.
        products: of pairs of preactivations [P, *map].
        response: moments of its activation at `q`.
        inner: the states of a branch's layers.
        shortcut: the state of a branch's shortcut.
        chain: moments of the Jacobian from the input to here.
        gradient: mean square gradient at its preactivations; NaN where it is not known.
    """

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
    """Predict q, c, mean, std, gradients, saturation, dead units and Jacobians of every layer that theory can follow.

    `grad_mean_square` is that of the loss gradient at the preactivations, for softmax cross-entropy averaged over
    `inputs.batch` samples; it needs `classes` and an answer for every layer up to the readout. `jacobian_mean` and
    `jacobian_var` are of the squared singular values of ∂h_l/∂input, in chains of dense layers.

    Args:
        nodes: the network in forward order.
        inputs: second moments and products of what it is fed.
        classes: number of outputs.

    Returns:
        A frame with the columns of `layers.csv`: step (0), layer, index (from 1), stat, value, source (predicted).

    >>> from initlab.activations import ACTIVATIONS
    >>> from initlab.theory.nodes import standard_inputs
    >>> he = LayerNode("hidden.0", fan_in=64, units=64, variance=2 / 64, act=ACTIVATIONS["relu"], fed_by="data")
    >>> forecast([he], standard_inputs(1.0)).query("stat == 'q'").value.round(9).tolist()
    [2.0]
    """
    rows: list[tuple[Any, ...]] = []
    for index, (layer, state) in enumerate(layer_states(propagate(nodes, inputs, classes)), start=1):
        stats = _layer_statistics(layer, state, inputs)
        rows += [(0, layer.name, index, stat, value, "predicted") for stat, value in stats.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def propagate(nodes: Sequence[Node], inputs: InputProducts, classes: int | None = None) -> list[NodeState]:
    """Send second moments and products forward and gradients back; arguments as in `forecast`.

    Returns:
        One state per node; where theory has no answer, its fields stay empty.

    >>> from initlab.theory.nodes import standard_inputs
    >>> (state,) = propagate([LayerNode("a", 2, 2, 0.5, fed_by="data")], standard_inputs(3.0))
    >>> state.q.tolist()
    [3.0, 3.0]
    """
    signal: Signal | None = Signal(inputs.squares, inputs.products, np.zeros_like(inputs.squares))
    chain = JacobianChain.start(inputs.squares)
    states: list[NodeState] = []
    for node in nodes:
        state, signal = _forward_node(node, signal, inputs)
        chain = chain.through(node, state.response) if chain and state.q is not None else None
        state.chain = chain
        states.append(state)
    if classes is not None and signal is not None and isinstance(nodes[-1], LayerNode) and nodes[-1].act is None:
        _backward(states, _readout_gradient(signal, classes) / inputs.batch**2)
    return states


def _forward_node(node: Node, signal: Signal | None, inputs: InputProducts) -> tuple[NodeState, Signal | None]:
    state = NodeState(node, () if signal is None else signal.squares.shape[1:])
    if isinstance(node, BranchNode):
        return state, _forward_branch(state, node, signal, inputs)
    if signal is None:
        return state, None
    if isinstance(node, PoolNode):
        return state, _mean_over_positions(signal)
    if node.answerable:
        _set_preactivations(state, node, signal)
    return state, _apply_activation(state, node.act, inputs)


def _set_preactivations(state: NodeState, layer: LayerNode, signal: Signal) -> None:
    def sums(x: np.ndarray, keep: float = 1.0) -> np.ndarray:
        scale = layer.variance * layer.fan_in / keep
        if layer.taps is None:
            return scale * x.reshape(len(x), -1).mean(axis=1) + layer.bias_variance
        summed = layer.taps.sum(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return scale / math.prod(layer.taps.kernel) * summed + layer.bias_variance

    state.q = sums(signal.squares, layer.keep)
    state.products = None if signal.products is None else sums(signal.products)
    state.lowest = None if signal.lowest is None else sums(signal.lowest, layer.keep)


def _apply_activation(state: NodeState, act: Activation | None, inputs: InputProducts) -> Signal | None:
    """Return what the next layer is fed; the state keeps the response for the backward pass."""
    if state.q is None:
        return None
    if act is None:
        return Signal(state.q, state.products, np.zeros_like(state.q), state.lowest)
    if state.lowest is not None:
        return None  # after a pooled layer q is not known well enough to go on
    state.response, products = through_activation(act, state.q, state.products, inputs.pairs)
    return Signal(state.response.square, products, state.response.mean)


def _mean_over_positions(signal: Signal) -> Signal:
    positions = math.prod(signal.squares.shape[1:])
    if positions == 1:
        products = None if signal.products is None else signal.products.reshape(len(signal.products))
        return Signal(signal.squares.reshape(-1), products, signal.means.reshape(-1))
    # Positions of one map are correlated by an amount that theory does not follow: between not at all and fully.
    axes = tuple(range(1, signal.squares.ndim))
    means, squares = signal.means.mean(axis=axes), signal.squares.mean(axis=axes)
    spread = (signal.squares - signal.means**2).mean(axis=axes)
    return Signal(squares, None, means, means**2 + spread / positions)


def _forward_branch(state: NodeState, node: BranchNode, signal: Signal | None, inputs: InputProducts) -> Signal | None:
    along = direct = signal
    for layer in node.layers:
        inner, along = _forward_node(layer, along, inputs)
        state.inner.append(inner)
    if node.shortcut is not None:
        state.shortcut, direct = _forward_node(node.shortcut, signal, inputs)
    # The last layer of the branch has its own weights, of mean 0: the sum has no cross term.
    if along is None or direct is None or node.layers[-1].act is not None:
        return None
    weight = node.multiplier**2
    state.q = direct.squares + weight * along.squares
    if along.products is not None and direct.products is not None:
        state.products = direct.products + weight * along.products
    if node.act is None:
        return Signal(state.q, state.products, direct.means)
    # What comes through φ and an identity is no Gaussian: q of the sum is known, φ of it is not.
    return None if node.shortcut is None else _apply_activation(state, node.act, inputs)


def _readout_gradient(logits: Signal, classes: int) -> np.ndarray:
    highest = logit_gradient(logits.squares, classes)
    return highest if logits.lowest is None else np.sqrt(highest * logit_gradient(logits.lowest, classes))


def _backward(states: list[NodeState], gradient: np.ndarray) -> np.ndarray:
    """Bring the mean square gradient at the output of the last node down to the input of the first."""
    for state in reversed(states):
        node = state.node
        if state.response is not None:
            gradient = gradient * state.response.slope_square
        if isinstance(node, PoolNode):
            gradient = _spread(gradient / math.prod(state.map) ** 2, state.map)
        elif isinstance(node, LayerNode):
            state.gradient = float(gradient.mean())
            gradient = _gradient_at_inputs(node, gradient, state.map)
        else:
            direct = gradient if state.shortcut is None else _backward([state.shortcut], gradient)
            along = _backward(state.inner, node.multiplier**2 * gradient)
            if node.act is not None:  # the branch's last preactivation is then the sum itself
                state.inner[-1].gradient = float(gradient.mean())
            gradient = direct + along
    return gradient


def _spread(gradient: np.ndarray, map_: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(gradient.reshape(-1, *[1] * len(map_)), (len(gradient), *map_))


def _gradient_at_inputs(layer: LayerNode, gradient: np.ndarray, map_: tuple[int, ...]) -> np.ndarray:
    """Return the mean square gradient at a layer's inputs from that at its preactivations: the adjoint of its sums."""
    scale = layer.variance * layer.units / layer.keep
    if layer.taps is None:
        return scale * _spread(gradient, map_)
    inputs = torch.zeros(len(gradient), *map_, dtype=torch.float64, requires_grad=True)
    above = torch.from_numpy(np.ascontiguousarray(gradient))
    (below,) = torch.autograd.grad((layer.taps.sum(inputs) * above).sum(), inputs)
    return scale * below.numpy()


def layer_states(states: Sequence[NodeState]) -> list[tuple[LayerNode, NodeState]]:
    """Return every layer with its state in forward order, the shortcut of a branch after its layers."""
    pairs: list[tuple[LayerNode, NodeState]] = []
    for state in states:
        if isinstance(state.node, LayerNode):
            pairs.append((state.node, state))
        elif isinstance(state.node, BranchNode):
            inner = layer_states(state.inner)
            if state.node.act is not None and state.q is not None:
                layer, last = inner[-1]
                total = NodeState(layer, last.map, state.q, None, state.products, gradient=last.gradient)
                inner[-1] = (replace(layer, act=state.node.act), total)
            pairs += inner + layer_states([state.shortcut] if state.shortcut else [])
    return pairs


def _layer_statistics(layer: LayerNode, state: NodeState, inputs: InputProducts) -> dict[str, float]:
    """Return the statistics of one layer's preactivations, as far as they are known."""
    stats: dict[str, float] = {}
    if state.q is not None and state.lowest is None:
        q = float(state.q.mean())
        stats |= {"q": q, "mean": 0.0, "std": math.sqrt(q)}
        c = _mean_correlation(state, inputs)
        if math.isfinite(c):
            stats["c"] = c
        if layer.act is not None:
            if layer.act.saturation is not None:
                stats["saturated_fraction"] = _fraction_outside(state.q, layer.act.saturation)
            dead = predict_dead_fraction(layer.act, state.q, c, inputs.batch)
            if dead is not None:
                stats["dead_fraction"] = dead
    if math.isfinite(state.gradient):
        stats["grad_mean_square"] = state.gradient
    if state.chain is not None:
        stats |= {"jacobian_mean": state.chain.mean, "jacobian_var": state.chain.variance}
    return stats


def _mean_correlation(state: NodeState, inputs: InputProducts) -> float:
    """Return the mean over pairs of the cosine between their preactivations, whole maps as one vector."""
    if state.q is None or state.products is None:
        return math.nan
    lengths = state.q.reshape(len(state.q), -1).sum(axis=1)
    norms = np.sqrt(lengths[inputs.pairs[:, 0]] * lengths[inputs.pairs[:, 1]])
    if not (norms > 0).all():
        return math.nan
    return float((state.products.reshape(len(norms), -1).sum(axis=1) / norms).mean())


def _fraction_outside(q: np.ndarray, interval: tuple[float, float]) -> float:
    low, high = interval
    std = np.sqrt(np.maximum(q, np.finfo(float).tiny))
    return float((ndtr(low / std) + ndtr(-high / std)).mean())
