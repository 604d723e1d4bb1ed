"""One step, and a block of steps, of one part: what a thread of the crew does at a time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from initlab.diagnostics import Tape, first_bad_layers
from initlab.ensemble import Lane, Objective, Part
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

    def update(
        self, optimizer: str, grads: Mapping[int, Tensors] | Sequence[Tensors], factor: float, step: int
    ) -> None:
        """Update the parameters, by the gradients of every member and the schedule's factor."""
        now = {**self.hyper, "lr": self.hyper["lr"] * factor}
        joined = [grads[k][j] for k, j in self.places]
        OPTIMIZERS[optimizer].update(self.params, joined, self.slots, now, step + 1)


@dataclass(frozen=True)
class Update:
    """What the gradients and the update of a part need, gathered once, and again when members stop."""

    clip_norms: list[float]
    rates: list[float]
    groups: list[Group]
    sinks: list[Tensor]  # memory for the gradients of a stacked part
    sinks_of_member: list[Tensors]
    lane: Lane | None  # where the networks are computed one by one

    @classmethod
    def of(cls, part: Part, plan: Plan, state: State, crew: Crew) -> "Update":
        """Gather parameters, slots and hyperparameters; an optimizer's own defaults hold where nothing is said."""
        hypers = [member_hyper(plan, m) for m in part.members]
        clip_norms = [h.pop("clip_norm") for h in hypers]
        lane = part.lane if not plan.autocast and part.lane is not None and part.lane.pays(plan.batch_size) else None
        own = part.of_member(p.detach() for p in part.parameters)
        slots = [state.slots[member] for member in part.members]
        shared: dict[Any, tuple[Hyper, list[tuple[int, int]]]] = {}
        for k, (member, hyper) in enumerate(zip(part.members, hypers, strict=True)):
            factors = (plan.factors[member] if plan.factors else None) or [1.0] * len(own[k])
            for j, factor in enumerate(factors):
                rated = hyper if factor == 1.0 else {**hyper, "lr": hyper["lr"] * factor}
                # Networks that are computed one by one are updated so.
                key = (None if lane is None else k, *rated.items())
                shared.setdefault(key, (rated, []))[1].append((k, j))
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
        return cls(clip_norms, [h["lr"] for h in hypers], groups, sinks, part.of_member(sinks), lane)

    @cached_property
    def groups_of(self) -> list[list[Group]]:
        """The groups by member, where no two members share one."""
        found: list[list[Group]] = [[] for _ in self.rates]
        for group in self.groups:
            found[group.places[0][0]].append(group)
        return found


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
    last = step == plan.steps
    lane = None if last else update.lane
    measured: dict[str, Any] = {}
    if lane is None or tape is not None:
        measured, grads = together(part, x, y, plan, step, update, tape)
    if not last:
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        measured["lr"] = [rate * factor for rate in update.rates]
        if tape is not None:
            tape.before_update()
        with torch.no_grad():
            if lane is not None:
                # What is listened to is only measured: the way that a network takes does not depend on who listens.
                measured |= one_by_one(lane, x, y, plan, step, update, factor)
            else:
                measured["grad_norm"] = apply(part, grads, plan, step, update, factor)
        if tape is not None:
            tape.after_update()
    if not all(map(math.isfinite, measured["loss"])) and "bad_layers" not in measured:
        measured["bad_layers"] = locate(part, x, plan, step)
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
    if not all(map(math.isfinite, measured["loss"])):
        measured["bad_layers"] = locate(part, x, plan, step)
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    return measured, grads


def one_by_one(
    lane: Lane, x: Tensor, y: Tensor, plan: Plan, step: int, update: Update, factor: float
) -> dict[str, Any]:
    """Take the step of every member after that of the one before; who has no finite loss stays where it is."""
    logged = step % plan.log_every == 0
    losses, outputs, norms = [], [], []
    x, objective = x.flatten(1), Objective(y, len(lane.weights[-1][0]))
    for k, limit in enumerate(update.clip_norms):
        logits, kept = lane.ahead(x, k)
        loss, delta = objective(logits)
        losses.append(loss.item())
        outputs.append(logits)
        norms.append(math.nan)
        if not math.isfinite(losses[-1]):
            continue
        lane.back(delta, kept, k)
        if logged or limit < math.inf:
            norms[-1] = math.sqrt(torch.dot(lane.flat, lane.flat).item())
            if limit < math.inf and not limit / (norms[-1] + 1e-6) >= 1:
                lane.flat.mul_(limit / (norms[-1] + 1e-6))
        for group in update.groups_of[k]:
            group.update(plan.optimizer, {k: lane.gradients}, factor, step)
    found: dict[str, Any] = {"loss": losses, "grad_norm": norms}
    if logged:
        found["accuracy"] = accuracies(torch.stack(outputs), y)
    return found


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
        elif plan.target_loss is not None and step < plan.steps:
            window = state.recent.setdefault(member, [])
            window.append(loss)
            del window[:-TARGET_WINDOW]
            if len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss:
                found.append(Stopped(member, step, "target"))
    return found
