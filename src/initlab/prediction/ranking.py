"""Rank a grid of networks by what theory says of each, before any is trained."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from initlab.activations import Activation, activation
from initlab.errors import Impossible
from initlab.initialize import plan, request
from initlab.prediction.predict import build_on_meta, fixed_point_from, hidden_fixed_point, layer_laws, reads_maps
from initlab.theory.nodes import InputProducts, Node
from initlab.theory.propagation import NodeState, layer_states, propagate
from initlab.theory.read_module import read_module

ALIKE_CORRELATION = 0.9
"""Correlation of the two inputs that are alike; the other two have none."""

SCORES = ("score", "contrast", "gradient_range", "q", "phase", "chi_1", "xi_c", "trainable_depth", "reason")
COLUMNS = ("act", "init", "depth", *SCORES)


@dataclass(frozen=True)
class RankedNetwork:
    """One network of a grid: what `predict` takes, under names. `arguments` are those of `initialize_`."""

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
        """What cells have in common that differ in their depth alone."""
        rest = replace(self, depth=0)
        return json.dumps([repr(getattr(rest, name)) for name in self.__dataclass_fields__])


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
    """Forecast every cell of act × init × depth, and order them by how well signal and gradient come through.

    `contrast`: how much of the difference between alike inputs (correlation 0.9) and unrelated ones (0) is left in the
    last hidden layer, from 1 to 0: it falls like exp(−depth/ξ_c) in either phase. `gradient_range`: log₁₀ of the
    gradient's mean square in the first hidden layer over that in the last. The score puts them together,

        score = log₁₀ contrast − |gradient_range|/2

    0 at best; NaN where theory has no answer. `q` is the last hidden layer's; `reason` says why a cell cannot exist.

    Returns a frame, best first, with columns act, init, depth, score, contrast, gradient_range, q, phase, chi_1, xi_c,
    trainable_depth, reason.

    >>> rank("relu", ["glorot_normal", "he_normal"], 30).init.tolist()
    ['he_normal', 'glorot_normal']
    """
    arguments = {"gain": gain, "sigma_b": sigma_b}
    cells = [
        RankedNetwork(
            activation(a), i, d, width, model, tuple(input_shape), classes, arguments=arguments, options=options
        )
        for a in _as_list(act)
        for i in _as_list(init)
        for d in _as_list(depth)
    ]
    names = [(c.act.name, c.init if isinstance(c.init, str) else c.init.name, c.depth) for c in cells]
    frame = score_networks(cells)
    for place, name in enumerate(("act", "init", "depth")):
        frame.insert(place, name, [named[place] for named in names])
    return sort_by_score(frame)


def sort_by_score(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort by score, best first, and without a score last."""
    return frame.sort_values("score", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple, range, set)) else [values]


def score_networks(cells: Iterable[RankedNetwork]) -> pd.DataFrame:
    """Return one row per cell, in their order, with the columns of `rank` from `score` on.

    >>> he = RankedNetwork(activation("relu"), "he_normal", 30, 128)
    >>> bool(score_networks([he, replace(he, depth=10)]).gradient_range.abs().max() < 0.1)
    True
    """
    listed = list(cells)
    families: dict[str, list[int]] = {}
    for number, cell in enumerate(listed):
        families.setdefault(cell.family, []).append(number)
    rows: dict[int, tuple[Any, ...]] = {}
    for numbers in families.values():
        rows |= dict(zip(numbers, _score_family([listed[n] for n in numbers]), strict=True))
    return pd.DataFrame([rows[n] for n in range(len(listed))], columns=list(SCORES))


def _score_family(cells: Sequence[RankedNetwork]) -> list[tuple[Any, ...]]:
    """Score cells that differ in their depth alone: a shallow mlp is the beginning of the deepest one."""
    if len(cells) > 1 and cells[0].model == "mlp" and isinstance(cells[0].width, int | None):
        try:
            nodes, hidden = _propagate_network(max(cells, key=lambda cell: cell.depth or 0))
        except Impossible:
            hidden = []
        if hidden and all(trace.q is not None and 0 < trace.gradient < math.inf for trace in hidden):
            return [
                (*_score_columns(hidden[: cell.depth]), *_phase_columns(nodes[: cell.depth], cell.act, hidden), None)
                for cell in cells
                if cell.depth is not None
            ]
    return [_score_network(cell) for cell in cells]


def _score_network(cell: RankedNetwork) -> tuple[Any, ...]:
    try:
        nodes, hidden = _propagate_network(cell)
    except Impossible as reason:
        return (*[math.nan] * 4, None, *[math.nan] * 3, str(reason))
    return (*_score_columns(hidden), *_phase_columns(nodes, cell.act, hidden), None)


def _propagate_network(cell: RankedNetwork) -> tuple[Sequence[Node], list[NodeState]]:
    """Describe a cell's network, and send inputs through it; returns its nodes and the traces of its hidden layers."""
    options = tuple(sorted(cell.options.items()))
    module = build_on_meta(cell.model, cell.depth, cell.width, cell.input_shape, cell.classes, options)
    nodes = read_module(module, layer_laws(plan(module, request(cell.init, act=cell.act, **cell.arguments))), cell.act)
    if not nodes:
        return [], []
    positions = cell.input_shape[1:] if reads_maps(nodes) else ()
    ones = np.full((1, *positions), cell.second_moment)
    products = np.array([0.0, ALIKE_CORRELATION]).reshape(-1, *[1] * len(positions)) * ones
    inputs = InputProducts(np.repeat(ones, 3, axis=0), products, np.array([[0, 1], [0, 2]]))
    with np.errstate(all="ignore"):  # a signal that passes the largest float is inf
        traces = layer_states(propagate(nodes, inputs, cell.classes))
    return nodes, [trace for layer, trace in traces if layer.act is not None]


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


def _contrast(trace: NodeState) -> float:
    if trace.products is None or trace.q is None or not np.all(trace.q > 0):
        return math.nan
    unrelated, alike = trace.products.reshape(2, -1).sum(axis=1) / trace.q[0].sum()
    return float(abs(alike - unrelated) / ALIKE_CORRELATION)
