"""Updates of a part's parameters: those with the same hyperparameters by one call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initlab.ensemble import Part
from initlab.training.events import State, TrainingPlan
from initlab.training.optimizers import OPTIMIZERS, Hyper, Slots, Tensors


@dataclass(frozen=True)
class SharedUpdate:
    """Parameters with the same hyperparameters, updated by one call.

    Attributes:
        optimizer: name of the rule.
        hyper: its hyperparameters.
        places: of each parameter, the member (its place in the part) and the number among the member's parameters.
        params: the parameters.
        slots: their buffers.
    """

    optimizer: str
    hyper: Hyper
    places: list[tuple[int, int]]
    params: Tensors
    slots: Slots

    def apply(self, gradients: Mapping[int, Tensors], factor: float, step: int) -> None:
        """Update by the gradients of every member, with the schedule's factor on the rate; steps count from 0."""
        now = {**self.hyper, "lr": self.hyper["lr"] * factor}
        joined = [gradients[k][j] for k, j in self.places]
        OPTIMIZERS[self.optimizer].update(self.params, joined, self.slots, now, step + 1)


def shared_updates(
    part: Part, members: Sequence[int], hypers: Sequence[Hyper], plan: TrainingPlan, state: State
) -> list[SharedUpdate]:
    """Return the updates of some members, given by their places in the part, from everyone's hyperparameters."""
    own = part.unbind_members(p.detach() for p in part.parameters)
    shared: dict[Any, tuple[Hyper, list[tuple[int, int]]]] = {}
    for k in members:
        factors = (plan.factors[part.members[k]] if plan.factors else None) or [1.0] * len(own[k])
        for j, factor in enumerate(factors):
            rated = hypers[k] if factor == 1.0 else {**hypers[k], "lr": hypers[k]["lr"] * factor}
            shared.setdefault(tuple(rated.items()), (rated, []))[1].append((k, j))
    slots = {k: state.slots[part.members[k]] for k in members}
    return [
        SharedUpdate(
            plan.optimizer,
            hyper,
            places,
            [own[k][j] for k, j in places],
            {name: [slots[k][name][j] for k, j in places] for name in OPTIMIZERS[plan.optimizer].slots},
        )
        for hyper, places in shared.values()
    ]


def member_hyperparameters(plan: TrainingPlan, member: int) -> dict[str, Any]:
    """Return a member's hyperparameters, defaults included; a clip norm that is not set is infinite."""
    hyper = {**OPTIMIZERS[plan.optimizer].defaults, "weight_decay": 0.0, "clip_norm": None, **plan.hyper[member]}
    return {**hyper, "clip_norm": math.inf if hyper["clip_norm"] is None else float(hyper["clip_norm"])}
