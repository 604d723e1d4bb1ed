"""The data sets by name, and how one is loaded."""

import functools
import math
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from initlab.data import images, synthetic, text
from initlab.data.custom import read_custom
from initlab.data.dataset import Dataset, RawDataset, make_dataset
from initlab.data.files import search_path
from initlab.errors import UserError, did_you_mean
from initlab.system.imports import is_target
from initlab.system.numbers import describe_float32_limit, fits_float32


@dataclass(frozen=True)
class Source:
    """A data set: a function that reads or draws its tensors, with the defaults of its parameters.

    Attributes:
        name: registry name.
        read: `read(directories, **parameters) -> RawDataset`.
        reference: authors, year, title.
        parameters: defaults; their names are keys `data.*`.
    """

    name: str
    read: Callable[..., RawDataset]
    reference: str
    parameters: Mapping[str, int | float] = field(default_factory=dict)


MAX_NUMBERS = 10**9  # numbers in a drawn data set, and the largest count among its parameters

_FASHION = "Xiao, Rasul & Vollgraf 2017, Fashion-MNIST"
_CIFAR = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"

DATASETS: dict[str, Source] = {
    source.name: source
    for source in (
        Source("fashion_mini", images.fashion_mini, _FASHION),
        Source("fashion_mnist", images.fashion_mnist, _FASHION),
        Source("mnist", images.mnist, "LeCun, Cortes & Burges 1998, The MNIST Database of Handwritten Digits"),
        Source("cifar10", images.cifar10, _CIFAR),
        Source("cifar100", images.cifar100, _CIFAR),
        Source(
            "gaussian",
            synthetic.gaussian,
            "the teacher-student setting: Gardner & Derrida 1989",
            {"train_size": 10_000, "test_size": 2_000, "dimension": 32, "classes": 10},
        ),
        Source(
            "digits_1d",
            synthetic.digits_1d,
            "after the idea of MNIST-1D: Greydanus 2020, Scaling Down Deep Learning",
            {"train_size": 10_000, "test_size": 2_000, "noise": 0.25},
        ),
        Source(
            "sine",
            synthetic.sine,
            "inputs as in Sitzmann et al. 2020, Implicit Neural Representations",
            {"train_size": 2_000, "test_size": 500, "dimension": 1, "frequency": 4.0, "noise": 0.0},
        ),
        Source(
            "tiny_text",
            text.tiny_text,
            "Shakespeare 1609, Blake 1794, Shelley 1818, Poe 1845, Lincoln 1863, Carroll 1871: public domain",
            {"context": 64, "stride": 4},
        ),
    )
}
"""Registry: name -> source. `read_custom` is no member: its parameters are its function's."""


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike | None = None,
    normalize: bool = True,
    validation: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **parameters: Any,
) -> Dataset:
    """Return a data set as tensors on a device; a second call with the same arguments returns the same tensors.

    Args:
        name: a name of `DATASETS`, or `"package.module:function"` for your own.
        root: directory that holds or receives the files; None stands for the per-user cache. $INITLAB_DATA, Debian's
            directory of Fashion-MNIST and the per-user cache are searched after it.
        normalize: False leaves the mean and the std as they are; images are still scaled to [0, 1].
        validation: fraction of each class of the training set that is held out, in [0, 1).
        seed: orders the batches; tensors and split do not depend on it.
        device: the device of the tensors.
        **parameters: the source's own.

    Raises:
        UserError: unknown name or parameter, a value out of range, a damaged file, a download that fails.

    >>> data = load_dataset("fashion_mini")
    >>> data.task, data.classes, data.input_shape, len(data.train_x), len(data.val_x), len(data.test_x)
    ('classification', 10, (1, 28, 28), 9000, 1000, 2000)
    >>> load_dataset("fashion_mini").train_x is data.train_x
    True
    """
    if isinstance(name, str) and is_target(name):
        name, parameters = "custom", {"target": name, **parameters}
    if name != "custom" and name not in DATASETS:
        raise UserError(
            f"data={name} is unknown.{did_you_mean(str(name), DATASETS)} "
            f"Choose one of {', '.join(DATASETS)}, or data=package.module:function."
        )
    if type(validation) not in (int, float) or not 0 <= validation < 1:
        raise UserError(f"data.validation={validation} must be a fraction in [0, 1); the default is 0.1.")
    if type(seed) is not int or seed < 0:
        raise UserError(f"data.seed={seed} must be a non-negative integer; the default is 0.")
    if not isinstance(normalize, bool):
        raise UserError(f"data.normalize={normalize} must be true or false; the default is true.")
    if name != "custom":
        parameters = _check_parameters(DATASETS[name], parameters)
    items = sorted(parameters.items())
    hashable = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in items)
    key = (name, search_path(root), normalize, float(validation), hashable)
    with _load_lock:
        return replace(_load_on_device(torch.device(device), key), seed=seed)


_load_lock = threading.RLock()  # two threads read one data set once; a custom source may load another


@functools.lru_cache(maxsize=8)
def _load_on_device(device: torch.device, key: tuple) -> Dataset:
    dataset = _read_dataset(*key)
    return dataset if device.type == "cpu" else dataset.to(device)


@functools.lru_cache(maxsize=8)
def _read_dataset(
    name: str, directories: tuple[Path, ...], normalize: bool, validation: float, parameters: tuple
) -> Dataset:
    read = read_custom if name == "custom" else DATASETS[name].read
    return make_dataset(name, read(directories, **dict(parameters)), normalize, validation)


def _check_parameters(source: Source, parameters: Mapping[str, Any]) -> dict[str, int | float]:
    own = source.parameters
    for key, value in parameters.items():
        if key not in own:
            has = f"its parameters are {', '.join(own)}" if own else "it has no parameters"
            raise UserError(f"data={source.name} has no parameter data.{key}; {has}.{did_you_mean(key, own)}")
        if isinstance(own[key], int):
            least = 2 if key == "classes" else 1
            if type(value) is not int or not least <= value <= MAX_NUMBERS:
                raise UserError(
                    f"data.{key}={value} must be an integer of at least {least} (and at most {MAX_NUMBERS:,}); "
                    f"the default is {own[key]}."
                )
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise UserError(f"data.{key}={value} must be a finite number of at least 0; the default is {own[key]}.")
        elif not fits_float32(value):
            raise UserError(f"data.{key}={value} cannot be: {describe_float32_limit(value)}.")
    checked = {**own, **parameters}
    samples, size = int(checked.get("train_size", 1)) + int(checked.get("test_size", 1)), checked.get("dimension", 1)
    if samples * size > MAX_NUMBERS:
        raise UserError(
            f"data={source.name} would hold {samples:,} samples of {size:,} numbers: "
            f"data.train_size times data.dimension must stay below {MAX_NUMBERS:,}."
        )
    if checked.get("classes", 0) > checked.get("train_size", MAX_NUMBERS):
        raise UserError(
            f"data.classes={checked['classes']} are more than data.train_size={checked['train_size']} samples: "
            "give fewer classes."
        )
    return checked
