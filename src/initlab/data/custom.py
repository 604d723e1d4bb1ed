"""A user's own data set: a function that returns arrays."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.targets import load_target, said

from .dataset import Raw


def custom(directories: tuple[Path, ...], target: str | None = None, **parameters: Any) -> Raw:
    """Call `package.module:function`, which returns ((train_x, train_y), (test_x, test_y)), and check what comes.

    Inputs are uint8 images ([n, C, H, W], or [n, H, W] for grey ones) or floats [n, ...]; integer targets are classes,
    floating ones a regression. Arrays and tensors are both welcome.

    Raises:
        UserError: the target cannot be imported, takes other parameters, raises, or returns something else.
    """
    function = load_target(target, "data.target")
    try:
        inspect.signature(function).bind(**parameters)
    except TypeError as error:
        given = ", ".join(parameters) or "no parameters"
        raise UserError(f"data.target={target} cannot be called with {given}: {error}.") from error
    try:
        returned = function(**parameters)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"data.target={target} failed when it was called ({said(error)}): "
            "mend the function, or give what it needs as +data.<parameter>."
        ) from error
    try:
        (train_x, train_y), (test_x, test_y) = returned
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data.target={target} must return ((train_x, train_y), (test_x, test_y)); it did not: {error}."
        ) from error
    inputs = [_inputs(x, target) for x in (train_x, test_x)]
    labels = [_targets(y, target) for y in (train_y, test_y)]
    for x, y in zip(inputs, labels, strict=True):
        if len(x) != len(y) or len(x) == 0:
            raise UserError(f"data.target={target} returned {len(x)} inputs with {len(y)} targets: one target each.")
    if inputs[0].shape[1:] != inputs[1].shape[1:] or labels[0].shape[1:] != labels[1].shape[1:]:
        raise UserError(f"data.target={target} returned training and test samples of different shapes.")
    classes = None if labels[0].is_floating_point() else int(max(y.max() for y in labels)) + 1
    return Raw(inputs[0], labels[0], inputs[1], labels[1], classes, f"{target}")


def _inputs(values: Any, target: str | None) -> Tensor:
    x = _tensor(values)
    if x.dtype == torch.uint8:
        return x.unsqueeze(1) if x.dim() == 3 else x
    x = x.float()
    if x.dim() < 2 or not torch.isfinite(x).all():
        raise UserError(f"data.target={target} returned inputs that are not finite numbers [n, ...].")
    return x


def _targets(values: Any, target: str | None) -> Tensor:
    y = _tensor(values)
    if y.is_floating_point():
        y = y.float()
        return y.unsqueeze(1) if y.dim() == 1 else y
    y = y.long()
    if y.dim() != 1 or (len(y) and y.min() < 0):
        raise UserError(f"data.target={target} returned class labels that are not one integer from 0 on each.")
    return y


def _tensor(values: Any) -> Tensor:
    return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
