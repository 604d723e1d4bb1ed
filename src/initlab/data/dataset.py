"""The record of a data set: its tensors, its split, its normalization."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.system.random_streams import numpy_generator


@dataclass(frozen=True, eq=False)
class RawDataset:
    """Training and test tensors as a source reads or makes them, before split and normalization.

    Attributes:
        train_x: uint8 images [n, C, H, W], or floats [n, ...].
        train_y: int64 class indices [n], or float targets [n, outputs].
        test_x: as `train_x`.
        test_y: as `train_y`.
        classes: number of classes; None for a regression.
        provenance: where the tensors come from, one line.
        standardize: whether inputs get mean 0 and variance 1 per channel (axis 1); False where their scale matters.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int | None
    provenance: str
    standardize: bool = True


@dataclass(frozen=True, eq=False)
class Dataset:
    """Six tensors on one device, and the affine map from them to network inputs.

    Attributes:
        name: registry name.
        train_x: training inputs, uint8 images [n, C, H, W] or floats [n, ...]; `val_x`, `test_x` likewise.
        train_y: int64 class indices [n] ([n, length] for text), or float32 targets [n, outputs]; `val_y`, … likewise.
        val_x: the part of the training set held out for every choice that initlab makes; empty when validation is 0.
        val_y: targets of `val_x`.
        test_x: test inputs, for reports only.
        test_y: targets of `test_x`.
        classes: number of classes; None for a regression.
        mean: per channel, of the training inputs (images scaled to [0, 1]); empty where they are left as they are.
        std: per channel, of the training inputs, population form.
        seed: orders the batches (`data.seed`).
        provenance: where the tensors come from, one line.

    >>> from initlab.data import load_dataset
    >>> data = load_dataset("fashion_mini")
    >>> data.train_x.shape, data.train_x.dtype, data.outputs
    (torch.Size([9000, 1, 28, 28]), torch.uint8, 10)
    >>> x = data.prepare(data.train_x)
    >>> abs(round(x.mean().item(), 4)), round(x.std().item(), 4)
    (0.0, 1.0)
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    seed: int = 0
    provenance: str = ""
    _affine: dict = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        """`classification` (cross-entropy) or `regression` (squared loss)."""
        return "regression" if self.classes is None else "classification"

    @property
    def tokens(self) -> bool:
        """Whether inputs are whole numbers [n, length] below `classes`, with one target each."""
        return self.classes is not None and self.train_y.dim() == 2

    @property
    def outputs(self) -> int:
        """Width of the readout: the classes, or the columns of the targets."""
        return self.train_y.shape[1] if self.classes is None else self.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the sample axis."""
        return tuple(self.train_x.shape[1:])

    def prepare(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return network inputs for raw inputs: (x/255 − mean)/std for images, (x − mean)/std for floats, a new tensor.

        Args:
            x: rows of `train_x`, `val_x` or `test_x`.
            dtype: floating dtype of the result.
        """
        # In bfloat16 the affine map itself would round; it is done in float32 and rounded once.
        work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        factor, offset = self._factor_and_offset(work, x)
        return x.to(work, copy=True).mul_(factor).add_(offset).to(dtype)

    def targets(self, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what the loss compares with: class indices as they are, regression targets in `dtype`."""
        return y.to(dtype) if self.classes is None else y

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the data set with all its tensors on `device`."""
        names = ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in names}, _affine={})

    def _factor_and_offset(self, dtype: torch.dtype, x: Tensor) -> tuple[Any, Any]:
        key = (dtype, x.device, x.dtype)
        if key not in self._affine:
            unit = 255.0 if x.dtype == torch.uint8 else 1.0
            mean = np.array(self.mean or (0.0,))
            std = np.array(self.std or (1.0,))
            factor, offset = 1 / (unit * std), -mean / std
            if len(mean) == 1:  # numbers, not tensors: no broadcast, no copy to the device
                self._affine[key] = factor.item(), offset.item()
            else:
                shape = (-1, *[1] * (x.dim() - 2))
                options: Any = {"dtype": dtype, "device": x.device}
                self._affine[key] = tuple(torch.tensor(v, **options).reshape(shape) for v in (factor, offset))
        return self._affine[key]


def make_dataset(name: str, raw: RawDataset, normalize: bool, validation: float) -> Dataset:
    """Split the training set (stratified, always the same) and measure its mean and std.

    Args:
        name: registry name.
        raw: the source's tensors.
        normalize: False leaves mean and std out; images are then only scaled to [0, 1].
        validation: fraction of each class that is held out, in [0, 1).
    """
    stratified = raw.classes is not None and raw.train_y.dim() == 1
    held_out = validation_mask(raw.train_y, validation, stratified)
    train_x, train_y = raw.train_x[~held_out], raw.train_y[~held_out]
    val_x, val_y = raw.train_x[held_out], raw.train_y[held_out]
    mean, std = channel_statistics(train_x) if normalize and raw.standardize else ((), ())
    tensors = (train_x, train_y, val_x, val_y, raw.test_x, raw.test_y)
    return Dataset(name, *tensors, raw.classes, mean, std, provenance=raw.provenance)


def validation_mask(y: Tensor, fraction: float, stratified: bool) -> Tensor:
    """Return which rows are held out: `fraction` of every class, always the same rows.

    They do not depend on `data.seed`: another order of batches must not change what is measured.

    Args:
        y: training targets [n, …].
        fraction: in [0, 1); every class of two rows or more keeps one and gives one.
        stratified: by class; else over all rows.
    """
    mask = torch.zeros(len(y), dtype=torch.bool)
    labels = y if stratified else torch.zeros(len(y))
    for index, label in enumerate(torch.unique(labels)):
        rows = torch.nonzero(labels == label).flatten()
        count = round(fraction * len(rows))
        if fraction > 0 and len(rows) > 1:
            count = min(max(count, 1), len(rows) - 1)
        mask[rows[numpy_generator("validation", name=f"{index}").permutation(len(rows))[:count]]] = True
    return mask


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population std per channel (axis 1), images in units of [0, 1]; a constant channel gets std 1."""
    means, stds = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].reshape(-1)
        if x.dtype == torch.uint8:
            # A histogram of 256 values is exact and needs no float copy of the images.
            counts = torch.bincount(values, minlength=256).double()
            gray = torch.arange(256, dtype=torch.float64) / 255
        else:
            counts, gray = torch.ones(len(values), dtype=torch.float64), values.double()
        mean = ((counts * gray).sum() / counts.sum()).item()
        variance = ((counts * (gray - mean) ** 2).sum() / counts.sum()).item()
        means.append(mean)
        stds.append(variance**0.5 if variance > 1e-20 else 1.0)
    return tuple(means), tuple(stds)
