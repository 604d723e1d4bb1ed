"""Rank a grid of networks by their forecasts, before any is trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from initlab.activations import Activation, activation
from initlab.errors import Impossible
from initlab.initialize import plan, request
from initlab.prediction.predict import build_on_meta, fixed_point_from, hidden_fixed_point, layer_laws, reads_maps
from initlab.theory.nodes import Node, standard_inputs
from initlab.theory.propagation import NodeState, layer_states, propagate
from initlab.theory.read_module import read_module

ALIKE_CORRELATION = 0.9
"""Correlation of the two inputs that are alike; the other two have none."""

SCORES = ("score", "contrast", "gradient_range", "q", "phase", "chi_1", "xi_c", "trainable_depth", "reason")


@dataclass(frozen=True)
class RankedNetwork:
    """One network of a grid: what `predict` takes, by name; `arguments` are those of `initialize_`."""

    act: Activation
    init: Any
    depth: int | None
    width: int | tuple[int, ...] | None
    model: str = "mlp"
    input_shape: tuple[int, ...] = (784,)
    classes: int = 10
    second_moment: float = 1.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """What networks have in common that differ in their depth alone."""
        return repr(replace(self, depth=0))


def rank(
    act: Iterable[Any] | str,
    init: Iterable[Any] | str,
    depth: Iterable[int] | int,
    width: int | None = None,
    *,
    model: str = "mlp",
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    gain: float | str = "paper",
    sigma_b: float | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Forecast every network of act × init × depth, and order them by how well signal and gradient come through.

    `contrast`: how much of the difference between alike inputs (correlation 0.9) and unrelated ones (0) is left in the
    last hidden layer, from 1 to 0: it falls like exp(−depth/ξ_c) in either phase. `gradient_range`: log₁₀ of the
    gradient's mean square in the first hidden layer over that in the last. The score puts them together,

        score = log₁₀ contrast − |gradient_range|/2

    0 at best; NaN where theory has no answer. `q` is the last hidden layer's; `reason` says why a network cannot exist.

    Args:
        act: activations.
        init: schemes.
        depth: depths.
        width: units per layer.
        model: as in `predict`, and so are the other arguments.
        input_shape: shape of one sample.
        classes: number of outputs.
        gain: as in `initialize_`.
        sigma_b: standard deviation of the biases.
        **options: the family's own keys.

    Returns:
        A frame, best first, with columns act, init, depth, score, contrast, gradient_range, q, phase, chi_1, xi_c,
        trainable_depth, reason.

    >>> rank("relu", ["glorot_normal", "he_normal"], 30).init.tolist()
    ['he_normal', 'glorot_normal']
    """
    shape, arguments = tuple(input_shape), {"gain": gain, "sigma_b": sigma_b}
    networks = [
        RankedNetwork(activation(a), i, d, width, model, shape, classes, arguments=arguments, options=options)
        for a, i, d in product(*map(_as_list, (act, init, depth)))
    ]
    names = pd.DataFrame(
        [(n.act.name, n.init if isinstance(n.init, str) else n.init.name, n.depth) for n in networks],
        columns=["act", "init", "depth"],
    )
    return sort_by_score(names.join(score_networks(networks)))


def sort_by_score(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by score, best first, and without a score last."""
    return frame.sort_values("score", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, range, set)) else [values]


def score_networks(networks: Iterable[RankedNetwork]) -> pd.DataFrame:
    """Return one row per network, in their order, with the columns of `rank` from `score` on.

    >>> he = RankedNetwork(activation("relu"), "he_normal", 30, 128)
    >>> bool(score_networks([he, replace(he, depth=10)]).gradient_range.abs().max() < 0.1)
    True
    """
    networks = list(networks)
    families: dict[str, list[int]] = {}
    for number, network in enumerate(networks):
        families.setdefault(network.family, []).append(number)
    rows: dict[int, tuple[Any, ...]] = {}
    for numbers in families.values():
        rows |= zip(numbers, _score_family([networks[n] for n in numbers]), strict=True)
    return pd.DataFrame([rows[n] for n in range(len(networks))], columns=list(SCORES))


def _score_family(networks: Sequence[RankedNetwork]) -> list[tuple[Any, ...]]:
    """Score networks that differ in their depth alone: a shallow mlp is the beginning of the deepest one."""
    if len(networks) > 1 and networks[0].model == "mlp" and isinstance(networks[0].width, int | None):
        try:
            nodes, hidden = _propagate_network(max(networks, key=lambda network: network.depth or 0))
        except Impossible:
            hidden = []
        if hidden and all(state.q is not None and 0 < state.gradient < math.inf for state in hidden):
            return [_columns(nodes[: n.depth], n.act, hidden[: n.depth]) for n in networks if n.depth is not None]
    return [_score_network(network) for network in networks]


def _score_network(network: RankedNetwork) -> tuple[Any, ...]:
    try:
        nodes, hidden = _propagate_network(network)
    except Impossible as reason:
        return (*[math.nan] * 4, None, *[math.nan] * 3, str(reason))
    return _columns(nodes, network.act, hidden)


def _columns(nodes: Sequence[Node], act: Activation, hidden: Sequence[NodeState]) -> tuple[Any, ...]:
    return (*_score_columns(hidden), *_phase_columns(nodes, act, hidden), None)


def _propagate_network(network: RankedNetwork) -> tuple[Sequence[Node], list[NodeState]]:
    """Return a network's nodes and the states of its hidden layers, for a sample beside an unrelated and a like one."""
    options = tuple(sorted(network.options.items()))
    module = build_on_meta(network.model, network.depth, network.width, network.input_shape, network.classes, options)
    laws = layer_laws(plan(module, request(network.init, act=network.act, **network.arguments)))
    nodes = read_module(module, laws, network.act)
    if not nodes:
        return [], []
    positions = network.input_shape[1:] if reads_maps(nodes) else ()
    inputs = standard_inputs(network.second_moment, (0.0, ALIKE_CORRELATION), positions=positions)
    with np.errstate(all="ignore"):  # a signal that passes the largest float is inf
        states = layer_states(propagate(nodes, inputs, network.classes))
    return nodes, [state for layer, state in states if layer.act is not None]


def _phase_columns(
    nodes: Sequence[Node], act: Activation, hidden: Sequence[NodeState]
) -> tuple[str | None, float, float, float]:
    point = hidden_fixed_point(nodes, act)
    if point is None:
        return None, math.nan, math.nan, math.nan
    q = hidden[0].q.mean() if hidden and hidden[0].q is not None else math.nan
    return point.phase, point.chi_1, point.xi_c, fixed_point_from(point, act, float(q)).trainable_depth


def _score_columns(hidden: Sequence[NodeState]) -> tuple[float, float, float, float]:
    if not hidden or hidden[-1].q is None or not math.isfinite(hidden[0].gradient):
        return math.nan, math.nan, math.nan, math.nan
    first, last, q = hidden[0], hidden[-1], hidden[-1].q
    contrast = _contrast(last)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = float(np.log10(first.gradient) - np.log10(last.gradient))
        score = float(np.log10(contrast) - abs(spread) / 2)
    return score, contrast, spread, float(q.mean())


def _contrast(state: NodeState) -> float:
    if state.products is None or state.q is None or not np.all(state.q > 0):
        return math.nan
    unrelated, alike = state.products.reshape(2, -1).sum(axis=1) / state.q[0].sum()
    return float(abs(alike - unrelated) / ALIKE_CORRELATION)
