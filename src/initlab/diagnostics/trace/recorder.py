"""What hooks on modules and the ear for functions share while a network runs: calls, sums, origins of tensors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initlab.diagnostics.trace.records import DIRECT, Call, Origins, Provenance, StreamSum
from initlab.diagnostics.weights import Weight
from initlab.inspection.batch import flatten_tensors, is_float_tensor


class PassRecorder:
    """One pass through a network: `batch` inputs, held by the tensors `data`."""

    def __init__(self, weights: Sequence[Weight], batch: int, data: Sequence[Tensor]):
        self.precision: torch.dtype | None = None  # to judge underflow by; None: each tensor's own
        self.weights = weights
        self.batch = batch
        self.calls: list[Call] = []
        self.sums: list[StreamSum] = []
        self.origin = Provenance()
        self.origin.mark(list(data), {0: DIRECT})
        self.running: list[tuple[nn.Module, str, Origins]] = []
        self.declared: Call | None = None  # the call whose declared activation runs now
        self.listening = True
        self.grading = True
        self.kept: dict[int, Tensor] | None = None  # index of a call -> its preactivations, where they are wanted
        self.handles: list[Any] = []
        self.listed: set[str] = set()

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """While initlab itself computes, nothing is heard."""
        before, self.listening = self.listening, False
        try:
            yield
        finally:
            self.listening = before

    def call(self, layer: str, weight: Weight | None, fed: Origins, channels_first: bool = False) -> Call:
        """Begin the record of the next call."""
        call = Call(len(self.calls) + 1, layer, weight, fed, channels_first=channels_first)
        self.calls.append(call)
        if weight is not None:
            self.listed.add(weight.layer)
        return call

    def produced(self, call: Call, output: Any) -> Tensor | None:
        """Note that a call made these tensors, and return the first one that can be measured."""
        tensors = [t for t in flatten_tensors(output) if is_float_tensor(t)]
        self.origin.mark(tensors, {call.index: DIRECT})
        return tensors[0] if tensors else None

    def measure(self, call: Call, kind: str, tensor: Any) -> None:
        """Write the statistics of a tensor into a call."""
        if is_float_tensor(tensor):
            with self.deaf():
                call.measure(kind, tensor, self.batch, self.precision)

    def preactivation(self, call: Call, tensor: Any) -> None:
        """Measure preactivations now, and the gradient at them when it comes."""
        self.measure(call, "preactivation", tensor)
        if is_float_tensor(tensor) and tensor.requires_grad:
            # A tensor hook, not retain_grad: it sees the gradient even when the activation works in place.
            self.handles.append(tensor.register_hook(lambda grad: self._delta(call, grad)))
            if self.kept is not None:
                with self.deaf():
                    self.kept[call.index] = tensor.clone()  # the tensor itself may change in place

    def _delta(self, call: Call, grad: Tensor) -> None:
        if self.grading:
            call.measure("delta", grad, self.batch, self.precision)

    def close(self) -> None:
        """Take the hooks off the tensors."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
