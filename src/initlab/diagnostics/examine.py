"""Measure what an initialization does to any module: one forward and one backward pass that change nothing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from initlab.diagnostics.input_moments import input_moments
from initlab.diagnostics.jacobian import choose_jacobians, estimated_samples, write_jacobians
from initlab.diagnostics.trace.hooks import ModuleTracer
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import Call, StreamSum
from initlab.diagnostics.weight_facts import is_deterministic_pattern
from initlab.diagnostics.weights import Weight, weights_of
from initlab.errors import UserError
from initlab.inspection.batch import (
    Batch,
    batch_size,
    call_arguments,
    clone_tensors,
    flatten_tensors,
    unwrap_module,
    vocabulary_size,
)
from initlab.inspection.exceptions import call_user_code
from initlab.inspection.loss import Objective, compute_loss
from initlab.inspection.restore import count_unused_norms, eager_with_gradients, in_float64, preserve_module
from initlab.inspection.shape_errors import explain_shape_errors
from initlab.records.columns import LAYER_COLUMNS
from initlab.system.random_streams import check_seed, seed_global_state

NETWORK, INPUT = "(model)", "(input)"
"""Names in the column `layer` for the network as a whole and for its inputs; their index is 0."""

JACOBIAN_SAMPLES, JACOBIAN_BUDGET = 4, 1e10
"""Samples whose Jacobians are computed, and multiplications that they may cost unless they are asked for."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a network: the rows, and the facts that findings rest on.

    Attributes:
        frame: columns step, layer, index, stat, value, source.
        calls: one record per call of a layer, in order of execution; weights that took no part come last.
        sums: places where a branch joins a stream, in order.
        loss: the value of the loss; None if there was none.
        objective: the name of the loss that the gradients are of.
        classes: number of classes of a cross-entropy.
        inputs: moments of the batch.
        unused_norms: batch norms in evaluation mode that have seen no batch, and so change no signal.
    """

    frame: pd.DataFrame
    calls: list[Call]
    sums: list[StreamSum]
    loss: float | None = None
    objective: str = ""
    classes: int | None = None
    inputs: dict[str, float] = field(default_factory=dict)
    unused_norms: int = 0


def examine(
    module: nn.Module,
    batch: Batch,
    targets: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure every layer of any module on one batch: the rows of `initlab.diagnose`, and the facts of its findings.

    Arguments are those of `initlab.diagnose`. An error of the module's own `forward` is raised as it is, also that of a
    batch that it cannot take: `initlab.inspection.shape_errors` explains it.

    Raises:
        UserError: a module without parameters, lazy or meta parameters, targets that do not fit.

    >>> examine(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)).calls[0].activation.name
    'tanh'
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"diagnose needs a torch.nn.Module, and this is {type(module).__name__}.")
    module, seed = unwrap_module(module), check_seed(seed)
    inputs = call_arguments(batch)
    tensors = flatten_tensors(inputs)
    with preserve_module(module), eager_with_gradients():
        weights = weights_of(module)
        size = batch_size(module, tensors)

        def run(float64_for: torch.dtype | None = None) -> tuple[PassRecorder, Objective | None]:
            """Run and record a pass in the module's own precision, or in float64 in place of another dtype."""
            double = float64_for is not None
            seed_global_state("diagnosed passes", seed)
            learned = [p.requires_grad_() for p in module.parameters() if p.is_floating_point()]
            args, kwargs = (clone_tensors(part, double) for part in inputs)
            recorder = PassRecorder(weights, size, flatten_tensors((args, kwargs)), float64_for)
            with recorder.gradient_hooks:
                with ModuleTracer(module, recorder):
                    output = call_user_code(module, *args, **kwargs)
                labels, tokens = clone_tensors(targets, double), vocabulary_size(tensors)
                objective = compute_loss(output, targets=labels, loss=loss, classes=classes, tokens=tokens, seed=seed)
                if objective is not None and objective.loss.requires_grad:
                    gradients = torch.autograd.grad(objective.loss, learned, allow_unused=True)
                    _write_gradients(recorder, learned, gradients)
            return recorder, objective

        recorder, objective = run()
        calls = recorder.calls
        if weights and any(_may_underflow(call, name) for call in calls for name in _UNDERFLOW_STATS):
            # float64 tells a signal or gradient of 0 from one that is too small for its precision.
            precision = weights[0].tensor.dtype
            with in_float64(module), suppress(RuntimeError, TypeError, NotImplementedError):  # one precision only
                _replace_underflowed(calls, run(precision)[0].calls)
        if jacobian is not False:
            _copy_jacobians(calls, module, weights, batch, size, None if jacobian else JACOBIAN_BUDGET, seed)
        _measure_weights(recorder)
        value = None if objective is None else float(objective.loss.detach())
        moments = input_moments(tensors, size)
    name, count = ("", None) if objective is None else (objective.name, objective.classes)
    network = {} if value is None else {"loss": value}
    if count is not None:
        network["ln_classes"] = float(torch.tensor(float(count)).log())
    rows = [(NETWORK, 0, network), (INPUT, 0, moments), *((call.layer, call.index, call.stats) for call in calls)]
    return Diagnosis(
        _frame_of_rows(rows), calls, recorder.sums, value, name, count, moments, count_unused_norms(module)
    )


def _frame_of_rows(layers: Sequence[tuple[str, int, dict[str, float]]]) -> pd.DataFrame:
    rows = [(0, layer, index, *stat, "measured") for layer, index, stats in layers for stat in stats.items()]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def _write_gradients(recorder: PassRecorder, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    gradient_of = dict(zip(map(id, tensors), gradients, strict=True))
    for call in recorder.first_calls():
        gradient = gradient_of.get(id(call.weight.tensor)) if call.weight is not None else None
        if gradient is not None:
            call.measure_gradient(gradient)


def _measure_weights(recorder: PassRecorder) -> None:
    calls = recorder.first_calls()
    called = {call.weight.name for call in calls if call.weight is not None}
    for weight in recorder.weights:
        if weight.name not in called and weight.kind != "unknown":
            call = recorder.add_call(weight.layer, weight, {})
            call.ran = False
            calls.append(call)
    groups: dict[str, list[Call]] = {}
    for call in calls:
        call.measure_weight()
        if (facts := call.facts) and not facts.constant and not facts.tied and facts.elements >= 4:
            groups.setdefault(facts.key, []).append(call)
    for group in groups.values():
        first = group[0]
        assert first.facts is not None and first.weight is not None  # noqa: PT018
        # A scheme that draws nothing (an identity, a sinusoid) gives equal layers on purpose.
        if len(group) > 1 and not first.facts.patterned and not is_deterministic_pattern(first.weight):
            for call in group:
                assert call.facts is not None
                call.facts = replace(call.facts, twins=tuple(twin.layer for twin in group))


_UNDERFLOW_STATS = {
    "q": ("underflow", "mean", "std", "c", "dead_fraction", "saturated_fraction"),
    "grad_mean_square": ("grad_underflow",),
}
"""Statistic that is 0 or inexact where a tensor underflows -> the count of lost entries, and what else is inexact."""


def _may_underflow(call: Call, name: str) -> bool:
    return call.stats.get(name) == 0 or call.stats.get(_UNDERFLOW_STATS[name][0], 0) > 0


def _replace_underflowed(calls: Sequence[Call], precise: Sequence[Call]) -> None:
    for call, other in zip(calls, precise, strict=False):
        for name, dependent in _UNDERFLOW_STATS.items():
            if call.layer == other.layer and _may_underflow(call, name) and other.stats.get(name, 0) > 0:
                call.stats.update({key: other.stats[key] for key in (name, *dependent) if key in other.stats})


def jacobians(module: nn.Module, batch: Batch, *, budget: float = JACOBIAN_BUDGET, seed: int = 0) -> pd.DataFrame:
    """Return the rows `jacobian_*` of `diagnose` alone: those of the first layers, as far as the budget goes.

    Args:
        module: any module.
        batch: as in `diagnose`.
        budget: multiplications that they may cost.
        seed: of the random numbers that the module draws.

    Returns:
        A frame with columns step, layer, index, stat, value, source; empty where no single sample can be
        differentiated: under batch normalization in training mode, or for integers such as tokens.

    >>> jacobians(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 8)).stat.tolist()[:3]
    ['jacobian_mean', 'jacobian_var', 'jacobian_max']
    """
    module, seed = unwrap_module(module), check_seed(seed)
    with explain_shape_errors("the module", module, batch), preserve_module(module), eager_with_gradients():
        size = batch_size(module, flatten_tensors(call_arguments(batch)))
        calls = _calls_with_jacobians(module, weights_of(module), batch, size, budget, seed)
    return _frame_of_rows([(call.layer, call.index, _jacobian_stats(call)) for call in calls])


def _copy_jacobians(
    calls: Sequence[Call],
    module: nn.Module,
    weights: Sequence[Weight],
    batch: Batch,
    size: int,
    budget: float | None,
    seed: int,
) -> None:
    exact, estimated = choose_jacobians(calls, size, JACOBIAN_SAMPLES, budget)
    if exact or estimated:
        samples = estimated_samples(calls, size, JACOBIAN_SAMPLES) if estimated else JACOBIAN_SAMPLES
        others = _calls_with_jacobians(module, weights, batch, size, budget, seed, samples)
        for call, other in zip(calls, others, strict=False):
            if call.layer == other.layer:
                call.stats.update(_jacobian_stats(other))


def _calls_with_jacobians(
    module: nn.Module,
    weights: Sequence[Weight],
    batch: Batch,
    size: int,
    budget: float | None,
    seed: int,
    samples: int = JACOBIAN_SAMPLES,
) -> list[Call]:
    """Record a pass of a few samples, and write the Jacobians of the layers that the budget allows."""
    mixes = any(isinstance(m, BATCH_NORMS) and m.training for m in module.modules())
    if mixes or not (isinstance(batch, Tensor) and batch.is_floating_point() and len(batch) == size):
        return []  # no single sample to differentiate
    inputs = batch[:samples].detach().clone().requires_grad_()
    seed_global_state("diagnosed passes", seed)
    recorder = PassRecorder(weights, len(inputs), [], keep=True)
    with ModuleTracer(module, recorder):
        call_user_code(module, inputs.clone())  # a copy: the first operation may work in place
    exact, estimated = choose_jacobians(recorder.calls, len(inputs), JACOBIAN_SAMPLES, budget)
    write_jacobians(recorder.calls, recorder.kept or {}, inputs, exact, estimated)
    return recorder.calls


def _jacobian_stats(call: Call) -> dict[str, float]:
    return {name: value for name, value in call.stats.items() if name.startswith("jacobian_")}
