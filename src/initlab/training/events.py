"""What the loop takes and what it yields, as records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from initlab.diagnostics import HistogramKey
from initlab.records import LayerRow
from initlab.statistics.histograms import Histogram


@dataclass(frozen=True)
class TrainingPlan:
    """What all members of an ensemble share: data order, length, optimizer, and when to look.

    Attributes:
        steps: updates.
        batch_size: samples of a batch.
        optimizer: name in `OPTIMIZERS`.
        hyper: one mapping per member: lr, weight_decay, clip_norm and the optimizer's own keys; what is not a rate, a
            decay or a clip norm must be the same for all.
        data_seed: seed of the order of the batches and of dropout masks.
        schedule: name in `SCHEDULES`.
        warmup: steps of linear warm-up.
        log_every: steps between rows of scalars.
        eval_every: steps between evaluations; 0: at the start and the end only.
        records: steps whose layers are measured.
        target_loss: mean training loss at which a member stops.
        autocast: whether to compute in bfloat16.
        dtype: of inputs and parameters.
        saturation: interval outside which an activation is saturated; None where it has none.
        factors: for each member, None or a factor on the rate of every trained parameter, in order.
    """

    steps: int
    batch_size: int
    optimizer: str
    hyper: tuple[Mapping[str, Any], ...]
    data_seed: int = 0
    schedule: str = "constant"
    warmup: int = 0
    log_every: int = 1
    eval_every: int = 0
    records: tuple[int, ...] = ()
    target_loss: float | None = None
    autocast: bool = False
    dtype: torch.dtype = torch.float32
    saturation: tuple[float, float] | None = None
    factors: tuple[Sequence[float] | None, ...] = ()

    def evaluates(self, step: int) -> bool:
        """Return whether networks are evaluated before update `step`."""
        return step in (0, self.steps) or (self.eval_every > 0 and step % self.eval_every == 0)


@dataclass
class State:
    """Where training stands, without the weights: with them, training goes on exactly as if it had never stopped."""

    step: int = 0  # updates done
    evaluated: int = -1  # the last step whose evaluation was yielded
    slots: dict[int, dict[str, list[Tensor]]] = field(default_factory=dict)  # by member, while it trains
    stopped: dict[int, "Stopped"] = field(default_factory=dict)  # by member
    recent: dict[int, list[float]] = field(default_factory=dict)  # last losses, where a target is set


@dataclass(frozen=True)
class Steps:
    """Rows of scalars: row k is of the weights after `steps[k]` updates; values are [rows][member]."""

    steps: list[int]
    loss: list[list[float]]
    accuracy: list[list[float]] | None
    grad_norm: list[list[float]]
    lr: list[list[float]]
    members: list[list[int]]  # of each row


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on whole splits, before update `step`: name -> member -> value."""

    step: int
    values: dict[str, dict[int, float]]


@dataclass(frozen=True)
class Snapshot:
    """Layer rows and histograms of one recorded step, by member."""

    step: int
    rows: dict[int, list[LayerRow]]
    histograms: dict[int, dict[HistogramKey, Histogram]]


@dataclass(frozen=True)
class Stopped:
    """A member that ended before the others: `diverged` at a step and layer, or at its `target` loss."""

    member: int
    step: int
    reason: str
    layer: str | None = None

    @property
    def updates(self) -> int:
        """The number of its updates: the last step has one at a target, and none that counts after a divergence."""
        return self.step + (self.reason == "target")


@dataclass(frozen=True)
class Pause:
    """Everything before update `step` has been yielded: the place for a checkpoint, or to stop."""

    step: int


Event = Steps | Evaluation | Snapshot | Stopped | Pause
