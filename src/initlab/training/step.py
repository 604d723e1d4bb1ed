"""Training steps of one part: the unit of work of a thread."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from initlab.diagnostics import LayerRecorder, first_bad_layers
from initlab.ensemble import Part
from initlab.inspection.restore import preserve_values
from initlab.training.evaluation import autocast_bfloat16, keyed_randomness
from initlab.training.events import State, Stopped, TrainingPlan
from initlab.training.gradients import Batch, GradientBackEnd, SequentialGradients, StackedGradients
from initlab.training.optimizers import Tensors, gradient_norms
from initlab.training.schedules import rate_factor
from initlab.training.updates import member_hyperparameters, shared_updates

TARGET_WINDOW = 10  # steps whose mean loss is compared with the target


@dataclass
class StepResult:
    """One step of some members of a part.

    Attributes:
        step: updates before it.
        members: positions in the ensemble.
        measured: scalars by name, each a list over the members.
        stopped: members that ended here.
        recorder: what has measured the layers of the whole part, and the members of it, at a recorded step.
    """

    step: int
    members: list[int]
    measured: dict[str, list[float]]
    stopped: list[Stopped]
    recorder: tuple[list[int], LayerRecorder] | None = None


class PartTrainer:
    """Train one part: steps, stops, and what they need of the part, gathered once and again when members leave."""

    def __init__(self, part: Part, plan: TrainingPlan, state: State):
        self.part, self.plan, self.state = part, plan, state
        self.gather()

    def gather(self) -> None:
        """Collect hyperparameters, updates and the back end of the members that train."""
        part, plan = self.part, self.plan
        hypers = [member_hyperparameters(plan, m) for m in part.members]
        self.clip_norms = [h.pop("clip_norm") for h in hypers]
        self.rates = [h["lr"] for h in hypers]
        fast = None if plan.autocast else part.fast_path
        self.back_end: GradientBackEnd
        if fast is not None and fast.is_faster(plan.batch_size):
            self.back_end = SequentialGradients(part, plan, fast)
        else:
            self.back_end = StackedGradients(part, plan)
        self.updates = [shared_updates(part, group, hypers, plan, self.state) for group in self.back_end.groups]

    def train_block(self, start: int, batches: Iterable[Batch]) -> list[StepResult]:
        """Take consecutive steps, dropping members as they stop; a block that begins at a recorded step is that step.

        Step after step with the same few networks, weights and optimizer state stay in the cache: members computed one
        after another take all steps each, others each step together.
        """
        results: list[StepResult] = []
        groups = range(len(self.back_end.groups))
        if start in self.plan.records:
            (batch,) = map(self.back_end.prepare, batches)
            recorder = LayerRecorder(self.part, step=start, interval=self.plan.saturation)
            recorder.copy_weights()
            results = [self.take_step(group, start, batch, recorder) for group in groups]
            if start < self.plan.steps:
                recorder.measure_update()
            results[0].recorder = list(self.part.members), recorder
        elif len(groups) > 1:
            prepared = list(map(self.back_end.prepare, batches))
            results = [result for group in groups for result in self.take_steps(group, start, prepared)]
        else:
            remaining = map(self.back_end.prepare, batches)
            while self.part.members and (steps := list(self.take_steps(0, start + len(results), remaining))):
                results += steps
                self.drop_stopped(steps)
        self.drop_stopped(results)
        return results

    def take_steps(self, group: int, start: int, batches: Iterable[Batch]) -> Iterator[StepResult]:
        """Take steps with one group of members until one of them stops."""
        for step, batch in enumerate(batches, start):
            result = self.take_step(group, step, batch)
            yield result
            if result.stopped:
                return

    def take_step(self, group: int, step: int, batch: Batch, recorder: LayerRecorder | None = None) -> StepResult:
        """Take one step with one group: losses, gradients, update; the step after the last update only measures."""
        plan, places = self.plan, self.back_end.groups[group]
        logged = step < plan.steps and step % plan.log_every == 0
        counts = logged and not batch.y.is_floating_point()
        losses, right, gradients, pieces = self.back_end.compute(places, step, batch, counts, recorder)
        factor = rate_factor(plan.schedule, plan.warmup, plan.steps, step)
        measured = {
            "loss": losses,
            "grad_norm": [math.nan] * len(places),
            "lr": [self.rates[k] * factor for k in places],
        }
        if right is not None:
            measured["accuracy"] = [count / batch.y.numel() for count in right]
        members, stopped = [self.part.members[k] for k in places], self.find_stopped(places, losses, step, batch.x)
        if gradients:
            if logged or any(self.clip_norms[k] < math.inf for k in places):
                measured["grad_norm"] = self.clip(pieces)
            with torch.no_grad():
                for update in self.updates[group]:
                    update.apply(gradients, factor, step)
        return StepResult(step, members, measured, stopped)

    def clip(self, gradients: dict[int, Tensors]) -> list[float]:
        """Scale gradients down to their clip norms in place; return the norms before."""
        norms = gradient_norms(list(gradients.values()))
        for (k, own), norm in zip(gradients.items(), norms, strict=True):
            scale = self.clip_norms[k] / (norm + 1e-6)
            if self.clip_norms[k] < math.inf and not scale >= 1:
                for gradient in own:
                    gradient.mul_(scale)
        return norms

    def find_stopped(self, places: Sequence[int], losses: Sequence[float], step: int, x: Tensor) -> list[Stopped]:
        """Return the members that diverged or reached the target at this step."""
        bad = {} if all(map(math.isfinite, losses)) else self.first_bad_layers(step, x)
        stopped = []
        for k, loss in zip(places, losses, strict=True):
            member = self.part.members[k]
            if not math.isfinite(loss):
                stopped.append(Stopped(member, step, "diverged", bad.get(k, "loss")))
            elif step < self.plan.steps and reaches_target(member, loss, self.plan, self.state):
                stopped.append(Stopped(member, step, "target"))
        return stopped

    def first_bad_layers(self, step: int, x: Tensor) -> dict[int, str]:
        """Run the forward pass of this step again; return the first non-finite layer of each member by place."""
        part, plan = self.part, self.plan
        with (
            torch.no_grad(),
            preserve_values(*part.module.buffers()),
            keyed_randomness(part, x, plan.data_seed, f"{step}"),
            autocast_bfloat16(x, plan.autocast),
        ):
            return first_bad_layers(part, lambda: part.forward(x))

    def drop_stopped(self, results: Sequence[StepResult]) -> None:
        """Remove the members that stopped from the part."""
        stopped = {stop.member for result in results for stop in result.stopped} & set(self.part.members)
        if stopped:
            self.part.drop(list(stopped))
            if self.part.members:
                self.gather()


def reaches_target(member: int, loss: float, plan: TrainingPlan, state: State) -> bool:
    """Add a loss to a member's last ones; return whether their mean is at the target."""
    if plan.target_loss is None:
        return False
    window = state.recent.setdefault(member, [])
    window.append(loss)
    del window[:-TARGET_WINDOW]
    return len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss
