"""Steps of members that are computed alone, one after another, by plain matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from initlab.diagnostics import LayerRecorder
from initlab.ensemble import KeptTensors, MemberLoss, SequentialMembers
from initlab.training.evaluation import member_accuracies
from initlab.training.events import State, Stopped, TrainingPlan
from initlab.training.part_state import PartState, StepResult, reaches_target
from initlab.training.schedules import rate_factor

MEASURED_TOGETHER = 8  # members whose tensors are kept until they are measured together


@dataclass
class KeptMembers:
    """Lets a tape measure what members give one after another, a few of them together: one by one takes longer."""

    tape: LayerRecorder
    kept: KeptTensors
    begin: int = 0  # the first member who has not been measured
    end: int = field(init=False, default=0)

    @classmethod
    def of(cls, tape: LayerRecorder, update: PartState, batch: int) -> "KeptMembers":
        """Listen to the members of a lane, from the first to the last."""
        assert update.lane is not None
        return cls(tape, update.lane.keeps([sink[:MEASURED_TOGETHER] for sink in update.sinks], batch))

    def next(self) -> KeptTensors:
        """Return where to keep what the next member gives."""
        if self.end - self.begin == len(self.kept.gradients[0]):
            self.measure()
        self.end += 1
        return self.kept[self.end - self.begin - 1]

    def measure(self) -> None:
        """Measure what is kept."""
        found = self.kept[: self.end - self.begin]
        z, y, deltas = ([x.transpose(1, 2) for x in own] for own in (found.before, found.after, found.deltas))
        self.tape.read(slice(self.begin, self.end), z, y, deltas, found.gradients)
        self.begin = self.end


def train_members(
    members: Sequence[int],
    start: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    plan: TrainingPlan,
    state: State,
    update: PartState,
    listener: KeptMembers | None = None,
) -> list[StepResult]:
    """Take all these steps with the first member, then with the next: its weights and slots stay in the cache.

    Who has no finite loss stays where it is, who is at its target stops after that update; neither goes on. Somebody
    may listen to a single step; he changes no bit of it.
    """
    lane = update.lane
    assert lane is not None
    found = [
        StepResult(step, [], {"loss": [], "grad_norm": [], "lr": []}, None, [])
        for step in range(start, start + len(batches))
    ]
    objectives = [MemberLoss(y, len(lane.weights[-1][0]), lane.flat.dtype) for _, y in batches]
    inputs = [x.flatten(1).contiguous() for x, _ in batches]
    # Their own memory is taken again by the next step.
    kept_outputs = [lane.flat.new_empty(len(members), *o.right.shape).unbind() for o in objectives]
    outputs: list[list[Tensor]] = [[] for _ in batches]
    for k, member in enumerate(members):
        for one, x, objective, of_step, own in zip(found, inputs, objectives, outputs, kept_outputs, strict=True):
            factor = rate_factor(plan.schedule, plan.warmup, plan.steps, one.step)
            kept = None if listener is None else listener.next()
            loss, norm = train_member_step(lane, k, x, objective, plan, one.step, update, factor, own[k], kept)
            one.members.append(member)
            for name, value in (("loss", loss), ("grad_norm", norm), ("lr", update.rates[k] * factor)):
                one.measured[name].append(value)
            of_step.append(own[k])
            if not math.isfinite(loss):
                break
            if reaches_target(member, loss, plan, state):
                one.stopped.append(Stopped(member, one.step, "target"))
                break
    if listener is not None:
        listener.measure()
    found = [one for one in found if one.members]
    for one, (_, y), logits_of in zip(found, batches, outputs, strict=False):
        if one.step % plan.log_every == 0:
            one.measured["accuracy"] = member_accuracies(torch.stack(logits_of).transpose(1, 2).contiguous(), y)
    return found


def train_member_step(
    lane: SequentialMembers,
    k: int,
    x: Tensor,
    objective: MemberLoss,
    plan: TrainingPlan,
    step: int,
    update: PartState,
    factor: float,
    outputs: Tensor,
    kept: KeptTensors | None = None,
) -> tuple[float, float]:
    """Take one step of one member; return its loss and its gradient's norm (NaN where nobody asks).

    Its outputs go into `outputs`, what else its layers give into `kept`.
    """
    outputs.copy_(lane.ahead(x, k, kept))
    loss, norm, limit = objective(outputs, lane.delta(len(x))), math.nan, update.clip_norms[k]
    if math.isfinite(loss) or kept is not None:
        lane.back(x, k, kept)
    if not math.isfinite(loss):
        return loss, norm
    if limit < math.inf or step % plan.log_every == 0:
        norm = math.sqrt(lane.squared())
        if limit < math.inf and not limit / (norm + 1e-6) >= 1:
            lane.flat.mul_(limit / (norm + 1e-6))
    for group in update.groups_of[k]:
        group.update(plan.optimizer, {k: lane.gradients}, factor, step)
    return loss, norm
