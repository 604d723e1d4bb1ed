"""One step, and a block of steps, of one part: what a thread of the crew does at a time."""

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initlab.diagnostics import Tape, first_bad_layers
from initlab.ensemble import Part
from initlab.training.crew import Crew
from initlab.training.evaluation import accuracies, autocast, buffers_kept, keyed_randomness, member_losses
from initlab.training.events import Plan, State, Stopped
from initlab.training.optimizers import OPTIMIZERS, Hyper, Slots, Tensors, gradient_norm, stacked_norms
from initlab.training.schedules import rate_factor

TARGET_WINDOW = 10  # steps whose mean loss is compared with the target

Batch = tuple[Tensor, Tensor]


@dataclass
class Found:
    """What one part has to tell of one step; `measured` are scalars by name, each a list over the members."""

    step: int
    members: list[int]
    measured: dict[str, Any]
    tape: Tape | None
    stopped: list[Stopped]


@dataclass(frozen=True)
class Group:
    """Members with the same hyperparameters, or those of their parameters that share a rate: one call updates all."""

    hyper: Hyper
    places: list[tuple[int, int]]  # of each tensor: whose it is, and which of their parameters
    params: Tensors
    slots: Slots


@dataclass(frozen=True)
class Update:
    """What the gradients and the update of a part need, gathered once, and again when members stop."""

    clip_norms: list[float]
    rates: list[float]
    groups: list[Group]
    sinks: list[Tensor]  # memory for the gradients of a stacked part
    sinks_of_member: list[Tensors]

    @classmethod
    def of(cls, part: Part, plan: Plan, state: State, crew: Crew) -> "Update":
        """Gather parameters, slots and hyperparameters; an optimizer's own defaults hold where nothing is said."""
        hypers = [member_hyper(plan, m) for m in part.members]
        clip_norms = [h.pop("clip_norm") for h in hypers]
        own = part.of_member(p.detach() for p in part.parameters)
        slots = [state.slots[member] for member in part.members]
        shared: dict[Any, tuple[Hyper, list[tuple[int, int]]]] = {}
        for k, (member, hyper) in enumerate(zip(part.members, hypers, strict=True)):
            factors = (plan.factors[member] if plan.factors else None) or [1.0] * len(own[k])
            for j, factor in enumerate(factors):
                rated = hyper if factor == 1.0 else {**hyper, "lr": hyper["lr"] * factor}
                shared.setdefault(tuple(rated.items()), (rated, []))[1].append((k, j))
        groups = [
            Group(
                hyper,
                places,
                [own[k][j] for k, j in places],
                {name: [slots[k][name][j] for k, j in places] for name in slots[0]},
            )
            for hyper, places in shared.values()
        ]
        sinks = crew.sinks(part) if part.stacked else []
        return cls(clip_norms, [h["lr"] for h in hypers], groups, sinks, part.of_member(sinks))


def member_hyper(plan: Plan, member: int) -> dict[str, Any]:
    """Return a member's hyperparameters; a clip norm that is not set is infinite."""
    given = {**OPTIMIZERS[plan.optimizer].defaults, "weight_decay": 0.0, "clip_norm": None, **plan.hyper[member]}
    return {**given, "clip_norm": math.inf if given["clip_norm"] is None else float(given["clip_norm"])}


def advance_block(
    part: Part, start: int, batches: Iterable[Batch], plan: Plan, state: State, crew: Crew
) -> list[Found]:
    """Take consecutive steps with one part, letting members go as they stop.

    Step after step with the same few networks, weights and optimizer state stay in the cache.
    """
    found: list[Found] = []
    update = Update.of(part, plan, state, crew)
    for step, (x, y) in enumerate(batches, start):
        with buffers_kept(part.module) if step == plan.steps else nullcontext():
            found.append(advance(part, x, y, plan, step, update))
        stopped = stops(part, found[-1].measured, plan, step, state)
        found[-1].stopped.extend(stopped)
        if stopped:
            part.drop([stop.member for stop in stopped])
            if not part.members:
                break
            update = Update.of(part, plan, state, crew)
    return found


def advance(part: Part, x: Tensor, y: Tensor, plan: Plan, step: int, update: Update) -> Found:
    """Take one step with one part: forward, backward, update; the step after the last update only looks."""
    tape = Tape(part, step=step, interval=plan.saturation) if step in plan.records else None
    last, logged = step == plan.steps, step % plan.log_every == 0
    measured: dict[str, Any] = {}
    with tape if tape is not None else nullcontext(), part.gradients_into(update.sinks):
        with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast(x, plan.autocast):
            logits = part.forward(x)
            losses = member_losses(logits, y, part.stacked)
        measured["loss"] = losses.detach().tolist()
        if logged and not last:
            measured["accuracy"] = accuracies(logits, y)
        grads = [] if last and tape is None else gradients(part, losses, update)
    if not all(map(math.isfinite, measured["loss"])):
        measured["bad_layers"] = locate(part, x, plan, step)
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    if not last:
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        measured["lr"] = [rate * factor for rate in update.rates]
        if tape is not None:
            tape.before_update()
        with torch.no_grad():
            norms = apply(part, grads, plan, step, update, factor, logged)
        measured["grad_norm"] = norms
        if tape is not None:
            tape.after_update()
    return Found(step, list(part.members), measured, tape, [])


def gradients(part: Part, losses: Tensor, update: Update) -> Tensors:
    """Return the gradients of every parameter of a part, laid out as the parameters are."""
    each = torch.ones_like(losses)
    grads = torch.autograd.grad(losses, part.parameters, each, allow_unused=True, materialize_grads=True)
    if not part.stacked:
        # Fused updates pair elements by their place in memory.
        pairs = zip(grads, part.parameters, strict=True)
        return [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in pairs]
    for sink, grad in zip(update.sinks, grads, strict=True):
        if sink.data_ptr() != grad.data_ptr():
            sink.copy_(grad)
    return update.sinks


def apply(
    part: Part, grads: Tensors, plan: Plan, step: int, update: Update, factor: float, logged: bool
) -> list[float] | None:
    """Clip and update in place; return the gradients' norms before, where somebody wants them."""
    own = update.sinks_of_member if part.stacked else [grads]
    norms = None
    if logged or min(update.clip_norms) < math.inf:
        norms = stacked_norms(grads, own) if part.stacked else [gradient_norm(grads)]
        for tensors, norm, limit in zip(own, norms, update.clip_norms, strict=True):
            scale = limit / (norm + 1e-6)
            if limit < math.inf and not scale >= 1:
                torch._foreach_mul_(tensors, scale)
    for group in update.groups:
        joined = [own[k][j] for k, j in group.places]
        now = {**group.hyper, "lr": group.hyper["lr"] * factor}
        OPTIMIZERS[plan.optimizer].update(group.params, joined, group.slots, now, step + 1)
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
        elif plan.target_loss is not None and step < plan.steps:
            window = state.recent.setdefault(member, [])
            window.append(loss)
            del window[:-TARGET_WINDOW]
            if len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss:
                found.append(Stopped(member, step, "target"))
    return found
