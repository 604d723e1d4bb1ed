"""A loss for any output: the user's own, cross-entropy where outputs look like classes, else a squared error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.errors import UserError
from initlab.inspection.batch import flatten_tensors, is_float_tensor
from initlab.inspection.exceptions import call_user_code
from initlab.system.random_streams import generator

IGNORE_INDEX = -100
"""Target that cross-entropy leaves out, as in torch."""


@dataclass(frozen=True)
class Objective:
    """A computed loss, its name (`cross-entropy`, `squared error`, …), and the number of classes of a cross-entropy."""

    loss: Tensor
    name: str
    classes: int | None = None


def main_output(output: Any) -> Tensor | None:
    """Return the tensor to take the loss of: `logits` where the output has that name, else the first floating one.

    >>> main_output((torch.ones(2, dtype=torch.int64), {"logits": torch.zeros(1)})).item()
    0.0
    """
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    candidates = flatten_tensors(output if named is None else named)
    return next((t for t in candidates if is_float_tensor(t)), None)


def compute_loss(
    output: Any,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    classes: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> Objective | None:
    """Compute a loss of a module's output; None where there is nothing to differentiate.

    A scalar output is the loss itself. Without `loss`: integer `targets` mean cross-entropy, floating ones the mean
    squared error. Without `targets`, outputs [B, C] with C ≥ 2 are taken for the logits of C classes, and outputs
    [B, T, C] too when the inputs are `tokens` below C: cross-entropy on random labels. All others get the mean squared
    error against N(0, 1). Random targets come from their own generator, keyed by `seed`.

    Args:
        output: a tensor, or a tuple, mapping or data class of tensors.
        targets: labels, one for each row of logits, or values of the output's shape.
        loss: `loss(output, targets)`, or `loss(output)` without targets.
        classes: the outputs are logits of that many classes, whichever axis that is (last, else second).
        tokens: the vocabulary size of the inputs.
        seed: keys random targets.

    Raises:
        UserError: `loss` is no function or returns no number, or the targets do not fit the output.
    """
    tensor = main_output(output)
    if loss is not None:
        return _own_loss(output, targets, loss)
    if targets is not None and not isinstance(targets, Tensor):
        kind = type(targets).__name__
        raise UserError(f"targets are a {kind}: give a tensor, or a loss(output, targets) of your own.")
    if tensor is None:
        return None
    if tensor.dim() == 0:
        return Objective(tensor, "the output itself")
    generated = generator("made-up targets", seed)
    regression = targets is not None and targets.is_floating_point()
    axis = None if regression else _class_axis(tensor, classes, tokens, targets)
    if axis is None:
        values: Any = targets if regression else torch.randn(tensor.shape, generator=generated).to(tensor)
        if values.shape != tensor.shape:
            shapes = f"{_shape_or_type(values)} and the output has {_shape_or_type(tensor)}"
            raise UserError(f"targets have shape {shapes}: they must agree.")
        return Objective(F.mse_loss(tensor, values), "squared error")
    logits = tensor.movedim(axis, -1)
    count = logits.shape[-1]
    if targets is None:
        targets = torch.randint(count, logits.shape[:-1], generator=generated).to(tensor.device)
    _check_labels(targets, logits)
    value = F.cross_entropy(logits.reshape(-1, count), targets.reshape(-1).long(), ignore_index=IGNORE_INDEX)
    return Objective(value, "cross-entropy", count)


def _own_loss(output: Any, targets: Any, loss: Callable[..., Any]) -> Objective:
    if not callable(loss):
        raise UserError(f"loss={loss!r} must be a function: give loss(output, targets), such as F.cross_entropy.")
    value = call_user_code(loss, output) if targets is None else call_user_code(loss, output, targets)
    if not (isinstance(value, Tensor) and value.dim() == 0):
        raise UserError(f"loss must return a tensor with one number in it, and returned {_shape_or_type(value)}.")
    return Objective(value, "your loss")


def _check_labels(targets: Tensor, logits: Tensor) -> None:
    count = logits.shape[-1]
    if targets.numel() * count != logits.numel():
        shapes = f"{_shape_or_type(targets)} and the logits {_shape_or_type(logits)}"
        raise UserError(f"targets have shape {shapes}: give one label for each.")
    if len(below := targets[(targets < 0) & (targets != IGNORE_INDEX)]):
        least = int(below.min())
        raise UserError(f"targets hold {least}: labels are counted from 0, and {IGNORE_INDEX} means one to leave out.")
    if int(targets.max()) >= count:
        raise UserError(f"targets go up to {int(targets.max())}, and the output has {count} classes.")


def _class_axis(tensor: Tensor, classes: int | None, tokens: int | None, targets: Tensor | None) -> int | None:
    if classes is not None:
        for axis in (-1, 1):
            if tensor.dim() > 1 and tensor.shape[axis] == classes:
                return axis
        raise UserError(f"classes={classes} is not an axis of the output, whose shape is {_shape_or_type(tensor)}.")
    if tensor.dim() < 2:
        return None
    if targets is not None:
        in_the_middle = targets.shape[1:] == tensor.shape[2:] and tensor.dim() > 2 and targets.dim() > 1
        return 1 if in_the_middle and targets.shape != tensor.shape[:-1] else -1
    if tensor.dim() == 2:
        return -1 if tensor.shape[1] >= 2 else None
    return -1 if tokens is not None and tensor.shape[-1] >= tokens else None


def _shape_or_type(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
