"""The record of one pass through a network, written by hooks on modules and by a mode for torch functions."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initlab.activations import Activation
from initlab.diagnostics.stats import count_underflow, is_outside
from initlab.diagnostics.trace.records import DIRECT, Call, Origins, Provenance, StreamSum
from initlab.diagnostics.weights import Weight
from initlab.inspection.batch import flatten_tensors, is_float_tensor


class PassRecorder:
    """The calls of layers, the sums of residual streams and the origins of tensors of one pass.

    Args:
        weights: the weights of the module.
        batch: number of inputs.
        data: the tensors that hold the inputs.
        precision: dtype whose underflow is counted; the dtype of each tensor if None.
        keep: keep the preactivations of each call in `kept`, with their graph, instead of measuring their gradients.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        batch: int,
        data: Sequence[Tensor],
        precision: torch.dtype | None = None,
        keep: bool = False,
    ):
        self.weights = weights
        self.batch = batch
        self.precision = precision
        self.calls: list[Call] = []
        self.sums: list[StreamSum] = []
        self.provenance = Provenance()
        self.provenance.mark(list(data), {0: DIRECT})
        self.running: list[tuple[nn.Module, str, Origins]] = []
        self.declared: Call | None = None  # the call whose declared activation runs now
        self.enabled = True
        self.kept: dict[int, Tensor] | None = {} if keep else None  # by index of the call
        self.gradient_hooks = ExitStack()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing while initlab itself computes."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def add_call(self, layer: str, weight: Weight | None, fed: Origins, channels_first: bool = False) -> Call:
        """Begin the record of the next call."""
        call = Call(len(self.calls) + 1, layer, weight, fed, channels_first=channels_first)
        self.calls.append(call)
        return call

    def first_calls(self) -> list[tuple[Call, Weight]]:
        """Return the first call of every layer that has a weight, and the weight."""
        first: dict[str, tuple[Call, Weight]] = {}
        for call in self.calls:
            if call.weight is not None:
                first.setdefault(call.layer, (call, call.weight))
        return list(first.values())

    def mark_output(self, call: Call, output: Any) -> Tensor | None:
        """Note that a call made these tensors, and return the first one that can be measured."""
        tensors = [t for t in flatten_tensors(output) if is_float_tensor(t)]
        self.provenance.mark(tensors, {call.index: DIRECT})
        return tensors[0] if tensors else None

    def measure(self, call: Call, kind: str, tensor: Any) -> None:
        """Write the statistics of a tensor into a call.

        Args:
            call: the call.
            kind: `preactivation`, `postactivation` or `delta`, the gradient at preactivations.
            tensor: their values, in the shape that the layer gives them; nothing is written of other objects.
        """
        if not is_float_tensor(tensor):
            return
        with self.paused():
            tensor = tensor.detach()
            x = tensor.double()
            if call.channels_first and x.dim() > 2:
                x = x.movedim(1, -1)  # channels of a map are units, its positions samples
            x = x.reshape(1, -1, x.shape[-1] if x.dim() else 1)
            call.write(kind, x)
            if kind == "preactivation":
                call.samples, call.units = x.shape[1:]
                by_input = inputs_first(tensor, self.batch)
                if by_input is not None:
                    call.write("inputs", by_input[None].double())
            if kind != "postactivation" and (lost := float(count_underflow(tensor[None], self.precision)[0])):
                call.stats["underflow" if kind == "preactivation" else "grad_underflow"] = lost

    def measure_entering(self, call: Call, tensor: Any, act: Activation) -> None:
        """Note mean and spread of the input of an activation, and write the fraction of it that saturates."""
        if is_float_tensor(tensor):
            with self.paused():
                x = tensor.detach().double()[None]
                call.entering = float(x.mean()), float(x.std(correction=0))
                if act.saturation is not None:
                    call.write("outside", is_outside(x, act.saturation))

    def measure_preactivation(self, call: Call, tensor: Any) -> None:
        """Measure preactivations now, and the gradient at them in the backward pass."""
        self.measure(call, "preactivation", tensor)
        if is_float_tensor(tensor) and tensor.requires_grad:
            if self.kept is not None:
                with self.paused():
                    self.kept[call.index] = tensor.clone()  # the tensor itself may change in place
            else:
                # A tensor hook, not retain_grad: it gets the gradient even when the activation works in place.
                hook = tensor.register_hook(lambda grad: self.measure(call, "delta", grad))
                self.gradient_hooks.enter_context(hook)


def inputs_first(tensor: Tensor, batch: int) -> Tensor | None:
    """View a tensor as [batch, features], or return None where no axis goes with the inputs of the batch.

    The first axis may hold several rows per input (windows of an image), the second one the inputs themselves
    (sequences first).
    """
    if batch < 2 or tensor.dim() == 0 or tensor.numel() == 0:
        return None
    if tensor.shape[0] % batch == 0:
        return tensor.reshape(batch, -1)
    if tensor.dim() > 1 and tensor.shape[1] == batch:
        return tensor.transpose(0, 1).reshape(batch, -1)
    return None
