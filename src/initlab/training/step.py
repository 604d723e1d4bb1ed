"""One step, and a block of steps, of one part: what a thread of the crew does at a time."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from initlab.diagnostics import Tape, first_bad_layers
from initlab.ensemble import Part
from initlab.training.evaluation import accuracies, autocast, buffers_kept, keyed_randomness, member_losses
from initlab.training.events import Plan, State, Stopped
from initlab.training.optimizers import Tensors, gradient_norm, stacked_norms
from initlab.training.part_state import Found, Update, reached
from initlab.training.schedules import rate_factor
from initlab.training.sequential import Listener, steps_of_members
from initlab.training.threads import Crew

Batch = tuple[Tensor, Tensor]


def advance_block(
    part: Part, start: int, batches: Iterable[Batch], plan: Plan, state: State, crew: Crew
) -> list[Found]:
    """Take consecutive steps with one part, letting members go as they stop.

    Step after step with the same few networks, weights and optimizer state stay in the cache. A recorded step, and the
    one after the last update, is a block of its own.
    """
    update = crew.made_of(part, lambda: Update.of(part, plan, state, crew))
    if update.lane is not None and start < plan.steps:
        return advance_members(part, start, list(batches), plan, state, update)
    found: list[Found] = []
    for step, (x, y) in enumerate(batches, start):
        with buffers_kept(part.module) if step == plan.steps else nullcontext():
            found.append(advance(part, x, y, plan, step, update))
        stopped = stops(part, found[-1].measured, plan, step, state)
        found[-1].stopped.extend(stopped)
        if stopped:
            part.drop([stop.member for stop in stopped])
            if not part.members:
                break
            update = crew.made_of(part, lambda: Update.of(part, plan, state, crew))
    return found


def advance_members(
    part: Part, start: int, batches: list[Batch], plan: Plan, state: State, update: Update
) -> list[Found]:
    """Take these steps with one member after another; a recorded one is a block of its own."""
    tape = Tape(part, step=start, interval=plan.saturation) if start in plan.records else None
    listener = None
    if tape is not None:
        tape.before_update()
        listener = Listener.of(tape, update, len(batches[0][0]))
    with torch.no_grad():
        found = steps_of_members(part.members, start, batches, plan, state, update, listener)
    if tape is not None:
        tape.after_update()
        found[0].tape = tape
    for one, (x, _) in zip(found, batches, strict=False):
        lost = [m for m, loss in zip(one.members, one.measured["loss"], strict=True) if not math.isfinite(loss)]
        if lost:
            # Who has no finite loss has the weights of that step still.
            layers = locate(part, x, plan, one.step)
            named = [layers.get(part.members.index(member), "loss") for member in lost]
            one.stopped.extend(Stopped(m, one.step, "diverged", name) for m, name in zip(lost, named, strict=True))
    if gone := [stop.member for one in found for stop in one.stopped]:
        part.drop(gone)
    return found


def advance(part: Part, x: Tensor, y: Tensor, plan: Plan, step: int, update: Update) -> Found:
    """Take one step with one part: forward, backward, update; the step after the last update only looks."""
    tape = Tape(part, step=step, interval=plan.saturation) if step in plan.records else None
    measured, grads = together(part, x, y, plan, step, update, tape)
    if not all(map(math.isfinite, measured["loss"])):
        measured["bad_layers"] = locate(part, x, plan, step)
    if step < plan.steps:
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        measured["lr"] = [rate * factor for rate in update.rates]
        if tape is not None:
            tape.before_update()
        with torch.no_grad():
            measured["grad_norm"] = apply(part, grads, plan, step, update, factor)
        if tape is not None:
            tape.after_update()
    return Found(step, list(part.members), measured, tape, [])


def together(
    part: Part, x: Tensor, y: Tensor, plan: Plan, step: int, update: Update, tape: Tape | None
) -> tuple[dict[str, Any], Tensors]:
    """Compute losses and gradients of all members layer by layer, while the tape listens."""
    last = step == plan.steps
    measured: dict[str, Any] = {}
    with tape if tape is not None else nullcontext(), part.gradients_into(update.sinks):
        with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast(x, plan.autocast):
            logits = part.forward(x)
            losses = member_losses(logits, y, part.stacked)
        measured["loss"] = losses.detach().tolist()
        if step % plan.log_every == 0 and not last:
            measured["accuracy"] = accuracies(logits, y)
        grads = [] if last and tape is None else gradients(part, losses, update)
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    return measured, grads


def gradients(part: Part, losses: Tensor, update: Update) -> Tensors:
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


def apply(part: Part, grads: Tensors, plan: Plan, step: int, update: Update, factor: float) -> list[float] | None:
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


def locate(part: Part, x: Tensor, plan: Plan, step: int) -> dict[int, str]:
    """Run the forward pass of this step again and name the first non-finite layer of every member, by position."""
    with (
        buffers_kept(part.module),
        keyed_randomness(part, x, plan.data_seed, f"{step}"),
        autocast(x, plan.autocast),
    ):
        return first_bad_layers(part, lambda: part.forward(x))


def stops(part: Part, measured: Mapping[str, Any], plan: Plan, step: int, state: State) -> list[Stopped]:
    """Return the members that diverged or reached the target at this step."""
    found = []
    for position, member in enumerate(part.members):
        loss = measured["loss"][position]
        if not math.isfinite(loss):
            found.append(Stopped(member, step, "diverged", measured["bad_layers"].get(position, "loss")))
        elif step < plan.steps and reached(member, loss, plan, state):
            found.append(Stopped(member, step, "target"))
    return found
