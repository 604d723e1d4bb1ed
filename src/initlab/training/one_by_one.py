"""Steps of members that are computed alone, one after another, by plain matrices."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from initlab.ensemble import Lane, Objective
from initlab.training.evaluation import accuracies
from initlab.training.events import Plan, State, Stopped
from initlab.training.schedules import rate_factor
from initlab.training.update import Found, Update, reached


def steps_of_members(
    members: Sequence[int],
    start: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    plan: Plan,
    state: State,
    update: Update,
) -> list[Found]:
    """Take all these steps with the first member, then with the next: its weights and slots stay in the cache.

    Who has no finite loss stays where it is, who is at its target stops after that update; neither goes on.
    """
    lane = update.lane
    assert lane is not None
    found = [
        Found(step, [], {"loss": [], "grad_norm": [], "lr": []}, None, [])
        for step in range(start, start + len(batches))
    ]
    objectives = [Objective(y, len(lane.weights[-1][0]), lane.flat.dtype) for _, y in batches]
    inputs = [x.flatten(1).contiguous() for x, _ in batches]
    outputs: list[list[Tensor]] = [[] for _ in batches]
    for k, member in enumerate(members):
        for one, x, objective, kept in zip(found, inputs, objectives, outputs, strict=True):
            factor = rate_factor(plan.schedule, plan.warmup, plan.steps, one.step)
            loss, norm, logits = step_of_member(lane, k, x, objective, plan, one.step, update, factor)
            one.members.append(member)
            for name, value in (("loss", loss), ("grad_norm", norm), ("lr", update.rates[k] * factor)):
                one.measured[name].append(value)
            kept.append(logits)
            if not math.isfinite(loss):
                break
            if reached(member, loss, plan, state):
                one.stopped.append(Stopped(member, one.step, "target"))
                break
    found = [one for one in found if one.members]
    for one, (_, y), logits_of in zip(found, batches, outputs, strict=False):
        if one.step % plan.log_every == 0:
            one.measured["accuracy"] = accuracies(torch.stack(logits_of).transpose(1, 2).contiguous(), y)
    return found


def step_of_member(
    lane: Lane,
    k: int,
    x: Tensor,
    objective: Objective,
    plan: Plan,
    step: int,
    update: Update,
    factor: float,
) -> tuple[float, float, Tensor]:
    """Take one step of one member; return its loss, its gradient's norm (NaN where nobody asks) and its outputs."""
    logits = lane.ahead(x, k).clone()  # the next call takes their memory again
    loss, norm, limit = objective(logits, lane.delta(len(x))), math.nan, update.clip_norms[k]
    if not math.isfinite(loss):
        return loss, norm, logits
    lane.back(x, k)
    if limit < math.inf or step % plan.log_every == 0:
        norm = math.sqrt(lane.squared())
        if limit < math.inf and not limit / (norm + 1e-6) >= 1:
            lane.flat.mul_(limit / (norm + 1e-6))
    for group in update.groups_of[k]:
        group.update(plan.optimizer, {k: lane.gradients}, factor, step)
    return loss, norm, logits
