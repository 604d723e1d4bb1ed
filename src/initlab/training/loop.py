"""The loop over an ensemble: it computes and yields, and logs nothing."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from initlab.data import Dataset, batches
from initlab.diagnostics import HistogramKey, Row
from initlab.ensemble import Ensemble, make_plain_part
from initlab.statistics.histograms import Histogram
from initlab.training.evaluation import evaluate
from initlab.training.events import Event, Pause, Snapshot, State, Steps, Stopped, TrainingPlan
from initlab.training.optimizers import OPTIMIZERS
from initlab.training.step import Batch, StepResult, train_block
from initlab.training.threads import ThreadTeam

YIELD_EVERY = 0.2  # seconds between pauses: often enough for a progress line, and to stop soon when asked to
MAX_BLOCK_STEPS = 16  # steps that a part may be ahead of the others: each holds a batch in memory


def train(ensemble: Ensemble, data: Dataset, plan: TrainingPlan, state: State | None = None) -> Iterator[Event]:
    """Train all members on common batches, yielding rows, evaluations, snapshots and stops as they happen.

    Row k holds the loss of batch k under the weights after k updates, so step 0 is the initialization. A non-finite
    loss stops that member alone; after the last update one more batch is looked at, so that none goes unseen. At every
    `Pause`, and at the end, `state` is whole: with the weights it is a checkpoint, and what was yielded will not come
    again.

    Arguments: `ensemble` of initialized networks; `data` on the same device; `plan`; `state` to go on from.
    """
    state = State() if state is None else state
    ensemble.drop(list(state.stopped))
    add_missing_slots(ensemble, plan, state)
    device = data.train_x.device
    order = batches(len(data.train_x), plan.batch_size, seed=plan.data_seed, start=state.step, device=device)
    rows = RowBuffer(data.task == "classification")
    paused, length = time.monotonic(), 1
    with ThreadTeam(ensemble.size, device) as crew:
        while state.step <= plan.steps and ensemble.parts:
            step = state.step
            if time.monotonic() - paused > YIELD_EVERY:
                yield from rows.flush()
                paused = time.monotonic()
                yield Pause(step)
            if plan.evaluates(step) and state.evaluated < step:
                yield from rows.flush()
                state.evaluated = step
                yield evaluate(ensemble.parts, data, step, plan, crew)
            began = time.monotonic()
            count = block_length(plan, step, length)
            if len(ensemble.parts) == 1:
                # One part alone takes each batch while it is still in the cache.
                ahead: Iterable[Batch] = (prepare_batch(data, next(order), plan) for _ in range(count))
            else:
                ahead = crew.each(lambda index: prepare_batch(data, index, plan), [next(order) for _ in range(count)])
            found = crew.each(lambda part: train_block(part, step, ahead, plan, state, crew), ensemble.parts)  # noqa: B023
            length = steps_per_interval(YIELD_EVERY, (time.monotonic() - began) / count)
            state.step += count
            rows.extend(found, plan)
            stopped = remove_stopped(found, ensemble, state)
            if stopped or step in plan.records:
                yield from rows.flush()
            yield from stopped
            for stop in stopped:
                if stop.reason == "target":
                    reached = make_plain_part(stop.member, ensemble.networks[stop.member])
                    yield evaluate([reached], data, stop.updates, plan, crew)
            if step in plan.records:
                yield collect_snapshot(step, found)
        yield from rows.flush()


def add_missing_slots(ensemble: Ensemble, plan: TrainingPlan, state: State) -> None:
    """Give every member that has none the optimizer's slots."""
    for part in ensemble.parts:
        for member, own in zip(part.members, part.of_member(part.parameters), strict=True):
            if member not in state.slots:
                state.slots[member] = OPTIMIZERS[plan.optimizer].fresh_slots(own)


def prepare_batch(data: Dataset, index: Any, plan: TrainingPlan) -> Batch:
    """Return one batch as the networks take it."""
    # Not `train_x[index]`, which goes byte by byte through images of bytes.
    x, y = data.train_x.index_select(0, index), data.train_y.index_select(0, index)
    return data.prepare(x, plan.dtype), data.targets(y, plan.dtype)


def block_length(plan: TrainingPlan, step: int, length: int) -> int:
    """Return how many steps the parts may take before they must meet: at an evaluation, a record, or the end.

    >>> plan = TrainingPlan(100, 16, "sgd", ({},), eval_every=10, records=(0, 7))
    >>> [block_length(plan, step, 4) for step in (0, 1, 5, 7, 8, 99, 100)]
    [1, 4, 2, 1, 2, 1, 1]
    """
    if step in plan.records or step == plan.steps:
        return 1
    ahead = range(step + 1, step + length)
    return next((s for s in ahead if plan.evaluates(s) or s in plan.records), step + length) - step


def steps_per_interval(seconds: float, each: float) -> int:
    """Return how many steps of a known cost fit into so many seconds."""
    return max(1, min(MAX_BLOCK_STEPS, int(seconds / max(each, 1e-6))))


def remove_stopped(found: Sequence[Sequence[StepResult]], ensemble: Ensemble, state: State) -> list[Stopped]:
    """Note in `state`, and return, the members that stopped; what is left of them costs nothing more."""
    stops = [stop for part in found for one in part for stop in one.stopped]
    stops.sort(key=lambda stop: (stop.step, stop.member))
    for stop in stops:
        state.stopped[stop.member] = stop
        del state.slots[stop.member]
    ensemble.parts = [part for part in ensemble.parts if part.members]
    return stops


def collect_snapshot(step: int, found: Sequence[Sequence[StepResult]]) -> Snapshot:
    """Collect what the tapes of a recorded step hold, by member."""
    rows: dict[int, list[Row]] = {}
    counted: dict[int, dict[HistogramKey, Histogram]] = {}
    for (one,) in found:
        if one.tape is not None:
            rows |= dict(zip(one.members, one.tape.rows, strict=True))
            counted |= dict(zip(one.members, one.tape.histograms, strict=True))
    return Snapshot(step, rows, counted)


class RowBuffer:
    """Scalars waiting to be handed out together."""

    def __init__(self, classification: bool):
        self.classification = classification
        self.clear()

    def clear(self) -> None:
        """Start a new block."""
        self.block = Steps([], [], [] if self.classification else None, [], [], [])

    def extend(self, found: Sequence[Sequence[StepResult]], plan: TrainingPlan) -> None:
        """Append one row for each step that is logged; all members of a step share it."""
        ones = sorted((one for part in found for one in part), key=lambda one: one.step)
        for one in ones:
            if one.step < plan.steps and one.step % plan.log_every == 0:
                self._add(one)

    def _add(self, one: StepResult) -> None:
        block = self.block
        columns: dict[str, list[list[float]]] = {"loss": block.loss, "grad_norm": block.grad_norm, "lr": block.lr}
        if block.accuracy is not None:
            columns["accuracy"] = block.accuracy
        if not block.steps or block.steps[-1] != one.step:
            block.steps.append(one.step)
            block.members.append([])
            for column in columns.values():
                column.append([])
        for name, column in columns.items():
            column[-1].extend(one.measured[name])
        block.members[-1].extend(one.members)

    def flush(self) -> Iterator[Steps]:
        """Yield the block if it holds anything."""
        if self.block.steps:
            yield self.block
        self.clear()
