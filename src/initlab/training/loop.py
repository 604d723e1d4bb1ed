"""The loop over an ensemble: it computes and yields, and logs nothing."""

import time
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from initlab.data import Dataset, batches
from initlab.diagnostics import HistogramKey
from initlab.ensemble import Ensemble, make_plain_part
from initlab.records import LayerRow
from initlab.statistics.histograms import Histogram
from initlab.training.evaluation import evaluate
from initlab.training.events import Event, Pause, Snapshot, State, Steps, Stopped, TrainingPlan
from initlab.training.gradients import Batch
from initlab.training.optimizers import OPTIMIZERS
from initlab.training.step import PartTrainer, StepResult
from initlab.training.threads import ThreadTeam

YIELD_EVERY = 0.2  # seconds between pauses: often enough for a progress line, and to stop soon when asked to
MAX_BLOCK_STEPS = 16  # steps that a part may be ahead of the others: each holds a batch in memory


def train(ensemble: Ensemble, data: Dataset, plan: TrainingPlan, state: State | None = None) -> Iterator[Event]:
    """Train all members on common batches, yielding rows, evaluations, snapshots and stops as they happen.

    Row k holds the loss of batch k under the weights after k updates, so step 0 is the initialization. A non-finite
    loss stops that member alone; after the last update one more loss is computed, so that no update goes unchecked. At
    every `Pause`, and at the end, `state` is complete: with the weights it is a checkpoint, and what was yielded is not
    yielded again.

    Args:
        ensemble: initialized networks.
        data: a data set on the same device.
        plan: what all members share, and the hyperparameters of each.
        state: where to go on; by default a new training starts.
    """
    state = State() if state is None else state
    ensemble.drop(list(state.stopped))
    add_missing_slots(ensemble, plan, state)
    device = data.train_x.device
    order = batches(len(data.train_x), plan.batch_size, seed=plan.data_seed, start=state.step, device=device)
    rows = RowBuffer(data.task == "classification")
    paused, length = time.monotonic(), 1
    trainers = [PartTrainer(part, plan, state) for part in ensemble.parts]
    with ThreadTeam(ensemble.size, device) as team:
        while state.step <= plan.steps and trainers:
            step = state.step
            if time.monotonic() - paused > YIELD_EVERY:
                yield from rows.flush()
                paused = time.monotonic()
                yield Pause(step)
            if plan.evaluates(step) and state.evaluated < step:
                yield from rows.flush()
                state.evaluated = step
                yield evaluate(ensemble.parts, data, step, plan, team)
            began = time.monotonic()
            count = block_length(plan, step, length)
            indices = [next(order) for _ in range(count)]
            if len(trainers) == 1:
                # One part alone takes each batch while it is still in the cache.
                block: Iterable[Batch] = (prepare_batch(data, index, plan) for index in indices)
            else:
                block = team.map(lambda index: prepare_batch(data, index, plan), indices)
            results = team.map(lambda trainer: trainer.train_block(step, block), trainers)  # noqa: B023
            length = steps_per_interval(YIELD_EVERY, (time.monotonic() - began) / count)
            state.step += count
            of_step = sorted((result for part in results for result in part), key=lambda result: result.step)
            rows.extend(of_step, plan)
            stopped = remove_stopped(of_step, ensemble, state)
            trainers = [trainer for trainer in trainers if trainer.part.members]
            if stopped or step in plan.records:
                yield from rows.flush()
            yield from stopped
            for stop in stopped:
                if stop.reason == "target":
                    part = make_plain_part(stop.member, ensemble.networks[stop.member])
                    yield evaluate([part], data, stop.updates, plan, team)
            if step in plan.records:
                yield collect_snapshot(step, of_step)
        yield from rows.flush()


def add_missing_slots(ensemble: Ensemble, plan: TrainingPlan, state: State) -> None:
    """Give every member that has none the optimizer's slots."""
    for part in ensemble.parts:
        for member, own in zip(part.members, part.unbind_members(part.parameters), strict=True):
            if member not in state.slots:
                state.slots[member] = OPTIMIZERS[plan.optimizer].allocate_slots(own)


def prepare_batch(data: Dataset, index: Tensor, plan: TrainingPlan) -> Batch:
    """Return one batch as the networks take it."""
    # Not `train_x[index]`, which goes byte by byte through images of bytes.
    x, y = data.train_x.index_select(0, index), data.train_y.index_select(0, index)
    return Batch(data.prepare(x, plan.dtype), data.targets(y, plan.dtype))


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
    """Return how many steps of a known cost fit into an interval."""
    return max(1, min(MAX_BLOCK_STEPS, int(seconds / max(each, 1e-6))))


def remove_stopped(results: Sequence[StepResult], ensemble: Ensemble, state: State) -> list[Stopped]:
    """Return the members that stopped, in order, and move them in `state` from those that train."""
    stops = [stop for result in results for stop in result.stopped]
    stops.sort(key=lambda stop: (stop.step, stop.member))
    for stop in stops:
        state.stopped[stop.member] = stop
        del state.slots[stop.member]
    ensemble.parts = [part for part in ensemble.parts if part.members]
    return stops


def collect_snapshot(step: int, results: Sequence[StepResult]) -> Snapshot:
    """Return what was recorded at a step, by member."""
    rows: dict[int, list[LayerRow]] = {}
    histograms: dict[int, dict[HistogramKey, Histogram]] = {}
    for members, recorder in (result.recorder for result in results if result.recorder is not None):
        rows |= dict(zip(members, recorder.rows, strict=True))
        histograms |= dict(zip(members, recorder.histograms, strict=True))
    return Snapshot(step, rows, histograms)


class RowBuffer:
    """Scalars waiting to be yielded together."""

    def __init__(self, classification: bool):
        self.classification = classification
        self.clear()

    def clear(self) -> None:
        """Start a new block."""
        self.block = Steps([], [], [] if self.classification else None, [], [], [])

    def extend(self, results: Sequence[StepResult], plan: TrainingPlan) -> None:
        """Append one row for each step that is logged; all members of a step share it. Results are in order of step."""
        block = self.block
        columns = {"loss": block.loss, "grad_norm": block.grad_norm, "lr": block.lr}
        if block.accuracy is not None:
            columns["accuracy"] = block.accuracy
        for result in results:
            if result.step == plan.steps or result.step % plan.log_every:
                continue
            if not block.steps or block.steps[-1] != result.step:
                block.steps.append(result.step)
                block.members.append([])
                for column in columns.values():
                    column.append([])
            for name, column in columns.items():
                column[-1].extend(result.measured[name])
            block.members[-1].extend(result.members)

    def flush(self) -> Iterator[Steps]:
        """Yield the block if it has rows."""
        if self.block.steps:
            yield self.block
        self.clear()
