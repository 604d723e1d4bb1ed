"""Hooks on the modules of a network: they record what each layer does in one forward and backward pass."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.trace.function_mode import FunctionTracer
from initlab.diagnostics.trace.recorder import PassRecorder
from initlab.diagnostics.trace.records import Call, Origins
from initlab.diagnostics.weights import CONVOLUTIONS, LAYER_TYPES, RECURRENT, Weight
from initlab.inspection.parameters import plain_name


class ModuleTracer:
    """Record one forward pass inside the `with` block, and its backward pass until the hooks on tensors are removed.

    Hooks record the modules that hold weights, a mode for torch functions records the rest. Where a module declares
    `weight_layers`, a layer's preactivation is the input of the activation declared for it (behind a norm, where there
    is one); else it is the layer's output.
    """

    def __init__(self, module: nn.Module, recorder: PassRecorder):
        self.module = module
        self.recorder = recorder
        self.hooks = ExitStack()
        modules = dict(module.named_modules())
        declared = getattr(module, "weight_layers", ())
        self.activations = {one.name: modules[one.activation] for one in declared if one.activation is not None}
        self.awaited: dict[int, Call] = {}  # id of a declared activation -> the call whose output it takes

    def __enter__(self) -> "ModuleTracer":
        for name, module in self.module.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                own = plain_name(name)
                before, after = partial(self._before, own), partial(self._after, own)
                self.hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                self.hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        self.hooks.enter_context(FunctionTracer(self.recorder))
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder = self.recorder
        recorder.running.append((module, name, recorder.provenance.merged_origins(args, kwargs)))
        call = self.awaited.pop(id(module), None)
        if call is not None:
            recorder.declared = call
            recorder.measure_preactivation(call, args[0])

    def _after(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        recorder = self.recorder
        fed: Origins = {}
        while recorder.running:
            running, _, fed = recorder.running.pop()
            if running is module:
                break
        projections = self._projections(module, args, kwargs, output)
        if recorder.declared is not None and self.activations.get(recorder.declared.layer) is module:
            recorder.measure(recorder.declared, "postactivation", output)
            recorder.declared = None
        elif projections and isinstance(module, nn.MultiheadAttention):
            self._attention(name, module, projections, output)
        elif isinstance(module, RECURRENT):
            self._recurrent(module, name, fed, output)
        elif isinstance(module, LAYER_TYPES):
            self._layer(name, self._weight_of(module), fed, output)

    def _weight_of(self, module: nn.Module) -> Weight | None:
        return next((weight for weight in self.recorder.weights if weight.owner is module), None)

    def _layer(self, layer: str, weight: Weight | None, fed: Origins, output: Any) -> Call:
        convolution = weight is not None and isinstance(weight.owner, CONVOLUTIONS)
        call = self.recorder.add_call(layer, weight, fed, channels_first=convolution)
        tensor = self.recorder.mark_output(call, output)
        activation = self.activations.get(layer)
        if activation is not None:
            self.awaited[id(activation)] = call
        else:
            self.recorder.measure_preactivation(call, tensor)
        return call

    def _projections(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> list[Any]:
        # A subclass may keep other weights, take other arguments, or return other things than torch's own class: [].
        if not isinstance(module, nn.MultiheadAttention):
            return []
        inputs = [*args, *(kwargs[k] for k in ("query", "key", "value")[len(args) :] if k in kwargs)][:3]
        weights = [w for w in self.recorder.weights if w.owner is module and w.is_projection]
        pairs = list(zip(weights, inputs, strict=False))
        tensors = len(inputs) == 3 == len(weights) and all(isinstance(t, Tensor) and t.dim() > 1 for t in inputs)
        fits = tensors and all(w.blocks[0].shape[1] == t.shape[-1] for w, t in pairs)
        return pairs if fits and isinstance(output, tuple) else []

    def _attention(self, name: str, module: nn.MultiheadAttention, projections: list[Any], output: Any) -> None:
        # Its projections are hidden in one fused function: q, k and v are computed once more, forward only.
        recorder = self.recorder
        inner: Origins = {}
        for weight, tensor in projections:
            call = recorder.add_call(weight.layer, weight, recorder.provenance.merged_origins([tensor]))
            with recorder.paused(), torch.no_grad():
                projected = nn.functional.linear(tensor, weight.part(weight.tensor), weight.bias)
            recorder.measure(call, "preactivation", projected)
            inner[call.index] = frozenset({"other"})
        self._layer(f"{name}.out_proj" if name else "out_proj", self._weight_of(module.out_proj), inner, output[0])

    def _recurrent(self, module: nn.Module, name: str, fed: Origins, output: Any) -> None:
        recorder = self.recorder
        called = {call.weight.layer for call in recorder.calls if call.weight is not None}
        for weight in recorder.weights:
            if weight.owner is module and weight.layer not in called:
                recorder.add_call(weight.layer, weight, fed)
        call = self._layer(name, None, fed, output)
        # The output has passed gates and a tanh already: theory follows no preactivation there.
        recorder.provenance.mark(output, {call.index: frozenset({"other"})})
        call.into.add("other")
