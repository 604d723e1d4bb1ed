"""Losses and accuracies of every member, on a training batch or on whole splits."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from initlab.data import Dataset
from initlab.ensemble import Part
from initlab.inspection.restore import preserve_modes
from initlab.system.random_streams import generator, seed_global_state
from initlab.training.events import Evaluation, TrainingPlan
from initlab.training.threads import ThreadTeam

EVAL_BATCH = 512
GLOBAL_STATE_LOCK = threading.Lock()  # torch has one global random state for all threads


def flatten_labels(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """View outputs [N, B, T, C] with labels [B, T] as [N, B·T, C] with [B·T]; others stay as they are."""
    if y.is_floating_point() or y.dim() < 2:
        return logits, y
    return logits.flatten(1, -2), y.flatten()


def member_losses(logits: Tensor, y: Tensor, stacked: bool = False) -> Tensor:
    """Return each member's mean loss [N] from outputs [N, B, C]: cross-entropy for labels, squared error for values.

    The shorter computation of a lone network rounds differently: a stack with one member left does not use it.
    """
    logits, y = flatten_labels(logits, y)
    n, batch = logits.shape[:2]
    if y.is_floating_point():
        return (logits - y).square().flatten(1).mean(1)
    if n == 1 and not stacked:
        return nn.functional.cross_entropy(logits[0], y).view(1)
    # With classes before samples the sums over classes are vector sums: a third of the time.
    by_class = logits.transpose(1, 2).contiguous()
    return nn.functional.cross_entropy(by_class, y.expand(n, batch), reduction="none").mean(1)


def count_right(logits: Tensor, y: Tensor) -> list[int]:
    """Return how many labels each member gets right, from outputs [N, B, C]."""
    logits, y = flatten_labels(logits.detach(), y)
    # Not argmax, which takes three times as long.
    return (logits.max(-1).indices == y).sum(-1).tolist()


def autocast_bfloat16(x: Tensor, enabled: bool) -> Any:
    """Return the context in which torch computes in bfloat16, where enabled."""
    return torch.autocast(x.device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def evaluate(parts: Sequence[Part], data: Dataset, step: int, plan: TrainingPlan, team: ThreadTeam) -> Evaluation:
    """Measure loss and accuracy of every member on the validation and test sets, in evaluation mode.

    The test set only reports, and untrained weights have nothing to report: step 0 omits it.
    """
    values: dict[str, dict[int, float]] = {}
    members = [m for part in parts for m in part.members]
    with ExitStack() as modes:
        for part in parts:
            modes.enter_context(preserve_modes(part.module))
            part.module.eval()
        for split, xs, ys in (("val", data.val_x, data.val_y), ("test", data.test_x, data.test_y)):
            if len(xs) == 0 or (split == "test" and 0 == step < plan.steps):
                continue
            loss, right = evaluate_split(parts, data, xs, ys, plan, f"evaluation/{step}/{split}", team)
            values[f"{split}_loss"] = dict(zip(members, loss, strict=True))
            if data.task == "classification":
                values[f"{split}_accuracy"] = dict(zip(members, [r / ys.numel() for r in right], strict=True))
    return Evaluation(step, values)


def evaluate_split(
    parts: Sequence[Part], data: Dataset, xs: Tensor, ys: Tensor, plan: TrainingPlan, key: str, team: ThreadTeam
) -> tuple[list[float], list[float]]:
    """Return each member's mean loss and number of right labels (0 for regression) over a whole split, in pieces."""

    def measure(part: Part) -> tuple[list[float], list[int]]:
        with (
            torch.no_grad(),
            keyed_randomness(part, x, plan.data_seed, f"{key}/{start}"),
            autocast_bfloat16(x, plan.autocast),
        ):
            logits = part.outputs(x)
            losses = member_losses(logits, y, part.stacked).tolist()
        return losses, [0] * len(losses) if y.is_floating_point() else count_right(logits, y)

    members = sum(len(part.members) for part in parts)
    loss, right = [0.0] * members, [0.0] * members
    for start in range(0, len(xs), EVAL_BATCH):
        x = data.prepare(xs[start : start + EVAL_BATCH], plan.dtype)
        y = data.targets(ys[start : start + EVAL_BATCH], plan.dtype)
        pairs = [pair for part in team.map(measure, parts) for pair in zip(*part, strict=True)]
        for k, (mean, count) in enumerate(pairs):
            loss[k] += mean * (len(x) / len(xs))
            right[k] += count
    return loss, right


@contextmanager
def keyed_randomness(part: Part, x: Tensor, seed: int, step: str) -> Iterator[None]:
    """Key the draws of one forward pass by (data.seed, `step`, layer), and keep the global random state.

    Our own dropout takes a generator per layer. Modules from elsewhere draw from the global state, which is set during
    the pass and restored: their masks depend on nothing else that runs in the process.
    """
    for k, layer in enumerate(part.dropouts):
        layer.generator = generator("dropout", seed, f"{step}/{k}")
    if not part.draws_globally:
        yield
        return
    with GLOBAL_STATE_LOCK, torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        seed_global_state("forward passes", seed, step, device=x.device)
        yield
