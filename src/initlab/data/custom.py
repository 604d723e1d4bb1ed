"""A user's own data set: a function that returns arrays, or torch Datasets."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from initlab.data.arrays import InvalidArrays, count_classes, list_briefly, to_inputs, to_targets
from initlab.data.dataset import RawDataset
from initlab.errors import UserError
from initlab.system.imports import describe_contract, describe_exception, describe_value, load_target
from initlab.system.streams import print_stderr

SPLITS = ("training", "test")
PAIRS = "((train_x, train_y), (test_x, test_y))"


def read_custom(directories: tuple[Path, ...], target: str | None = None, **parameters: Any) -> RawDataset:
    """Call `package.module:function`, which returns ((train_x, train_y), (test_x, test_y)), and check the result.

    Inputs are uint8 images ([n, C, H, W], or [n, H, W] for gray ones) or numbers [n, ...]; integer targets are classes,
    floating ones a regression. Arrays, tensors and lists are accepted; instead of (x, y) each part may be a torch
    Dataset of pairs (x, y). A function or class with an argument `train` is called with True and with False.

    Args:
        directories: not used.
        target: the function's name.
        **parameters: its arguments.

    Raises:
        UserError: the target cannot be imported, takes other parameters, raises, or returns something else.
    """
    function = load_target(target, "data.target")
    subject = f"data.target={target}"
    parts = call_target(function, subject, parameters)
    pairs = [inputs_and_targets(part, split, subject) for part, split in zip(parts, SPLITS, strict=True)]
    try:
        xs, ys = _to_tensors(pairs)
        classes = None if ys[0].is_floating_point() else count_classes(ys)
    except InvalidArrays as error:
        raise UserError(f"{subject} returned {error}") from error
    warn_about_targets(subject, ys, classes)
    return RawDataset(xs[0], ys[0], xs[1], ys[1], classes, f"{target}")


def _to_tensors(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    xs = [to_inputs(x, f"{split} inputs") for (x, _), split in zip(pairs, SPLITS, strict=True)]
    ys = [to_targets(y, f"{split} targets") for (_, y), split in zip(pairs, SPLITS, strict=True)]
    for x, y, split in zip(xs, ys, SPLITS, strict=True):
        if len(x) != len(y):
            raise InvalidArrays(f"{len(x)} {split} inputs with {len(y)} targets: one target each.")
    check_same_format(xs, "inputs")
    check_same_format(ys, "targets")
    return xs, ys


def call_target(function: Any, subject: str, parameters: dict[str, Any]) -> Sequence[Any]:
    """Return the training and the test part that a user's function returns.

    Args:
        function: what `data.target` names.
        subject: what the messages call it.
        parameters: its arguments.

    Raises:
        UserError: it is no function, cannot be called so, raises, or returns something other than two parts.
    """
    contract = describe_contract("data")
    if isinstance(function, Dataset) or not callable(function):
        raise UserError(f"{subject} is {describe_value(function)}, not a function{contract}.")
    both = takes_train_flag(function, parameters)
    try:
        inspect.signature(function).bind(**parameters, **({"train": True} if both else {}))
    except ValueError:  # some built-in functions have no signature
        both = False
    except TypeError as error:
        given = ", ".join(parameters) or "no parameters"
        raise UserError(f"{subject} cannot be called with {given}: {error}{contract}.") from error
    try:
        if both:
            return [function(**parameters, train=train) for train in (True, False)]
        returned = function(**parameters)
    except Exception as error:  # anything that the user's own code raises
        raise UserError(
            f"{subject} failed when it was called ({describe_exception(error)}): "
            "mend the function, or give what it needs as +data.<parameter>."
        ) from error
    single = isinstance(returned, Dataset | DataLoader | Tensor | np.ndarray | dict | str)
    if single or not hasattr(returned, "__iter__"):
        value = describe_value(returned)
        raise UserError(f"{subject} must return two parts, training and test; it returned {value}{contract}.")
    parts = list(returned)
    if len(parts) != 2:
        raise UserError(f"{subject} must return {PAIRS}; it returned {len(parts)} parts{contract}.")
    return parts


def takes_train_flag(function: Callable[..., Any], parameters: dict[str, Any]) -> bool:
    """Return whether a function or class has an argument `train`, as torchvision's data sets do.

    Args:
        function: the user's.
        parameters: its arguments; where they include `train`, it is no flag.
    """
    try:
        train = inspect.signature(function).parameters.get("train")
    except ValueError:  # some built-in functions have no signature
        return False
    flag = train is not None and (train.default is train.empty or isinstance(train.default, bool))
    return flag and "train" not in parameters


def inputs_and_targets(part: Any, split: str, subject: str) -> tuple[Any, Any]:
    """Return inputs and targets of one part: a pair already, or all samples of a torch Dataset.

    Args:
        part: what the user's function returned.
        split: training or test, for messages.
        subject: what the messages call the function.

    Raises:
        UserError: it is neither a pair nor a Dataset with a length.
    """
    if isinstance(part, DataLoader):
        raise UserError(f"{subject} returned a DataLoader as its {split} part: return its data set, loader.dataset.")
    if isinstance(part, IterableDataset) or (isinstance(part, Dataset) and not hasattr(part, "__len__")):
        raise UserError(f"{subject} returned a {split} Dataset without a length: return one with __len__.")
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        return part.tensors[0], part.tensors[1]
    if isinstance(part, Dataset):
        return read_samples(part, split, subject)
    if not isinstance(part, list | tuple) or len(part) != 2:
        of = f" of {len(part)}" if isinstance(part, list | tuple) else ""
        raise UserError(f"{subject} must return {PAIRS}; its {split} part is {describe_value(part)}{of}.")
    return part[0], part[1]


def read_samples(part: Any, split: str, subject: str) -> tuple[Any, Any]:
    """Read every sample of a torch Dataset once; pictures (PIL) become arrays with channels first.

    Args:
        part: the Dataset.
        split: training or test, for messages.
        subject: what the messages call the user's function.

    Raises:
        UserError: a sample is no pair, or reading fails.
    """
    xs, ys = [], []
    try:
        for number in range(len(part)):
            sample = part[number]
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                value = f"{describe_value(sample)} as sample {number} of its {split} Dataset"
                raise UserError(f"{subject} returned {value}: give a pair (x, y).")
            xs.append(channels_first(sample[0]))
            ys.append(sample[1])
    except UserError:
        raise
    except Exception as error:  # anything that the user's own code raises
        reason = describe_exception(error)
        raise UserError(f"{subject}: reading its {split} Dataset failed ({reason}): mend it there.") from error
    return stack_samples(xs), stack_samples(ys)


def channels_first(x: Any) -> Any:
    """Return a picture (PIL) as an array [C, H, W] or [H, W]; any other value unchanged."""
    if not hasattr(x, "getbands"):
        return x
    array = np.asarray(x)
    return array.transpose(2, 0, 1) if array.ndim == 3 else array


def stack_samples(values: list[Any]) -> Any:
    """Stack samples with torch where all are tensors of one shape, which is faster than through lists."""
    equal = values and all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values)
    return torch.stack([v.detach() for v in values]) if equal else values


def check_same_format(tensors: Sequence[Tensor], what: str) -> None:
    """Check that training and test tensors have one dtype and one shape of samples.

    Args:
        tensors: training and test.
        what: inputs or targets, for messages.

    Raises:
        InvalidArrays: they differ.
    """
    train, test = tensors
    if train.dtype != test.dtype:
        kinds = " and ".join(str(each.dtype).removeprefix("torch.") for each in tensors)
        raise InvalidArrays(f"training and test {what} of different kinds ({kinds}): give both the same type.")
    if train.shape[1:] != test.shape[1:]:
        shapes = " and ".join(str(list(each.shape[1:])) for each in tensors)
        raise InvalidArrays(f"training and test samples of different shapes ({what} {shapes}): give both the same.")


def warn_about_targets(subject: str, ys: Sequence[Tensor], classes: int | None) -> None:
    """Write to standard error what about the targets may be unintended: classes as floats, classes without samples."""
    train = ys[0]
    if classes is None:
        whole = train.shape[1] == 1 and bool(((train == train.round()) & (train >= 0)).all())
        if whole and len(torch.unique(train)) <= min(len(train) // 2, 100):
            print_stderr(
                f"initlab: {subject} returned whole numbers as floats: a regression; classes are integers (y.long())."
            )
    elif missing := sorted(set(range(classes)) - set(torch.cat(list(ys)).tolist())):
        some = list_briefly(missing)
        print_stderr(f"initlab: {subject} has no sample of class {some}: outputs are 0 to {classes - 1}.")
