"""One row per parameter: what it is, what was promised of it and what came."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from initlab.fans import Parameter
from initlab.schemes import Law

from .plan import Task
from .streams import fingerprint

COLUMNS = (
    "name",
    "kind",
    "role",
    "shape",
    "fan_in",
    "fan_out",
    "scheme",
    "promised_mean",
    "promised_std",
    "mean",
    "std",
    "fingerprint",
)

SAID = {"left": "left alone", "unmatched": "no rule", "skipped": "skipped", "refused": "refused"}
"""What the column `scheme` says of parameters that get no values."""


def frame_of(tasks: Sequence[Task], measure: bool) -> pd.DataFrame:
    """Return a frame with `COLUMNS`; mean, std and fingerprint are missing unless `measure`."""
    return whole_fans(pd.DataFrame([row(task, measure) for task in tasks], columns=list(COLUMNS)))


def whole_fans(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the columns fan_in and fan_out a type that has whole numbers and knows what is missing; return the frame."""
    for column in ("fan_in", "fan_out"):
        values = frame[column].tolist()
        whole = all(value is None or value != value or value == int(value) for value in values)
        frame[column] = pd.array(values, dtype="Int64" if whole else "Float64")
    return frame


def row(task: Task, measure: bool) -> tuple[Any, ...]:
    """Return one parameter's row."""
    parameter = task.parameter
    fans = parameter.fans if parameter.is_weight else None
    mean = std = math.nan
    mark = None
    if measure and not parameter.refusal and not parameter.tensor.is_meta:
        values = parameter.values()
        mean, std = measured(values) if values.numel() else (math.nan, math.nan)
        mark = fingerprint(values)
    return (
        parameter.name,
        parameter.kind,
        task.role,
        "x".join(map(str, parameter.shape)),
        fans.fan_in if fans else None,
        fans.fan_out if fans else None,
        scheme_name(task, parameter),
        *moments(task),
        mean,
        std,
        mark,
    )


def scheme_name(task: Task, parameter: Parameter) -> str:
    """Return what filled, or would fill, the parameter."""
    if task.gates:
        return "chrono" if any(law.distribution == "log_uniform" for law in task.gates.values()) else "forget_bias"
    if task.rule == "normal":
        return "normal"
    if task.rule == "constant":
        return {0.0: "zeros", 1.0: "ones"}.get(parameter.start, "constant")
    return SAID.get(task.rule, task.scheme.name if task.scheme else "")


def moments(task: Task) -> tuple[float, float]:
    """Return the promised mean and standard deviation over all elements of a parameter."""
    found: list[Law] = task.promised()
    if not found:
        return math.nan, math.nan
    if len(found) == 1 or all(law is found[0] for law in found):
        return found[0].mean, found[0].std
    sizes = [math.prod(block.shape) for block in task.blocks]
    total = sum(sizes)
    mean = sum(size * law.mean for size, law in zip(sizes, found, strict=True)) / total
    square = sum(size * (law.variance + law.mean**2) for size, law in zip(sizes, found, strict=True)) / total
    return mean, math.sqrt(max(square - mean**2, 0.0))


def measured(tensor: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all elements, summed in float64; of a complex tensor, the real mean.

    >>> measured(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    values = tensor.detach()
    if values.is_complex():
        mean, spread = complex(values.to(torch.complex128).mean()), torch.view_as_real(values.resolve_conj())
        return mean.real, float(torch.linalg.vector_norm(spread, dtype=torch.float64)) / math.sqrt(values.numel())
    values = values.float()
    mean = float(values.mean(dtype=torch.float64))
    return mean, float(torch.linalg.vector_norm(values - mean, dtype=torch.float64)) / math.sqrt(values.numel())
