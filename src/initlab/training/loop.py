"""The loop over an ensemble: it computes and yields, and logs nothing."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from initlab.data import Dataset, batches
from initlab.diagnostics import Tape, first_bad_layers
from initlab.ensemble import Ensemble, Part
from initlab.training.evaluation import (
    accuracies,
    autocast,
    buffers_kept,
    evaluate,
    keyed_randomness,
    member_losses,
)
from initlab.training.events import Event, Pause, Plan, Snapshot, State, Steps, Stopped
from initlab.training.optimizers import OPTIMIZERS, add_scaled_, clip_, gradient_norms, nonzero
from initlab.training.schedules import rate_factor

YIELD_EVERY = 0.2  # seconds between pauses: often enough for a progress line, and to stop soon when asked to
TARGET_WINDOW = 10  # steps whose mean loss is compared with the target
PER_MEMBER = ("lr", "weight_decay", "clip_norm")


def train(ensemble: Ensemble, data: Dataset, plan: Plan, state: State | None = None) -> Iterator[Event]:
    """Train all members on common batches, yielding rows, evaluations, snapshots and stops as they happen.

    Row k holds the loss of batch k under the weights after k updates, so step 0 is the initialization. A non-finite
    loss stops that member alone; after the last update one more batch is looked at, so that none goes unseen. At every
    `Pause`, and at the end, `state` is whole: with the weights it is a checkpoint, and what was yielded will not come
    again.

    Arguments: `ensemble` of initialized networks; `data` on the same device; `plan`; `state` to go on from.
    """
    state = State() if state is None else state
    optimizer = OPTIMIZERS[plan.optimizer]
    if not state.slots:
        state.slots = [optimizer.fresh_state(part.parameters) for part in ensemble.parts]
    hypers = [member_hyper(part, plan) for part in ensemble.parts]
    order = batches(
        len(data.train_x), plan.batch_size, seed=plan.data_seed, start=state.step, device=data.train_x.device
    )
    rows = Rows(data.task == "classification")
    paused = time.monotonic()
    while state.step <= plan.steps:
        step = state.step
        if time.monotonic() - paused > YIELD_EVERY:
            yield from rows.flush()
            paused = time.monotonic()
            yield Pause(step)
        active = [k for k, part in enumerate(ensemble.parts) if any(m not in state.stopped for m in part.members)]
        if not active:
            break
        if plan.evaluates(step) and state.evaluated < step:
            yield from rows.flush()
            state.evaluated = step
            yield evaluate(ensemble, data, step, running(ensemble, state), plan)
        recorded, last = step in plan.records, step == plan.steps
        index = next(order)
        x, y = data.prepare(data.train_x[index], plan.dtype), data.targets(data.train_y[index], plan.dtype)
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        tapes: list[Tape] = []
        stopped: list[Stopped] = []
        for k in active:
            part = ensemble.parts[k]
            tape = Tape(part, step=step, interval=plan.saturation) if recorded else None
            update = None if last else (optimizer, state.slots[k], hypers[k], factor)
            with buffers_kept(part.module) if last else nullcontext():
                measured = advance(part, x, y, plan, step, update, tape)
            tapes += [tape] if tape is not None else []
            if not last and step % plan.log_every == 0:
                rows.add(step, [m for m in part.members if m not in state.stopped], part.members, measured)
            stopped += stops(part, measured, plan, step, state)
        state.step += 1
        if recorded or stopped:
            yield from rows.flush()
        yield from stopped
        if reached := {stop.member for stop in stopped if stop.reason == "target"}:
            yield evaluate(ensemble, data, state.step, reached, plan)
        if recorded:
            yield snapshot(step, tapes, ensemble, active, state)
    yield from rows.flush()


def running(ensemble: Ensemble, state: State) -> set[int]:
    """Return the members that still train."""
    return {m for part in ensemble.parts for m in part.members if m not in state.stopped}


def advance(
    part: Part, x: Tensor, y: Tensor, plan: Plan, step: int, update: tuple | None, tape: Tape | None
) -> dict[str, Any]:
    """Take one step with one part: forward, backward, update; return its scalars as lists over members."""
    with tape if tape is not None else nullcontext():
        with keyed_randomness(part, x, plan.data_seed, f"{step}"), autocast(x, plan.autocast):
            logits = part.forward(x)
            losses = member_losses(logits, y)
        measured: dict[str, Any] = {"loss": losses.detach().tolist(), "accuracy": accuracies(logits, y)}
        if update is None and tape is None:
            grads = []
        else:
            grads = list(torch.autograd.grad(losses.sum(), part.parameters, allow_unused=True, materialize_grads=True))
    if not all(map(math.isfinite, measured["loss"])):
        measured["bad_layers"] = locate(part, x, plan, step)
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    if update is not None:
        optimizer, slots, hyper, factor = update
        now = dict(hyper, lr=hyper["lr"] * factor)
        norms = gradient_norms(grads, part.stacked)
        measured["grad_norm"] = norms.tolist()
        measured["lr"] = now["lr"].tolist() if isinstance(now["lr"], Tensor) else [now["lr"]]
        if tape is not None:
            tape.before_update()
        with torch.no_grad():
            apply(part, grads, norms, optimizer, slots, now, step)
        if tape is not None:
            tape.after_update()
    return measured


def apply(part: Part, grads: list[Tensor], norms: Tensor, optimizer: Any, slots: dict, now: dict, step: int) -> None:
    """Clip, decay and update in place."""
    if now["clip_norm"] is not None:
        clip_(grads, norms, now["clip_norm"], part.stacked)
    if optimizer.couples_decay and nonzero(now["weight_decay"]):
        grads = [g.clone() for g in grads]
        add_scaled_(grads, part.parameters, now["weight_decay"])
    optimizer.update(part.parameters, grads, slots, now, step + 1)


def member_hyper(part: Part, plan: Plan) -> dict[str, Any]:
    """Gather the hyperparameters of a part's members: floats for one network, tensors [N] for a stack."""
    chosen = [
        {**OPTIMIZERS[plan.optimizer].defaults, "weight_decay": 0.0, "clip_norm": None, **plan.hyper[m]}
        for m in part.members
    ]
    hyper: dict[str, Any] = dict(chosen[0])
    like = part.parameters[0]
    limits = [math.inf if h["clip_norm"] is None else float(h["clip_norm"]) for h in chosen]
    hyper["clip_norm"] = (
        None if all(map(math.isinf, limits)) else torch.tensor(limits, dtype=like.dtype, device=like.device)
    )
    if part.stacked:
        for key in ("lr", "weight_decay"):
            hyper[key] = torch.tensor([float(h[key]) for h in chosen], dtype=like.dtype, device=like.device)
    return hyper


def locate(part: Part, x: Tensor, plan: Plan, step: int) -> dict[int, str]:
    """Run the forward pass of this step again and name the first non-finite layer of every member, by position."""
    with (
        buffers_kept(part.module),
        keyed_randomness(part, x, plan.data_seed, f"{step}"),
        autocast(x, plan.autocast),
    ):
        return first_bad_layers(part, lambda: part.forward(x))


def stops(part: Part, measured: dict, plan: Plan, step: int, state: State) -> list[Stopped]:
    """Note in `state`, and return, the members that diverged or reached the target at this step."""
    found = []
    for position, member in enumerate(part.members):
        if member in state.stopped:
            continue
        loss = measured["loss"][position]
        if not math.isfinite(loss):
            found.append(Stopped(member, step, "diverged", measured["bad_layers"].get(position, "loss")))
        elif plan.target_loss is not None and step < plan.steps:
            window = state.recent.setdefault(member, [])
            window.append(loss)
            del window[:-TARGET_WINDOW]
            if len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss:
                found.append(Stopped(member, step, "target"))
    state.stopped |= {stop.member: stop for stop in found}
    return found


def snapshot(step: int, tapes: list[Tape], ensemble: Ensemble, active: list[int], state: State) -> Snapshot:
    """Collect what the tapes recorded, by member."""
    rows, counted = {}, {}
    for k, tape in zip(active, tapes, strict=True):
        for position, member in enumerate(ensemble.parts[k].members):
            stopped = state.stopped.get(member)
            if stopped is None or stopped.step == step:
                rows[member] = tape.rows[position]
                counted[member] = tape.histograms[position]
    return Snapshot(step, rows, counted)


class Rows:
    """Scalars waiting to be handed out together."""

    def __init__(self, classification: bool):
        self.classification = classification
        self.clear()

    def clear(self) -> None:
        """Start a new block."""
        self.block = Steps([], [], [] if self.classification else None, [], [], [])

    def add(self, step: int, running: list[int], members: list[int], measured: dict) -> None:
        """Append one row; parts of one step share it."""
        block = self.block
        if not block.steps or block.steps[-1] != step:
            block.steps.append(step)
            for column in (block.loss, block.grad_norm, block.lr, block.members):
                column.append([])
            if block.accuracy is not None:
                block.accuracy.append([])
        wanted = [members.index(m) for m in running]
        for column, key in ((block.loss, "loss"), (block.grad_norm, "grad_norm"), (block.lr, "lr")):
            column[-1].extend(measured[key][i] for i in wanted)
        if block.accuracy is not None:
            block.accuracy[-1].extend(measured["accuracy"][i] for i in wanted)
        block.members[-1].extend(running)

    def flush(self) -> Iterator[Steps]:
        """Yield the block if it holds anything."""
        if self.block.steps:
            yield self.block
        self.clear()
