"""One row per parameter: what it is, what is promised of it, and its measured moments."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from initlab.initialize.plan import FillTask
from initlab.initialize.streams import fingerprint
from initlab.inspection import Parameter
from initlab.schemes import Law

PROMISE_COLUMNS = ("name", "kind", "role", "shape", "fan_in", "fan_out", "scheme", "promised_mean", "promised_std")
MEASURED_COLUMNS = ("mean", "std", "fingerprint")
COLUMNS = (*PROMISE_COLUMNS, *MEASURED_COLUMNS)

UNFILLED_LABELS = {"left": "left alone", "unmatched": "no rule", "skipped": "skipped", "refused": "refused"}
"""Rule -> column `scheme` of parameters that get no values."""


def frame_from_tasks(tasks: Sequence[FillTask]) -> pd.DataFrame:
    """Return a frame with `COLUMNS`; mean, std and fingerprint are missing until `add_measurements`."""
    return make_frame([(*promise_row(task), math.nan, math.nan, None) for task in tasks], COLUMNS)


def add_measurements(rows: pd.DataFrame, tasks: Sequence[FillTask]) -> None:
    """Measure the parameters and fill the columns mean, std and fingerprint."""
    measured = [measure_parameter(task.parameter) for task in tasks]
    for index, column in enumerate(MEASURED_COLUMNS if measured else ()):
        rows[column] = [values[index] for values in measured]


def measure_parameter(parameter: Parameter) -> tuple[float, float, str | None]:
    """Return mean, standard deviation and fingerprint of a parameter's values."""
    if parameter.refusal or parameter.tensor.is_meta:
        return math.nan, math.nan, None
    values = parameter.values()
    return (*(mean_and_std(values) if values.numel() else (math.nan, math.nan)), fingerprint(values))


def make_frame(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a frame in which fan_in and fan_out have a nullable dtype.

    >>> make_frame([(27, "conv"), (None, "bias")], ["fan_in", "kind"]).fan_in.tolist()
    [27, <NA>]
    """
    empty = pd.Series(dtype=object)  # an empty list would become a float column
    data: dict[str, Any] = {c: [row[index] for row in rows] if rows else empty for index, c in enumerate(columns)}
    for column in {"fan_in", "fan_out"} & data.keys():
        whole = all(value is None or value == int(value) for value in data[column])
        data[column] = pd.array(data[column], dtype="Int64" if whole else "Float64")
    return pd.DataFrame(data)


def promise_row(task: FillTask) -> tuple[Any, ...]:
    """Return the values of `PROMISE_COLUMNS` of one parameter."""
    parameter = task.parameter
    fans = parameter.fans if parameter.is_weight else None
    shape = "x".join(map(str, parameter.shape))
    fan_in, fan_out = (fans.fan_in, fans.fan_out) if fans else (None, None)
    description = (parameter.name, parameter.kind, task.role, shape, fan_in, fan_out)
    return (*description, scheme_name(task), *promised_moments(task))


def scheme_name(task: FillTask) -> str:
    """Return the name of what fills, or would fill, the parameter."""
    if task.gates:
        return "chrono" if any(law.distribution == "log_uniform" for law in task.gates.values()) else "forget_bias"
    if task.rule == "normal":
        return "normal"
    if task.rule == "constant":
        return {0.0: "zeros", 1.0: "ones"}.get(task.parameter.start, "constant")
    return UNFILLED_LABELS.get(task.rule, task.scheme.name if task.scheme else "")


def promised_moments(task: FillTask) -> tuple[float, float]:
    """Return the promised mean and standard deviation over all elements of a parameter."""
    if task.rule == "constant" and not task.gates:
        return task.parameter.start, 0.0
    promised: list[Law] = task.promised_laws()
    if not promised:
        return math.nan, math.nan
    if all(law is promised[0] for law in promised):
        return promised[0].mean, promised[0].std
    sizes = [math.prod(block.shape) for block in task.blocks]
    total = sum(sizes)
    mean = sum(size * law.mean for size, law in zip(sizes, promised, strict=True)) / total
    square = sum(size * (law.variance + law.mean**2) for size, law in zip(sizes, promised, strict=True)) / total
    return mean, math.sqrt(max(square - mean**2, 0.0))


def mean_and_std(tensor: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all elements, summed in float64; of a complex tensor, the real mean.

    >>> mean_and_std(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    values = tensor.detach()
    if values.is_complex():
        mean = float(values.real.mean(dtype=torch.float64))
        centered = torch.view_as_real(values.resolve_conj())
    else:
        values = values.float()
        mean = float(values.mean(dtype=torch.float64))
        centered = values - mean
    return mean, float(torch.linalg.vector_norm(centered, dtype=torch.float64)) / math.sqrt(values.numel())
