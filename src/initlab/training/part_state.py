"""What a block of steps needs of a part, gathered once, and what it tells of every step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from initlab.diagnostics import LayerRecorder
from initlab.ensemble import Part, SequentialMembers
from initlab.training.events import State, Stopped, TrainingPlan
from initlab.training.optimizers import OPTIMIZERS, Hyper, Slots, Tensors
from initlab.training.threads import ThreadTeam

TARGET_WINDOW = 10  # steps whose mean loss is compared with the target


@dataclass
class StepResult:
    """What one part has to tell of one step; `measured` are scalars by name, each a list over the members."""

    step: int
    members: list[int]
    measured: dict[str, Any]
    tape: LayerRecorder | None
    stopped: list[Stopped]


@dataclass(frozen=True)
class SharedUpdate:
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
class PartState:
    """What the gradients and the update of a part need, gathered once, and again when members stop."""

    clip_norms: list[float]
    rates: list[float]
    groups: list[SharedUpdate]
    sinks: list[Tensor]  # memory for the gradients of a stacked part
    sinks_of_member: list[Tensors]
    lane: SequentialMembers | None  # where the networks are computed one by one

    @classmethod
    def of(cls, part: Part, plan: TrainingPlan, state: State, crew: ThreadTeam) -> "PartState":
        """Gather parameters, slots and hyperparameters; an optimizer's own defaults hold where nothing is said."""
        hypers = [member_hyperparameters(plan, m) for m in part.members]
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
            SharedUpdate(
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
    def groups_of(self) -> list[list[SharedUpdate]]:
        """The groups by member, where no two members share one."""
        found: list[list[SharedUpdate]] = [[] for _ in self.rates]
        for group in self.groups:
            found[group.places[0][0]].append(group)
        return found


def member_hyperparameters(plan: TrainingPlan, member: int) -> dict[str, Any]:
    """Return a member's hyperparameters; a clip norm that is not set is infinite."""
    given = {**OPTIMIZERS[plan.optimizer].defaults, "weight_decay": 0.0, "clip_norm": None, **plan.hyper[member]}
    return {**given, "clip_norm": math.inf if given["clip_norm"] is None else float(given["clip_norm"])}


def reaches_target(member: int, loss: float, plan: TrainingPlan, state: State) -> bool:
    """Note a member's loss, and return whether it is at its target now."""
    if plan.target_loss is None:
        return False
    window = state.recent.setdefault(member, [])
    window.append(loss)
    del window[:-TARGET_WINDOW]
    return len(window) == TARGET_WINDOW and sum(window) / TARGET_WINDOW <= plan.target_loss
