"""Measure what an initialization does to any module: one forward and one backward pass, everything left as found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from initlab.diagnostics.input_moments import input_moments
from initlab.diagnostics.jacobian import choose_jacobians, estimated_samples, write_jacobians
from initlab.diagnostics.trace.hooks import ModuleTracer
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import Call, StreamSum
from initlab.diagnostics.weight_facts import with_identical_layers
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
from initlab.system.random_streams import check_seed, seed_global_state

COLUMNS = ("step", "layer", "index", "stat", "value", "source")
NETWORK, INPUT = "(model)", "(input)"
"""Names in the column `layer` for the network as a whole and for what it is fed; their index is 0."""

JACOBIAN_SAMPLES, JACOBIAN_BUDGET = 4, 1e10
"""Samples whose Jacobians are looked at, and multiplications that they may cost unless they are asked for."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a network: the rows, and the facts that verdicts rest on.

    Attributes:
        frame: columns step, layer, index, stat, value, source.
        calls: one record per call of a layer, in order of execution; weights that took no part come last.
        sums: places where a branch joins a stream, in order.
        objective: the loss that the gradients are of, by name, with its classes; None if there was none.
        loss: its value.
        batch: number of inputs.
        inputs: moments of the batch.
        idle_norms: batch norms in evaluation mode that have seen no batch, and so let signals through as they are.
    """

    frame: pd.DataFrame
    calls: list[Call]
    sums: list[StreamSum]
    loss: float | None = None
    objective: str = ""
    classes: int | None = None
    batch: int = 0
    inputs: dict[str, float] = field(default_factory=dict)
    idle_norms: int = 0


def examine(
    module: nn.Module,
    batch: Batch,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    jacobian: bool | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Measure every layer of any module on one batch: one row per layer and statistic, and the facts of verdicts.

    Layers are listed in order of execution; one that is called twice has two indices. A layer's preactivation is its
    output, or, where the module declares `weight_layers`, the input of the activation declared there. Activations are
    found whether they are modules or functions. Names of statistics: `initlab.diagnostics.STATS`, and
    `saturated_fraction`, `underflow` and `grad_underflow` (entries too small for their precision: where a whole layer
    is lost, its values are taken from a second pass in float64). Layer `(model)` has `loss` and, for cross-entropy,
    `ln_classes`, the loss of a network that knows nothing; `(input)` has the moments of the batch.

    Nothing is changed: not the weights, `.grad`, buffers, training mode, hooks, or the state of any generator.

    Args:
        module: any module, on any device; it runs in the mode it is in.
        batch: what it is called with: a tensor [B, …] of any dtype, a sequence of arguments, or a mapping of keywords.
        targets: integer labels or floating targets; random ones if left out.
        loss: `loss(output, targets)` or, without targets, `loss(output)`; cross-entropy or squared error if left out.
        classes: take the output for logits of that many classes.
        jacobian: squared singular values of ∂h/∂input: None where they are cheap, True wherever they can be had (the
            output's are estimated by iteration where it is large), False never.
        seed: of random targets and of whatever the module draws.

    Raises:
        UserError: a module without parameters, lazy or meta parameters, targets that do not fit. What the module's own
            `forward` raises comes through as it is, also of a batch that it cannot take:
            `initlab.inspection.shape_errors` explains it.


    >>> examine(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)).calls[0].activation.name
    'tanh'
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"diagnose needs a torch.nn.Module, and this is {type(module).__name__}.")
    module = unwrap_module(module)
    seed = check_seed(seed)
    look = _RecordedPass(module, targets, loss, classes, seed)
    with preserve_module(module), eager_with_gradients():
        weights = weights_of(module)
        args, kwargs = call_arguments(batch)
        size = batch_size(module, flatten_tensors((args, kwargs)))
        scene, found = look(weights, args, kwargs, size)
        _remeasure_in_float64(look, weights, scene, args, kwargs, size)
        budget = None if jacobian else JACOBIAN_BUDGET
        if jacobian is not False and any(chosen := choose_jacobians(scene.calls, size, JACOBIAN_SAMPLES, budget)):
            samples = estimated_samples(scene.calls, size, JACOBIAN_SAMPLES) if chosen[1] else JACOBIAN_SAMPLES
            again = _calls_with_jacobians(module, weights, batch, size, budget, seed, samples)
            for call, other in zip(scene.calls, again, strict=False):
                if call.layer == other.layer:
                    call.stats.update(_jacobian_stats(other))
        ran = {call.weight.name for call in scene.calls if call.weight is not None}
        seen: set[str] = set()
        for call in scene.calls:
            if call.weight is not None and call.layer not in seen:
                call.measure_weight()
                seen.add(call.layer)
        for weight in weights:
            if weight.name not in ran and weight.kind != "unknown":
                call = scene.call(weight.layer, weight, {})
                call.ran = False
                call.measure_weight()
        _mark_identical_layers(scene.calls)
        value = float(found.loss.detach()) if found is not None else None
        inputs = input_moments(flatten_tensors((args, kwargs)), size)
    frame = _frame_of_rows(scene.calls, value, found, inputs)
    name, count = (found.name, found.classes) if found is not None else ("", None)
    return Diagnosis(frame, scene.calls, scene.sums, value, name, count, size, inputs, count_unused_norms(module))


@dataclass
class _RecordedPass:
    """One forward and backward pass, heard."""

    module: nn.Module
    targets: Any
    loss: Callable[..., Any] | None
    classes: int | None
    seed: int

    def __call__(
        self,
        weights: Sequence[Weight],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        size: int,
        instead_of: torch.dtype | None = None,
    ) -> tuple[PassRecorder, Objective | None]:
        """Look in the module's own precision, or in float64 `instead_of` it."""
        double = instead_of is not None
        seed_global_state("diagnosed passes", self.seed)
        learned = [p.requires_grad_() for p in self.module.parameters() if p.is_floating_point()]
        fresh_args, fresh_kwargs = clone_tensors(list(args), double), clone_tensors(dict(kwargs), double)
        listener = ModuleTracer(self.module, weights, size, flatten_tensors((fresh_args, fresh_kwargs)))
        scene = listener.scene
        scene.precision = instead_of
        with listener:
            output = call_user_code(self.module, *fresh_args, **fresh_kwargs)
        targets = clone_tensors(self.targets, double)
        tokens = vocabulary_size(flatten_tensors((args, kwargs)))
        found = compute_loss(
            output, targets=targets, loss=self.loss, classes=self.classes, tokens=tokens, seed=self.seed
        )
        try:
            if found is not None and found.loss.requires_grad:
                gradients = torch.autograd.grad(found.loss, learned, allow_unused=True)
                _write_gradients(scene.calls, dict(zip(map(id, learned), gradients, strict=True)))
        finally:
            scene.close()
        return scene, found


def _write_gradients(calls: Sequence[Call], gradients: Mapping[int, Tensor | None]) -> None:
    seen: set[str] = set()
    for call in calls:
        if call.weight is not None and call.layer not in seen:
            gradient = gradients.get(id(call.weight.tensor))
            if gradient is not None:
                call.measure_gradient(gradient)
            seen.add(call.layer)


def _mark_identical_layers(calls: Sequence[Call]) -> None:
    known = [(call, call.weight, call.facts) for call in calls if call.weight is not None and call.facts is not None]
    for (call, _, _), facts in zip(
        known, with_identical_layers([w for _, w, _ in known], [f for _, _, f in known]), strict=True
    ):
        call.facts = facts


def _remeasure_in_float64(
    look: _RecordedPass,
    weights: Sequence[Weight],
    scene: PassRecorder,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    size: int,
) -> None:
    """Where a signal or gradient is 0 or nearly lost in rounding, look again in float64: 0, or only too small?"""
    if not weights or not any(_may_underflow(call, name) for call in scene.calls for name in _UNDERFLOW_STATS):
        return
    own = weights[0].tensor.dtype
    try:
        with in_float64(look.module):
            again, _ = look(weights, args, kwargs, size, instead_of=own)
    except (RuntimeError, TypeError, NotImplementedError):
        return  # a module that computes in one precision only: what was measured stands
    for call, better in zip(scene.calls, again.calls, strict=False):
        for name, (also, mark) in _UNDERFLOW_STATS.items():
            if call.layer == better.layer and _may_underflow(call, name) and better.stats.get(name, 0) > 0:
                call.stats.update({k: better.stats[k] for k in (name, mark, *also) if k in better.stats})


_UNDERFLOW_STATS = {
    "q": (("mean", "std", "c", "dead_fraction", "saturated_fraction"), "underflow"),
    "grad_mean_square": ((), "grad_underflow"),
}


def _may_underflow(call: Call, name: str) -> bool:
    return call.stats.get(name) == 0 or call.stats.get(_UNDERFLOW_STATS[name][1], 0) > 0


def jacobians(module: nn.Module, batch: Batch, *, budget: float = JACOBIAN_BUDGET, seed: int = 0) -> pd.DataFrame:
    """Return the rows `jacobian_*` of `diagnose` alone: those of the first layers, as long as the budget lasts.

    Arguments: `budget` in multiplications; the rest as in `diagnose`. Empty where no single sample can be
    differentiated: under batch normalization in training mode, or for integers such as tokens.

    >>> jacobians(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(4, 8)).stat.tolist()[:3]
    ['jacobian_mean', 'jacobian_var', 'jacobian_max']
    """
    module, seed = unwrap_module(module), check_seed(seed)
    with explain_shape_errors("the module", module, batch), preserve_module(module), eager_with_gradients():
        size = batch_size(module, flatten_tensors(call_arguments(batch)))
        calls = _calls_with_jacobians(module, weights_of(module), batch, size, budget, seed)
    rows = [(0, call.layer, call.index, *stat, "measured") for call in calls for stat in _jacobian_stats(call).items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _calls_with_jacobians(
    module: nn.Module,
    weights: Sequence[Weight],
    batch: Batch,
    size: int,
    budget: float | None,
    seed: int,
    samples: int = JACOBIAN_SAMPLES,
) -> list[Call]:
    """Hear a few samples once more, and write the Jacobians of the layers that the budget lasts for."""
    mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in module.modules())
    if mixes or not (isinstance(batch, Tensor) and batch.is_floating_point() and len(batch) == size):
        return []  # no single sample to differentiate
    inputs = batch[:samples].detach().clone().requires_grad_()
    seed_global_state("diagnosed passes", seed)
    listener = ModuleTracer(module, weights, len(inputs), [])
    listener.scene.kept = {}
    listener.scene.grading = False
    with listener:
        call_user_code(module, inputs.clone())  # a copy: the first operation may work in place
    listener.scene.close()
    calls = listener.scene.calls
    exact, estimated = choose_jacobians(calls, len(inputs), JACOBIAN_SAMPLES, budget)
    write_jacobians(calls, listener.scene.kept, inputs, exact, estimated)
    return calls


def _jacobian_stats(call: Call) -> dict[str, float]:
    return {name: value for name, value in call.stats.items() if name.startswith("jacobian_")}


def _frame_of_rows(
    calls: Sequence[Call], loss: float | None, found: Objective | None, inputs: Mapping[str, float]
) -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    if loss is not None:
        rows.append((0, NETWORK, 0, "loss", loss, "measured"))
    if found is not None and found.classes is not None:
        rows.append((0, NETWORK, 0, "ln_classes", float(torch.tensor(float(found.classes)).log()), "measured"))
    rows += [(0, INPUT, 0, stat, value, "measured") for stat, value in inputs.items()]
    for call in calls:
        rows += [(0, call.layer, call.index, stat, value, "measured") for stat, value in call.stats.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
