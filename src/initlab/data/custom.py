"""A user's own data set: a function that returns arrays, or torch Datasets."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from initlab.data.arrays import InvalidArrays, count_classes, invalid_return, to_inputs, to_targets
from initlab.data.dataset import RawDataset
from initlab.errors import UserError
from initlab.system.imports import describe_contract, describe_exception, describe_value, load_target
from initlab.system.streams import print_stderr

SPLITS = ("training", "test")


def read_custom(directories: tuple[Path, ...], target: str | None = None, **parameters: Any) -> RawDataset:
    """Call `package.module:function`, which returns ((train_x, train_y), (test_x, test_y)), and check what comes.

    Inputs are uint8 images ([n, C, H, W], or [n, H, W] for grey ones) or numbers [n, ...]; integer targets are classes,
    floating ones a regression. Arrays, tensors and lists are all welcome; instead of (x, y) each part may be a
    torch Dataset of pairs (x, y). A function or class with an argument `train` is called with True and with False.

    Raises:
        UserError: the target cannot be imported, takes other parameters, raises, or returns something else.
    """
    function = load_target(target, "data.target")
    subject = f"data.target={target}"
    parts = [
        inputs_and_targets(part, which, subject)
        for part, which in zip(call_target(function, subject, parameters), SPLITS, strict=True)
    ]
    try:
        xs = [to_inputs(x, f"{which} inputs") for (x, _), which in zip(parts, SPLITS, strict=True)]
        ys = [to_targets(y, f"{which} targets") for (_, y), which in zip(parts, SPLITS, strict=True)]
        for x, y, which in zip(xs, ys, SPLITS, strict=True):
            if len(x) != len(y):
                raise InvalidArrays(f"{len(x)} {which} inputs with {len(y)} targets: one target each.")
        check_same_format(xs, "inputs")
        check_same_format(ys, "targets")
        classes = None if ys[0].is_floating_point() else count_classes(ys)
    except InvalidArrays as fault:
        raise invalid_return(subject, fault) from fault
    warn_about_targets(subject, ys, classes)
    return RawDataset(xs[0], ys[0], xs[1], ys[1], classes, f"{target}")


def call_target(function: Any, subject: str, parameters: dict[str, Any]) -> Sequence[Any]:
    """Return the training and the test part that a user's function gives."""
    if isinstance(function, Dataset) or not callable(function):
        raise UserError(f"{subject} is {describe_value(function)}, not a function{describe_contract('data')}.")
    both = takes_train_flag(function, parameters)
    try:
        signature = inspect.signature(function)
        signature.bind(**parameters, **({"train": True} if both else {}))
    except ValueError:  # as above
        both = False
    except TypeError as error:
        given = ", ".join(parameters) or "no parameters"
        raise UserError(f"{subject} cannot be called with {given}: {error}{describe_contract('data')}.") from error
    try:
        if both:
            return [function(**parameters, train=train) for train in (True, False)]
        returned = function(**parameters)
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"{subject} failed when it was called ({describe_exception(error)}): "
            "mend the function, or give what it needs as +data.<parameter>."
        ) from error
    if isinstance(returned, Dataset | DataLoader | Tensor | np.ndarray | dict | str) or not hasattr(
        returned, "__iter__"
    ):
        raise UserError(
            f"{subject} must return two parts, training and test; it returned {describe_value(returned)}{describe_contract('data')}."
        )
    found = list(returned)
    if len(found) != 2:
        raise UserError(
            f"{subject} must return ((train_x, train_y), (test_x, test_y)); it returned {len(found)} parts"
            f"{describe_contract('data')}."
        )
    return found


def takes_train_flag(function: Callable[..., Any], parameters: dict[str, Any]) -> bool:
    """Does a function or class tell training from test by its argument `train`, as torchvision's data sets do?"""
    try:
        found = inspect.signature(function).parameters.get("train")
    except ValueError:  # some built-in functions show no signature
        return False
    flag = found is not None and (found.default is found.empty or isinstance(found.default, bool))
    return flag and "train" not in parameters


def inputs_and_targets(part: Any, which: str, subject: str) -> tuple[Any, Any]:
    """Return inputs and targets of one part: a pair already, or all samples of a torch Dataset."""
    if isinstance(part, DataLoader):
        raise UserError(f"{subject} returned a DataLoader as its {which} part: return its data set, loader.dataset.")
    if isinstance(part, IterableDataset) or (isinstance(part, Dataset) and not hasattr(part, "__len__")):
        raise UserError(f"{subject} returned a {which} Dataset without a length: return one with __len__.")
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        x, y = part.tensors
        return x, y
    if isinstance(part, Dataset):
        return read_samples(part, which, subject)
    found = list(part) if isinstance(part, list | tuple) else []
    if len(found) != 2:
        of = f" of {len(part)}" if isinstance(part, list | tuple) else ""
        raise UserError(
            f"{subject} must return ((train_x, train_y), (test_x, test_y)); its {which} part is {describe_value(part)}{of}."
        )
    return found[0], found[1]


def read_samples(part: Any, which: str, subject: str) -> tuple[Any, Any]:
    """Read every sample of a torch Dataset once; pictures (PIL) become arrays with channels first."""
    xs, ys = [], []
    try:
        for number in range(len(part)):
            sample = part[number]
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise InvalidArrays(
                    f"{describe_value(sample)} as sample {number} of its {which} Dataset: give a pair (x, y)."
                )
            xs.append(channels_first(sample[0]))
            ys.append(sample[1])
    except InvalidArrays as fault:
        raise invalid_return(subject, fault) from fault
    except Exception as error:  # whatever the user's own code raises
        raise UserError(
            f"{subject}: reading its {which} Dataset failed ({describe_exception(error)}): mend it there."
        ) from error
    return stack_samples(xs), stack_samples(ys)


def channels_first(x: Any) -> Any:
    """Return a picture (PIL) as an array [C, H, W] or [H, W]; anything else as it is."""
    if not hasattr(x, "getbands"):
        return x
    array = np.asarray(x)
    return array.transpose(2, 0, 1) if array.ndim == 3 else array


def stack_samples(values: list[Any]) -> Any:
    """Put samples together, by torch where all are tensors of one shape: quicker than by way of lists."""
    alike = values and all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values)
    return torch.stack([v.detach() for v in values]) if alike else values


def check_same_format(found: Sequence[Tensor], what: str) -> None:
    """Raise Fault where training and test differ in kind or shape."""
    train, test = found
    if train.dtype != test.dtype:
        kinds = " and ".join(str(each.dtype).removeprefix("torch.") for each in found)
        raise InvalidArrays(f"training and test {what} of different kinds ({kinds}): give both the same type.")
    if train.shape[1:] != test.shape[1:]:
        shapes = " and ".join(str(list(each.shape[1:])) for each in found)
        raise InvalidArrays(f"training and test samples of different shapes ({what} {shapes}): give both the same.")


def warn_about_targets(subject: str, ys: Sequence[Tensor], classes: int | None) -> None:
    """Say what of the targets may not be meant."""
    train = ys[0]
    if classes is None:
        whole = train.shape[1] == 1 and bool((train == train.round()).all()) and bool((train >= 0).all())
        if whole and len(torch.unique(train)) <= min(len(train) // 2, 100):
            print_stderr(
                f"initlab: {subject} returned whole numbers as floats: a regression; classes are integers (y.long())."
            )
        return
    if missing := sorted(set(range(classes)) - set(torch.cat(list(ys)).tolist())):
        some = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        print_stderr(f"initlab: {subject} has no sample of class {some}: outputs are 0 to {classes - 1}.")
