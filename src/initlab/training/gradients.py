"""Losses and gradients of a part on one batch: of all members at once by autograd, or of one after another without."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from initlab.diagnostics import LayerRecorder
from initlab.ensemble import Part
from initlab.ensemble.cpu.loss import MemberLoss
from initlab.ensemble.cpu.sequential import KeptTensors, SequentialMembers
from initlab.inspection.restore import preserve_values
from initlab.training.evaluation import (
    autocast_bfloat16,
    count_right,
    keyed_randomness,
    member_losses,
)
from initlab.training.events import TrainingPlan
from initlab.training.optimizers import Tensors

MEASURED_TOGETHER = 8  # members whose tensors are kept until they are measured by common calls


class Batch(NamedTuple):
    """Inputs and labels or values of one step, and their loss where members are computed one after another."""

    x: Tensor
    y: Tensor
    loss: MemberLoss | None = None


class BatchResult(NamedTuple):
    """What members give on one batch.

    Attributes:
        losses: by member.
        right: how many labels each gets right; None where it is not asked for.
        gradients: by place of the member in the part, then by parameter.
        pieces: the same memory in fewer tensors, where it is contiguous: for norms and clipping.
    """

    losses: list[float]
    right: list[int] | None
    gradients: dict[int, Tensors]
    pieces: dict[int, Tensors]


class GradientBackEnd(Protocol):
    """What computes losses and gradients of a part; `groups` are the members that do so together, by place."""

    groups: list[list[int]]

    def prepare(self, batch: Batch) -> Batch:
        """Return a batch as `compute` takes it: once for all groups."""
        ...

    def compute(
        self, group: Sequence[int], step: int, batch: Batch, counts: bool, recorder: LayerRecorder | None
    ) -> BatchResult:
        """Return losses and gradients, which the next call overwrites; `counts` asks for right labels.

        Gradients are empty where no update follows: after the last one, and of a member computed alone that diverged.
        """
        ...


class StackedGradients:
    """All members at once, layer by layer, by autograd."""

    def __init__(self, part: Part, plan: TrainingPlan):
        self.part, self.plan = part, plan
        self.groups = [list(range(len(part.members)))]

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch."""
        return batch

    def compute(
        self, group: Sequence[int], step: int, batch: Batch, counts: bool, recorder: LayerRecorder | None
    ) -> BatchResult:
        """Return losses and gradients."""
        (x, y, _), part, plan, last = batch, self.part, self.plan, step == self.plan.steps
        with recorder or nullcontext(), preserve_values(*part.module.buffers()) if last else nullcontext():
            with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast_bfloat16(x, plan.autocast):
                outputs = part.forward(x)
                losses = member_losses(outputs, y, part.stacked)
            gradients = [] if last and recorder is None else part_gradients(part, losses)
        if recorder is not None:
            recorder.measure_gradients(dict(zip(part.names, gradients, strict=True)))
        by_member = {} if last else dict(enumerate(part.unbind_members(gradients)))
        return BatchResult(losses.tolist(), count_right(outputs, y) if counts else None, by_member, by_member)


def part_gradients(part: Part, losses: Tensor) -> Tensors:
    """Return the gradients of a part's parameters by every member's loss, laid out as the parameters are."""
    # Of their sum, every loss counts as 1; given the ones, autograd would import a computer algebra (+0.8 s).
    gradients = torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True, materialize_grads=True)
    # Fused updates pair elements by their place in memory; members of a stack are updated one by one.
    own = 1 if part.stacked else 0
    return [
        gradient if gradient.stride()[own:] == p.stride()[own:] else torch.empty_like(p).copy_(gradient)
        for gradient, p in zip(gradients, part.parameters, strict=True)
    ]


class SequentialGradients:
    """One member after another, by plain matrices."""

    def __init__(self, part: Part, plan: TrainingPlan, fast: SequentialMembers):
        self.plan, self.fast, self.workspace = plan, fast, fast.allocate(plan.batch_size)
        self.kept: KeptMembers | None = None
        self.groups = [[k] for k in range(len(part.members))]

    def prepare(self, batch: Batch) -> Batch:
        """Return the samples as rows, and the loss."""
        outputs = self.workspace.after[-1].tensor
        return Batch(batch.x.flatten(1).contiguous(), batch.y, MemberLoss(batch.y, len(outputs), outputs.dtype))

    def compute(
        self, group: Sequence[int], step: int, batch: Batch, counts: bool, recorder: LayerRecorder | None
    ) -> BatchResult:
        """Return loss and gradients of one member."""
        (k,), (x, _, loss), workspace = group, batch, self.workspace
        assert loss is not None
        if recorder is not None and self.kept is None:
            self.kept = KeptMembers(recorder, self.fast.allocate_kept(MEASURED_TOGETHER, len(x)))
        kept = self.kept.next() if self.kept is not None else None
        outputs = self.fast.forward(x, k, workspace, kept)
        right = [loss.count_right(outputs)] if counts else None
        value = loss(outputs, workspace.deltas[-1].tensor)
        updates = step < self.plan.steps and math.isfinite(value)
        if updates or kept is not None:
            self.fast.backward(x, k, workspace, kept)
        if self.kept is not None and k == len(self.groups) - 1:
            self.kept.measure()
            self.kept = None
        if not updates:
            return BatchResult([value], right, {}, {})
        return BatchResult([value], right, {k: workspace.gradients}, {k: [workspace.flat]})


@dataclass
class KeptMembers:
    """Tensors of members computed one after another, kept until a few are measured by common calls: that is faster."""

    recorder: LayerRecorder
    kept: KeptTensors
    begin: int = 0  # the first member that has not been measured
    end: int = 0

    def next(self) -> KeptTensors:
        """Return where to keep the tensors of the next member."""
        if self.end - self.begin == len(self.kept.before[0]):
            self.measure()
        self.end += 1
        return self.kept[self.end - self.begin - 1]

    def measure(self) -> None:
        """Measure what is kept."""
        kept = self.kept[: self.end - self.begin]
        z, y, deltas = ([x.transpose(1, 2) for x in own] for own in (kept.before, kept.after, kept.deltas))
        self.recorder.measure_members(slice(self.begin, self.end), z, y, deltas, kept.gradients)
        self.begin = self.end
