"""One step, and a block of steps, of one part: what a thread of the crew does at a time."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from initlab.diagnostics import LayerRecorder, first_bad_layers
from initlab.ensemble import Part
from initlab.training.evaluation import (
    autocast_bfloat16,
    keyed_randomness,
    member_accuracies,
    member_losses,
    restoring_buffers,
)
from initlab.training.events import State, Stopped, TrainingPlan
from initlab.training.optimizers import Tensors, gradient_norm, stacked_norms
from initlab.training.part_state import PartState, StepResult, reaches_target
from initlab.training.schedules import rate_factor
from initlab.training.sequential import KeptMembers, train_members
from initlab.training.threads import ThreadTeam

Batch = tuple[Tensor, Tensor]


def train_block(
    part: Part, start: int, batches: Iterable[Batch], plan: TrainingPlan, state: State, crew: ThreadTeam
) -> list[StepResult]:
    """Take consecutive steps with one part, letting members go as they stop.

    Step after step with the same few networks, weights and optimizer state stay in the cache. A recorded step, and the
    one after the last update, is a block of its own.
    """
    update = crew.made_of(part, lambda: PartState.of(part, plan, state, crew))
    if update.lane is not None and start < plan.steps:
        return train_members_block(part, start, list(batches), plan, state, update)
    found: list[StepResult] = []
    for step, (x, y) in enumerate(batches, start):
        with restoring_buffers(part.module) if step == plan.steps else nullcontext():
            found.append(train_step(part, x, y, plan, step, update))
        stopped = find_stopped(part, found[-1].measured, plan, step, state)
        found[-1].stopped.extend(stopped)
        if stopped:
            part.drop([stop.member for stop in stopped])
            if not part.members:
                break
            update = crew.made_of(part, lambda: PartState.of(part, plan, state, crew))
    return found


def train_members_block(
    part: Part, start: int, batches: list[Batch], plan: TrainingPlan, state: State, update: PartState
) -> list[StepResult]:
    """Take these steps with one member after another; a recorded one is a block of its own."""
    tape = LayerRecorder(part, step=start, interval=plan.saturation) if start in plan.records else None
    listener = None
    if tape is not None:
        tape.before_update()
        listener = KeptMembers.of(tape, update, len(batches[0][0]))
    with torch.no_grad():
        found = train_members(part.members, start, batches, plan, state, update, listener)
    if tape is not None:
        tape.after_update()
        found[0].tape = tape
    for one, (x, _) in zip(found, batches, strict=False):
        lost = [m for m, loss in zip(one.members, one.measured["loss"], strict=True) if not math.isfinite(loss)]
        if lost:
            # Who has no finite loss has the weights of that step still.
            layers = locate_nonfinite(part, x, plan, one.step)
            named = [layers.get(part.members.index(member), "loss") for member in lost]
            one.stopped.extend(Stopped(m, one.step, "diverged", name) for m, name in zip(lost, named, strict=True))
    if gone := [stop.member for one in found for stop in one.stopped]:
        part.drop(gone)
    return found


def train_step(part: Part, x: Tensor, y: Tensor, plan: TrainingPlan, step: int, update: PartState) -> StepResult:
    """Take one step with one part: forward, backward, update; the step after the last update only looks."""
    tape = LayerRecorder(part, step=step, interval=plan.saturation) if step in plan.records else None
    measured, grads = stacked_gradients(part, x, y, plan, step, update, tape)
    if not all(map(math.isfinite, measured["loss"])):
        measured["bad_layers"] = locate_nonfinite(part, x, plan, step)
    if step < plan.steps:
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        measured["lr"] = [rate * factor for rate in update.rates]
        if tape is not None:
            tape.before_update()
        with torch.no_grad():
            measured["grad_norm"] = clip_and_update(part, grads, plan, step, update, factor)
        if tape is not None:
            tape.after_update()
    return StepResult(step, list(part.members), measured, tape, [])


def stacked_gradients(
    part: Part, x: Tensor, y: Tensor, plan: TrainingPlan, step: int, update: PartState, tape: LayerRecorder | None
) -> tuple[dict[str, Any], Tensors]:
    """Compute losses and gradients of all members layer by layer, while the tape listens."""
    last = step == plan.steps
    measured: dict[str, Any] = {}
    with tape if tape is not None else nullcontext(), part.gradients_into(update.sinks):
        with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast_bfloat16(x, plan.autocast):
            logits = part.forward(x)
            losses = member_losses(logits, y, part.stacked)
        measured["loss"] = losses.detach().tolist()
        if step % plan.log_every == 0 and not last:
            measured["accuracy"] = member_accuracies(logits, y)
        grads = [] if last and tape is None else part_gradients(part, losses, update)
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    return measured, grads


def part_gradients(part: Part, losses: Tensor, update: PartState) -> Tensors:
    """Return the gradients of every parameter of a part, laid out as the parameters are."""
    # Of their sum, every loss counts as 1; to be given the ones, autograd would import a computer algebra (+0.8 s).
    grads = torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True, materialize_grads=True)
    if not part.stacked:
        # Fused updates pair elements by their place in memory.
        pairs = zip(grads, part.parameters, strict=True)
        return [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in pairs]
    for sink, grad in zip(update.sinks, grads, strict=True):
        if sink.data_ptr() != grad.data_ptr():
            sink.copy_(grad)
    return update.sinks


def clip_and_update(
    part: Part, grads: Tensors, plan: TrainingPlan, step: int, update: PartState, factor: float
) -> list[float] | None:
    """Clip and update in place; return the gradients' norms before, where somebody wants them."""
    own = update.sinks_of_member if part.stacked else [grads]
    norms = None
    if step % plan.log_every == 0 or min(update.clip_norms) < math.inf:
        norms = stacked_norms(grads, own) if part.stacked else [gradient_norm(grads)]
        for tensors, norm, limit in zip(own, norms, update.clip_norms, strict=True):
            scale = limit / (norm + 1e-6)
            if limit < math.inf and not scale >= 1:
                torch._foreach_mul_(tensors, scale)
    for group in update.groups:
        group.update(plan.optimizer, own, factor, step)
    return norms


def locate_nonfinite(part: Part, x: Tensor, plan: TrainingPlan, step: int) -> dict[int, str]:
    """Run the forward pass of this step again and name the first non-finite layer of every member, by position."""
    with (
        restoring_buffers(part.module),
        keyed_randomness(part, x, plan.data_seed, f"{step}"),
        autocast_bfloat16(x, plan.autocast),
    ):
        return first_bad_layers(part, lambda: part.forward(x))


def find_stopped(part: Part, measured: Mapping[str, Any], plan: TrainingPlan, step: int, state: State) -> list[Stopped]:
    """Return the members that diverged or reached the target at this step."""
    found = []
    for position, member in enumerate(part.members):
        loss = measured["loss"][position]
        if not math.isfinite(loss):
            found.append(Stopped(member, step, "diverged", measured["bad_layers"].get(position, "loss")))
        elif step < plan.steps and reaches_target(member, loss, plan, state):
            found.append(Stopped(member, step, "target"))
    return found
