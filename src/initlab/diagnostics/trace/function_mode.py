"""A mode for torch functions: it records activations that are no modules, bare weights, norms and sums."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from initlab.activations import Activation
from initlab.diagnostics.trace.function_table import LINEAR, NONLINEAR, called_activation, function_name, signal_step
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import DIRECT, Call, Origins, Provenance, StreamSum, merge_origins, second_moment
from initlab.diagnostics.weights import LAYER_TYPES, Weight
from initlab.inspection import Block, Fans
from initlab.inspection.batch import is_float_tensor
from initlab.inspection.exceptions import call_user_code

TracedTensors: TypeAlias = list[tuple[Tensor, Origins]]


class FunctionTracer(TorchFunctionMode):
    """Follow signals through functions, and note what was done to each since the layer that it came from."""

    def __init__(self, recorder: PassRecorder):
        super().__init__()
        self.recorder = recorder
        self.weights = [w for w in reversed(recorder.weights) if w.kind != "parametrized" and not w.tied]
        self.weight_views = Provenance()
        for index, weight in enumerate(self.weights):
            self.weight_views.mark(weight.tensor, {index: DIRECT})

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and note what it did."""
        kwargs = kwargs or {}
        run = partial(call_user_code, function, *args, **kwargs)
        if not self.recorder.enabled:
            return run()
        traced = self.recorder.provenance.traced_tensors(args, kwargs)
        name = function_name(function)
        act = called_activation(name, args, kwargs) if traced else None
        if act is not None or (traced and name in NONLINEAR):
            return self._activation(act, traced, run)
        out = run()
        if not traced:
            self._mark_view(name, args, out)
        elif name in LINEAR and (used := self._used_weight(args, kwargs)) is not None:
            self._bare_weight(name, *used, traced, out)
        elif isinstance(out, Tensor) or (isinstance(out, (tuple, list)) and any(isinstance(x, Tensor) for x in out)):
            self._step(name, args, traced, out)
        return out

    def _activation(self, act: Activation | None, traced: TracedTensors, run: Callable[[], Any]) -> Any:
        recorder = self.recorder
        tensor, origins = traced[0]
        call = recorder.declared or self._call_without_activation(origins)
        if call is not None:
            call.activation = act
            if act is not None:  # before the call, which may work in place
                recorder.measure_entering(call, tensor, act)
        out = run()
        recorder.provenance.mark(out, merge_origins((origins for _, origins in traced), "activation"))
        if call is not None and recorder.declared is None:
            recorder.measure(call, "postactivation", out)
        return out

    def _call_without_activation(self, origins: Origins) -> Call | None:
        # An activation belongs to the latest layer among those whose output has reached no other activation yet; behind
        # a sum to the branch, not to a projection in the shortcut that happens to be computed after it.
        calls, sums = self.recorder.calls, self.recorder.sums
        fresh = {i for i, words in origins.items() if i and "activation" not in words}
        if not fresh:
            return None
        joined = {sums[-1].after, sums[-1].before} & fresh if sums else set()
        unactivated = [i for i in joined if calls[i - 1].activation is None]
        call = calls[(min(unactivated) if len(unactivated) == 2 else max(fresh)) - 1]
        return call if call.activation is None else None

    def _step(self, name: str, args: tuple[Any, ...], traced: TracedTensors, out: Any) -> None:
        calls = self.recorder.calls
        word = signal_step(name, len(traced))
        if word == "shift" and self._is_bias(args, traced):
            self.recorder.measure_preactivation(calls[max(traced[0][1]) - 1], out)
            word = None
        if word is not None:
            for index, words in (pair for _, origins in traced for pair in origins.items()):
                if index and "activation" not in words:
                    calls[index - 1].into.add(word)
        if word == "gate":
            self._gate(*(origins for _, origins in traced[:2]))
        if word == "sum" and len(traced) == 2:
            self._sum(traced, out)
        self.recorder.provenance.mark(out, merge_origins((origins for _, origins in traced), word))

    def _gate(self, one: Origins, two: Origins) -> None:
        calls = self.recorder.calls
        # x · sigmoid(x) is not a sigmoid: both factors come from the same call, one of them through an activation.
        for index in set(one) & set(two) - {0}:
            if ("activation" in one[index]) != ("activation" in two[index]):
                calls[index - 1].forget_activation()
        # signal · gate(signal): calls between the two belong to the gate, not to the path of the signal itself.
        signal, gate = sorted((max(one), max(two)))
        if 0 < signal < gate and signal in calls[signal].fed:
            for call in calls[signal:gate]:
                call.in_gate = True

    def _sum(self, traced: TracedTensors, out: Any) -> None:
        # The branch has the latest layer.
        (stream, before), (branch, after) = sorted(traced, key=lambda pair: max(pair[1]))
        if stream.shape != branch.shape or not is_float_tensor(out) or max(before) == max(after):
            return
        running = self.recorder.running
        with self.recorder.paused():
            moments = second_moment(stream), second_moment(branch), second_moment(out)
        self.recorder.sums.append(StreamSum(running[-1][1] if running else "", max(after), max(before), *moments))

    def _used_weight(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Weight, Tensor, bool] | None:
        """Return the parameter that a linear function multiplies by, as given, and whether it is the first factor."""
        for position, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, Tensor) and value.dim() > 1 and (viewed := self.weight_views.traced_tensors([value])):
                weight = self.weights[next(iter(viewed[0][1]))]
                return None if self._has_hook(weight) else (weight, value, position == 0)
        return None

    def _has_hook(self, weight: Weight) -> bool:
        # The hook of a layer that runs now records its weight, which may be a tied one.
        layers = (module for module, _, _ in self.recorder.running if isinstance(module, LAYER_TYPES))
        return any(weight.tensor is tensor for module in layers for tensor in module.parameters(recurse=False))

    def _mark_view(self, name: str, args: Sequence[Any], out: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor) and signal_step(name, 1) is None:
            for _, origins in self.weight_views.traced_tensors(args[:1]):
                self.weight_views.mark(out, origins)

    def _bare_weight(
        self, name: str, weight: Weight, factor: Tensor, first: bool, traced: TracedTensors, out: Any
    ) -> None:
        if weight.kind == "unknown" or (weight.kind == "embedding" and name != "embedding"):
            blocks = oriented_blocks(name, tuple(factor.shape), factor.stride() != weight.tensor.stride(), first)
            tied = weight.name if weight.kind == "embedding" else ""
            weight = replace(weight, kind="dense" if blocks else "unknown", blocks=blocks, tied=tied)
        fed = merge_origins(origins for _, origins in traced)
        call = self.recorder.add_call(weight.layer, weight, fed, channels_first=name.startswith("conv"))
        self.recorder.measure_preactivation(call, self.recorder.mark_output(call, out))

    def _is_bias(self, args: Sequence[Any], traced: TracedTensors) -> bool:
        # x @ W + b written by hand: the preactivation is what comes after the bias.
        ((_, origins),) = traced
        index = max(origins)
        if len(origins) > 1 or index == 0 or origins[index] != DIRECT:
            return False
        weight = self.recorder.calls[index - 1].weight
        bare = weight is not None and not isinstance(weight.owner, LAYER_TYPES)
        return bare and any(isinstance(a, nn.Parameter) and a.dim() == 1 for a in args)


def oriented_blocks(name: str, shape: tuple[int, ...], transposed: bool, first: bool) -> tuple[Block, ...]:
    """Return the block of a bare parameter, used as (out, in), or as (in, out) where a signal is multiplied by it.

    Args:
        name: name of the function that it is given to.
        shape: shape of the matrix as it is given to the function.
        transposed: whether that is a transposed view of the parameter.
        first: whether it is the first factor.

    Returns:
        One block, or none where the orientation is unknown.

    >>> oriented_blocks("matmul", (784, 128), transposed=False, first=False)[0].fans
    Fans(fan_in=784, fan_out=128, receptive=1)
    """
    if len(shape) != 2 or name not in ("linear", "matmul", "mm", "addmm"):
        return ()
    rows_out = name == "linear" or first
    out, inputs = shape if rows_out else shape[::-1]
    return (Block(Fans(inputs, out), (out, inputs), swapped=rows_out == transposed),)
