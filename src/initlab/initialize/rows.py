"""One row per parameter: what it is, what was promised of it and what came."""

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

UNFILLED_LABELS = {"left": "left alone", "unmatched": "no rule", "skipped": "skipped", "refused": "refused"}
"""What the column `scheme` says of parameters that get no values."""


def frame_from_tasks(tasks: Sequence[FillTask]) -> pd.DataFrame:
    """Return a frame with `COLUMNS`; mean, std and fingerprint are missing until `add_measurements`."""
    return make_frame([(*promise_row(task), math.nan, math.nan, None) for task in tasks], COLUMNS)


def add_measurements(rows: pd.DataFrame, tasks: Sequence[FillTask]) -> None:
    """Measure the parameters and fill in the columns mean, std and fingerprint."""
    found = [measure_parameter(task.parameter) for task in tasks]
    for index, column in enumerate(COLUMNS[-3:] if found else ()):
        rows[column] = [values[index] for values in found]


def measure_parameter(parameter: Parameter) -> tuple[float, float, str | None]:
    """Return mean, standard deviation and fingerprint of the values a parameter has."""
    if parameter.refusal or parameter.tensor.is_meta:
        return math.nan, math.nan, None
    values = parameter.values()
    return (*(mean_and_std(values) if values.numel() else (math.nan, math.nan)), fingerprint(values))


def make_frame(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a frame in which fan_in and fan_out have a type that has whole numbers and knows what is missing.

    >>> make_frame([(27, "conv"), (None, "bias")], ["fan_in", "kind"]).fan_in.tolist()
    [27, <NA>]
    """
    nothing = pd.Series(dtype=object)  # what an empty list would become is a number
    found: dict[str, Any] = {
        column: [row[index] for row in rows] if rows else nothing for index, column in enumerate(columns)
    }
    for column in ("fan_in", "fan_out"):
        if column in found:
            whole = all(value is None or value == int(value) for value in found[column])
            found[column] = pd.array(found[column], dtype="Int64" if whole else "Float64")
    return pd.DataFrame(found)


def promise_row(task: FillTask) -> tuple[Any, ...]:
    """Return what is known of one parameter before it has values: `COLUMNS` up to promised_std."""
    parameter = task.parameter
    fans = parameter.fans if parameter.is_weight else None
    return (
        parameter.name,
        parameter.kind,
        task.role,
        "x".join(map(str, parameter.shape)),
        fans.fan_in if fans else None,
        fans.fan_out if fans else None,
        scheme_name(task, parameter),
        *promised_moments(task),
    )


def scheme_name(task: FillTask, parameter: Parameter) -> str:
    """Return what filled, or would fill, the parameter."""
    if task.gates:
        return "chrono" if any(law.distribution == "log_uniform" for law in task.gates.values()) else "forget_bias"
    if task.rule == "normal":
        return "normal"
    if task.rule == "constant":
        return {0.0: "zeros", 1.0: "ones"}.get(parameter.start, "constant")
    return UNFILLED_LABELS.get(task.rule, task.scheme.name if task.scheme else "")


def promised_moments(task: FillTask) -> tuple[float, float]:
    """Return the promised mean and standard deviation over all elements of a parameter."""
    if task.rule == "constant" and not task.gates:
        return task.parameter.start, 0.0
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


def mean_and_std(tensor: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all elements, summed in float64; of a complex tensor, the real mean.

    >>> mean_and_std(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    values = tensor.detach()
    if values.is_complex():
        mean, spread = complex(values.to(torch.complex128).mean()), torch.view_as_real(values.resolve_conj())
        return mean.real, float(torch.linalg.vector_norm(spread, dtype=torch.float64)) / math.sqrt(values.numel())
    values = values.float()
    mean = float(values.mean(dtype=torch.float64))
    return mean, float(torch.linalg.vector_norm(values - mean, dtype=torch.float64)) / math.sqrt(values.numel())
