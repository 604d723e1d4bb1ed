"""Predict before a weight is drawn: a network, a scheme and an activation in, one row per layer and statistic out."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import UserError
from initlab.initialize import FillTask, plan, request
from initlab.models import build
from initlab.schemes import laws
from initlab.theory import Critical, FixedPoint, default_critical, fixed_point
from initlab.theory.nodes import InputProducts, Node, layer_nodes, measure_inputs, standard_inputs
from initlab.theory.propagation import COLUMNS, forecast
from initlab.theory.read_module import UNKNOWN_LAW, LayerLaw, hidden_sigmas, read_module

MAX_SAMPLES = 1024
"""Inputs of a batch that a forecast uses, each by itself."""


def predict(
    act: Any,
    init: Any,
    depth: int | None = None,
    width: int | Sequence[int] | None = None,
    *,
    model: str = "mlp",
    input_shape: Sequence[int] = (784,),
    classes: int = 10,
    gain: float | str = "paper",
    sigma_b: float | None = None,
    parameters: Mapping[str, Any] | None = None,
    inputs: Any = None,
    second_moment: float = 1.0,
    correlation: float = 0.0,
    batch: int = 128,
    **options: Any,
) -> pd.DataFrame:
    """Predict what each layer will measure at step 0, from the scheme's promised variances and real fans.

    Args:
        act: activation by name, record or callable.
        init: scheme by name, alias or record.
        depth: as in `models.build`, and so are `width`, `model` and `options`.
        width: units per layer, or a list of them.
        model: family of the network.
        input_shape: shape of one sample.
        classes: number of outputs.
        gain: as in `initialize_`, and so are `sigma_b` and `parameters`.
        sigma_b: standard deviation of the biases.
        parameters: the scheme's own keys.
        inputs: a batch [B, *input_shape] from which second moments and correlations are measured; without one, every
            sample has `second_moment`, and every two the `correlation`.
        second_moment: mean square of an input.
        correlation: of two inputs.
        batch: samples that the loss averages over (with `inputs`, their number).
        **options: the family's own keys.

    Returns:
        A frame with columns step (0), layer, index, stat, value, source (predicted), empty where theory has no answer.
        Its `attrs`, for plain chains of layers: sigma_w and sigma_b of the hidden layers, q_star, kind, phase, chi_1,
        xi_c and trainable_depth (about 6 ξ_c).

    Raises:
        UserError: a name, key or value that cannot be.
        Impossible: the scheme cannot fill this network.

    >>> frame = predict("relu", "he_normal", depth=3, width=64)
    >>> frame[frame.stat == "q"].value.round(6).tolist()
    [2.0, 2.0, 2.0, 2.0]
    >>> frame.attrs["phase"], frame.attrs["kind"]
    ('critical', 'any')
    """
    record = activation(act)
    shape = tuple(input_shape) if inputs is None else tuple(torch.as_tensor(inputs).shape[1:])
    own = tuple(sorted((name, _hashable(value)) for name, value in options.items()))
    module = build_on_meta(model, _hashable(depth), _hashable(width), shape, classes, own)
    tasks = plan(module, request(init, act=record, gain=gain, sigma_b=sigma_b, parameters=parameters))

    def make_standard(maps: bool) -> InputProducts:
        return standard_inputs(second_moment, correlation, batch, shape[1:] if maps else ())

    make_inputs = make_standard if inputs is None else batch_inputs(inputs)
    nodes, frame = forecast_module(module, layer_laws(tasks), make_inputs, record, classes)
    point = hidden_fixed_point(nodes, record)
    if point is not None:
        names = ("sigma_w", "sigma_b", "q_star", "kind", "phase", "chi_1", "xi_c", "trainable_depth")
        frame.attrs.update({name: getattr(point, name) for name in names})
    return frame


def predicted_rows(
    module: nn.Module, tasks: Iterable[FillTask], inputs: Any, *, act: Any = None, classes: int | None = None
) -> pd.DataFrame:
    """Predict the rows of a given module.

    Args:
        module: the network.
        tasks: what `initialize.plan` returns for it.
        inputs: a batch that it will be fed.
        act: the activation of a network of a family of ours; read from the module if left out.
        classes: number of outputs, for gradients of softmax cross-entropy.

    Returns:
        The frame of `predict`, empty where theory has no answer; its `attrs` hold trainable_depth alone, of the fixed
        point that this batch's signal tends to.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> frame = predicted_rows(net, plan(net, request("he_normal", act="relu")), torch.ones(4, 8), classes=3)
    >>> frame.stat.unique().tolist()[:3], len(frame.layer.unique())
    (['q', 'mean', 'std'], 2)
    """
    record = None if act is None else activation(act)
    nodes, frame = forecast_module(module, layer_laws(tasks), batch_inputs(inputs), record, classes)
    point = None if record is None else hidden_fixed_point(nodes, record)
    q = frame.value[frame.stat == "q"]
    if record is not None and point is not None and len(q):
        frame.attrs["trainable_depth"] = abs(fixed_point_from(point, record, float(q.iloc[0])).trainable_depth)
    return frame


def batch_inputs(inputs: Any) -> Callable[[bool], InputProducts]:
    """Return what `forecast_module` takes as `make_inputs`, for a batch [B, *input_shape]."""
    return lambda maps: measure_inputs(inputs, maps=maps, samples=MAX_SAMPLES)


def forecast_module(
    module: nn.Module,
    laws: Mapping[str, LayerLaw],
    make_inputs: Callable[[bool], InputProducts],
    act: Activation | None,
    classes: int | None,
) -> tuple[list[Node], pd.DataFrame]:
    """Return a module's nodes and the rows of `forecast` that theory can answer for; both empty where it has none.

    Args:
        module: the network.
        laws: how each layer is drawn.
        make_inputs: returns its inputs, position by position where its argument is true.
        act: the activation of a network of a family of ours; read from the module if left out.
        classes: number of outputs.
    """
    nodes = read_module(module, laws, act)
    if not nodes:
        return [], pd.DataFrame(columns=list(COLUMNS))
    with np.errstate(all="ignore"):  # a signal that passes the largest float is inf
        frame = forecast(nodes, make_inputs(reads_maps(nodes)), classes)
    return nodes, frame[frame.value.notna()].reset_index(drop=True)


def layer_laws(tasks: Iterable[FillTask]) -> dict[str, LayerLaw]:
    """Return how the weight and bias of each layer are drawn, from what the tasks promise.

    >>> layer_laws(plan(nn.Linear(4, 4), request("orthogonal")))[""].orthogonal
    True
    """
    tasks = list(tasks)
    biases = {task.parameter.layer: task for task in tasks if task.parameter.kind == "bias"}
    weights = {task.parameter.layer: task for task in tasks if task.parameter.is_weight}
    return {layer: _layer_law(task, biases.get(layer)) for layer, task in weights.items()}


def _layer_law(weight: FillTask, bias: FillTask | None) -> LayerLaw:
    weight_laws, bias_laws = weight.promised_laws(), [laws.constant(0.0)] if bias is None else bias.promised_laws()
    if len(weight_laws) != 1 or weight.scheme is None or len(bias_laws) != 1 or bias_laws[0].mean != 0:
        return UNKNOWN_LAW
    law = weight_laws[0]
    if not math.isfinite(bias_laws[0].variance):
        return UNKNOWN_LAW
    return LayerLaw(
        law.variance,
        law.mean,
        bias_laws[0].variance,
        orthogonal=law.orthogonal is not None,
        centered=law.support_on == "center",
        known=law.independent and (not law.deterministic or law.mean == law.variance == 0),
    )


@lru_cache(maxsize=64)
def build_on_meta(
    model: str,
    depth: int | None,
    width: int | tuple[int, ...] | None,
    shape: tuple[int, ...],
    classes: int,
    options: tuple[tuple[str, Any], ...] = (),
) -> nn.Module:
    """Build a network without memory for its weights: names and shapes are all that a prediction needs.

    >>> build_on_meta("mlp", 1, 2, (3,), 2).readout.weight.is_meta
    True
    """
    with torch.device("meta"):
        return build(model, depth=depth, width=width, input_shape=shape, classes=classes, **dict(options))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else value


def hidden_fixed_point(nodes: Sequence[Node], act: Activation) -> FixedPoint | None:
    """Return the fixed point of a plain chain's hidden layers, or None."""
    sigmas = hidden_sigmas(nodes)
    return None if sigmas is None else _cached_fixed_point(act, *sigmas)


@lru_cache(maxsize=4096)
def _cached_fixed_point(act: Activation, sigma_w: float, sigma_b: float) -> FixedPoint | None:
    # At the σ_w and σ_b of `init=critical` the search starts at the point that it means: a half-stable point is not
    # always where q = 1 leads (next to GELU's lies a stable one).
    best = default_critical_at(act, sigma_w, sigma_b)
    start = best.q_star if best is not None and best.kind == "half_stable" else 1.0
    try:
        with np.errstate(all="ignore"):  # far out, q passes the largest float
            return fixed_point(act, sigma_w, sigma_b, start=start)
    except UserError:  # φ jumps or cannot be integrated: the layers' rows, if any, stand without a phase
        return None


def fixed_point_from(point: FixedPoint, act: Activation, q: float) -> FixedPoint:
    """Return the fixed point to which a signal tends whose second moment is `q` in the first layer.

    It is `point`, except next to a half-stable one.

    >>> near = _cached_fixed_point(activation("gelu"), (best := default_critical("gelu")).sigma_w, best.sigma_b)
    >>> round(near.q_star, 2), round(fixed_point_from(near, activation("gelu"), 2.1).q_star, 2)
    (3.56, 3.03)
    """
    if point.kind != "half_stable" or not 0 < q < math.inf:
        return point
    end = fixed_point(act, point.sigma_w, point.sigma_b, start=q)
    return point if math.isclose(end.q_star, point.q_star, rel_tol=1e-6) else end


def default_critical_at(act: Activation, sigma_w: float, sigma_b: float) -> Critical | None:
    """Return the point that `init=critical` chooses, if it has these σ_w and σ_b."""
    try:
        best = default_critical(act)
    except UserError:  # there is none
        return None
    same = math.isclose(best.sigma_w, sigma_w, rel_tol=1e-6) and abs(best.sigma_b - sigma_b) < 1e-6
    return best if same else None


def reads_maps(nodes: Sequence[Node]) -> bool:
    """Return whether the first layer reads its input position by position.

    >>> reads_maps([])
    False
    """
    return any(layer.taps is not None for layer in layer_nodes(nodes)[:1])
