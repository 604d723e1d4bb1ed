"""Losses and gradients of a part on one batch: of all members at once by autograd, or of one after another without."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from initlab.diagnostics import LayerRecorder
from initlab.ensemble import Part
from initlab.ensemble.cpu.loss import member_loss
from initlab.ensemble.cpu.sequential import KeptTensors, SequentialMembers
from initlab.training.evaluation import autocast_bfloat16, keyed_randomness, member_losses, restoring_buffers
from initlab.training.events import TrainingPlan
from initlab.training.optimizers import Tensors

MEASURED_TOGETHER = 8  # members whose tensors are kept until they are measured by common calls


class GradientBackEnd(Protocol):
    """What computes losses and gradients of a part.

    `groups` are members that take a step together, by their places in the part. `compute(group, step, x, y, recorder)`
    returns their losses, their outputs [n, B, classes] and their gradients by place, and lets `recorder`, if any,
    measure their layers. Gradients and outputs are valid until the next call.
    """

    groups: list[list[int]]

    def compute(
        self, group: Sequence[int], step: int, x: Tensor, y: Tensor, recorder: LayerRecorder | None
    ) -> tuple[list[float], Tensor, dict[int, Tensors]]:
        """Return losses, outputs and gradients."""
        ...


class StackedGradients:
    """All members at once, layer by layer, by autograd."""

    def __init__(self, part: Part, plan: TrainingPlan):
        self.part, self.plan = part, plan
        self.groups = [list(range(len(part.members)))]

    def compute(
        self, group: Sequence[int], step: int, x: Tensor, y: Tensor, recorder: LayerRecorder | None
    ) -> tuple[list[float], Tensor, dict[int, Tensors]]:
        """Return losses, outputs and gradients; after the last update gradients only where they are recorded."""
        part, plan, last = self.part, self.plan, step == self.plan.steps
        with recorder or nullcontext(), restoring_buffers(part.module) if last else nullcontext():
            with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast_bfloat16(x, plan.autocast):
                outputs = part.forward(x)
                losses = member_losses(outputs, y, part.stacked)
            gradients = [] if last and recorder is None else part_gradients(part, losses)
        if recorder is not None:
            recorder.gradients(dict(zip(part.names, gradients, strict=True)))
        return losses.tolist(), outputs, dict(enumerate(part.unbind_members(gradients)))


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

    def compute(
        self, group: Sequence[int], step: int, x: Tensor, y: Tensor, recorder: LayerRecorder | None
    ) -> tuple[list[float], Tensor, dict[int, Tensors]]:
        """Return loss, outputs and gradients of one member; after the last update gradients only where recorded."""
        (k,) = group
        if recorder is not None and self.kept is None:
            self.kept = KeptMembers(recorder, self.fast.allocate_kept(MEASURED_TOGETHER, len(x)))
        kept = self.kept.next() if self.kept is not None else None
        x = x.flatten(1).contiguous()
        outputs = self.fast.forward(x, k, self.workspace, kept)
        loss = member_loss(outputs, y, self.workspace.deltas[-1].tensor)
        last = step == self.plan.steps
        gradients = [] if last and kept is None else self.fast.backward(x, k, self.workspace, kept)
        if self.kept is not None and k == len(self.groups) - 1:
            self.kept.measure()
            self.kept = None
        return [loss], outputs.t()[None], {k: gradients}


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
        self.recorder.read(slice(self.begin, self.end), z, y, deltas, kept.gradients)
        self.begin = self.end
