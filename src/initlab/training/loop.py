"""The loop over an ensemble: it computes and yields, and logs nothing."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from initlab.data import Dataset, batches
from initlab.diagnostics import Tape, first_bad_layer
from initlab.ensemble import Ensemble, Part
from initlab.initialize import stream
from initlab.training.events import Evaluation, Event, Plan, Snapshot, State, Steps, Stopped
from initlab.training.optimizers import OPTIMIZERS, add_scaled_, clip_, gradient_norms, nonzero
from initlab.training.schedules import rate_factor

YIELD_EVERY = 0.2  # seconds between rows handed out: often enough for a progress line
TARGET_WINDOW = 10  # steps whose mean loss is compared with the target
EVAL_BATCH = 2000
PER_MEMBER = ("lr", "weight_decay", "clip_norm")


def train(ensemble: Ensemble, data: Dataset, plan: Plan, state: State | None = None) -> Iterator[Event]:
    """Train all members on common batches, yielding rows, evaluations, snapshots and stops as they happen.

    Row k holds the loss of batch k under the weights after k updates, so step 0 is the initialization. A non-finite
    loss stops that member alone. Between two yields `state` is whole: with the weights it is a checkpoint.

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
    while state.step <= plan.steps:
        step = state.step
        active = [k for k, part in enumerate(ensemble.parts) if any(m not in state.stopped for m in part.members)]
        if not active:
            break
        if plan.evaluates(step):
            yield from rows.flush()
            yield evaluate(ensemble, data, step, state, plan)
        recorded = step in plan.records
        if step == plan.steps and not recorded:
            break
        index = next(order)
        x, y = data.prepare(data.train_x[index], plan.dtype), data.targets(data.train_y[index], plan.dtype)
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        tapes: list[Tape] = []
        for k in active:
            part = ensemble.parts[k]
            tape = Tape(part, step=step, interval=plan.saturation) if recorded else None
            update = None if step == plan.steps else (optimizer, state.slots[k], hypers[k], factor)
            measured = advance(part, x, y, plan, step, update, tape)
            tapes += [tape] if tape is not None else []
            if update is not None and step % plan.log_every == 0:
                rows.add(step, [m for m in part.members if m not in state.stopped], part.members, measured)
            yield from stops(part, measured, plan, step, state)
        if recorded:
            yield from rows.flush()
            yield snapshot(step, tapes, ensemble, active, state)
        state.step += 1
        if rows.due():
            yield from rows.flush()
    yield from rows.flush()


def advance(
    part: Part, x: Tensor, y: Tensor, plan: Plan, step: int, update: tuple | None, tape: Tape | None
) -> dict[str, Any]:
    """Take one step with one part: forward, backward, update; return its scalars as lists over members."""
    if dropouts := part.dropouts:
        part.key_dropout([stream(plan.data_seed, f"dropout/{step}/{k}") for k in range(len(dropouts))])
    with tape if tape is not None else nullcontext():
        with autocast(x, plan.autocast):
            logits = part.forward(x)
            losses = member_losses(logits, y)
        loss_values = losses.detach().tolist()
        finite = all(map(math.isfinite, loss_values))
        bad_layers = {} if finite else locate(part, x, loss_values)
        grads = list(torch.autograd.grad(losses.sum(), part.parameters))
    norms = gradient_norms(grads, part.stacked)
    measured = {
        "loss": loss_values,
        "accuracy": accuracies(logits, y),
        "grad_norm": norms.tolist(),
        "bad_layers": bad_layers,
    }
    if tape is not None:
        tape.gradients(dict(zip(part.names, grads, strict=True)))
    if update is not None:
        optimizer, slots, hyper, factor = update
        now = dict(hyper, lr=hyper["lr"] * factor)
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
    hyper["clip_norm"] = None if all(map(math.isinf, limits)) else torch.tensor(limits, device=like.device)
    if part.stacked:
        for key in ("lr", "weight_decay"):
            hyper[key] = torch.tensor([float(h[key]) for h in chosen], dtype=like.dtype, device=like.device)
    return hyper


def member_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return each member's mean loss [N] from outputs [N, B, C]: cross-entropy for labels, squared error for values."""
    n, batch = logits.shape[:2]
    if y.is_floating_point():
        return (logits - y.to(logits.dtype)).square().flatten(1).mean(1)
    if n == 1:
        return nn.functional.cross_entropy(logits[0], y).view(1)
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(n), reduction="none")
    return flat.view(n, batch).mean(1)


def accuracies(logits: Tensor, y: Tensor) -> list[float] | None:
    """Return each member's fraction of right labels, or None for regression."""
    if y.is_floating_point():
        return None
    return (logits.detach().argmax(-1) == y).float().mean(-1).tolist()


def autocast(x: Tensor, enabled: bool) -> Any:
    """Compute in bfloat16 where it is asked for."""
    return torch.autocast(x.device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def locate(part: Part, x: Tensor, losses: list[float]) -> dict[int, str]:
    """Name the first non-finite layer of every member whose loss is not finite."""
    return {
        position: first_bad_layer(part, position, lambda: part.forward(x))
        for position, value in enumerate(losses)
        if not math.isfinite(value)
    }


def stops(part: Part, measured: dict, plan: Plan, step: int, state: State) -> Iterator[Stopped]:
    """Yield the members that diverged or reached the target at this step."""
    for position, member in enumerate(part.members):
        if member in state.stopped:
            continue
        loss = measured["loss"][position]
        if not math.isfinite(loss):
            state.stopped[member] = Stopped(member, step, "diverged", measured["bad_layers"][position])
            yield state.stopped[member]
        elif plan.target_loss is not None:
            window = state.recent.setdefault(member, [])
            window.append(loss)
            del window[:-TARGET_WINDOW]
            if len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss:
                state.stopped[member] = Stopped(member, step, "target")
                yield state.stopped[member]


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


@torch.no_grad()
def evaluate(ensemble: Ensemble, data: Dataset, step: int, state: State, plan: Plan) -> Evaluation:
    """Measure loss and accuracy on the validation and test sets, in evaluation mode, for members still running."""
    values: dict[str, dict[int, float]] = {}
    for split, xs, ys in (("val", data.val_x, data.val_y), ("test", data.test_x, data.test_y)):
        if len(xs) == 0:
            continue
        for part in ensemble.parts:
            if all(m in state.stopped for m in part.members):
                continue
            was_training = part.module.training
            part.module.eval()
            loss, right = torch.zeros(len(part.members), dtype=torch.float64), torch.zeros(len(part.members))
            for start in range(0, len(xs), EVAL_BATCH):
                x = data.prepare(xs[start : start + EVAL_BATCH], plan.dtype)
                y = data.targets(ys[start : start + EVAL_BATCH], plan.dtype)
                with autocast(x, plan.autocast):
                    logits = part.forward(x)
                loss += member_losses(logits, y).double().cpu() * (len(x) / len(xs))
                if data.task == "classification":
                    right += (logits.argmax(-1) == y).sum(-1).cpu()
            part.module.train(was_training)
            for position, member in enumerate(part.members):
                if member not in state.stopped:
                    values.setdefault(f"{split}_loss", {})[member] = float(loss[position])
                    if data.task == "classification":
                        values.setdefault(f"{split}_accuracy", {})[member] = float(right[position]) / len(xs)
    return Evaluation(step, values)


class Rows:
    """Scalars waiting to be handed out together."""

    def __init__(self, classification: bool):
        self.classification = classification
        self.clear()

    def clear(self) -> None:
        """Start a new block."""
        self.since = time.monotonic()
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

    def due(self) -> bool:
        """Is it time to hand them out?"""
        return time.monotonic() - self.since > YIELD_EVERY

    def flush(self) -> Iterator[Steps]:
        """Yield the block if it holds anything."""
        if self.block.steps:
            yield self.block
        self.clear()
