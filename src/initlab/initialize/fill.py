"""Carry a plan out: fill every parameter in place, and say what was promised and what came."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from initlab.errors import UserError
from initlab.fans import Parameter
from initlab.schemes import Law, laws

from .plan import Roles, Spec, Task, plan, request
from .streams import fingerprint, stream

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


def initialize_(
    module: nn.Module,
    scheme: Spec | Mapping[str, Spec],
    *,
    act: Any = "linear",
    gain: float | str = "paper",
    seed: int = 0,
    sigma_b: float = 0.0,
    roles: Roles | None = None,
    parameters: Mapping[str, Any] | None = None,
    strict: bool = False,
    measure: bool = True,
) -> pd.DataFrame:
    """Fill every parameter of a module in place by a scheme, and return one row per parameter.

    Weights get the scheme, each from its own random stream keyed by (seed, canonical name): the same values come out
    when the depth grows, a norm is added, or the device, the thread count or the global random state changes. Biases
    are 0, N(0, sigma_b²), or follow the scheme's own rule; norm scales are 1, shifts 0, running statistics reset;
    PReLU's slopes go back to their start. Kinds that initlab does not know are left alone and say so in `scheme`.
    Everything is checked first: on an error the module is as it was. Tied parameters are filled once.

    Args:
        module: any module, on any device but meta.
        scheme: a name, an alias or a record; or {glob over parameter names: scheme}, the first match wins.
        act: the activation that the scheme's own gain looks at.
        gain: "paper" for the scheme's own; a positive number that replaces it in every weight layer; or "forward",
            "backward", "critical", derived from `act`, in hidden layers that an activation feeds (1 elsewhere).
        seed: the init seed.
        sigma_b: std of the biases of every scheme that has no rule for them.
        roles: {role: glob or globs} for modules that do not declare `weight_layers`.
        parameters: the scheme's own (mode, distribution, mean, std, …).
        strict: refuse kinds that initlab does not know instead of leaving them alone.
        measure: fill the columns mean, std and fingerprint (else they are missing, and it is faster).

    Returns:
        A frame with columns name, kind, role, shape ("128x784"), fan_in, fan_out, scheme, promised_mean, promised_std,
        mean, std, fingerprint.

    Raises:
        UserError: an unknown name, key or value; a lazy, parametrized or meta parameter. `Impossible`, its subclass:
            the scheme cannot fill this module.

    >>> rows = initialize_(nn.Linear(784, 128), "he_normal", act="relu", seed=0)
    >>> rows[["name", "shape", "scheme"]].values.tolist()
    [['weight', '128x784', 'he_normal'], ['bias', '128', 'zeros']]
    """
    tasks = plan(module, request(scheme, act=act, gain=gain, sigma_b=sigma_b, roles=roles, parameters=parameters))
    for task in tasks:
        if task.parameter.tensor.is_meta:
            raise UserError(f"{task.parameter.name} is on the meta device: call module.to_empty(device='cpu') first.")
        if strict and task.rule == "left":
            raise UserError(f"{task.parameter.name} is of a kind initlab does not know: leave it out or strict=False.")
    stream(seed, "")  # refuses a bad seed before anything is written
    for task in tasks:
        _carry_out(task, seed)
    for owner in module.modules():
        if isinstance(owner, nn.modules.batchnorm._NormBase):
            owner.reset_running_stats()
    return _frame([_row(task, measure) for task in tasks])


def _carry_out(task: Task, seed: int) -> None:
    parameter, scheme = task.parameter, task.scheme
    tensor = parameter.tensor.detach()
    if task.rule == "constant":
        tensor.fill_(parameter.start)
    elif task.rule == "normal":
        drawn = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
        tensor.copy_(nn.init.normal_(drawn, 0, task.sigma_b, generator=stream(seed, parameter.name)))
    elif task.rule == "bias" and scheme is not None:
        generator = stream(seed, parameter.name)
        for block in parameter.blocks:
            scheme.bias_(block.view(tensor), fans=block.fans, generator=generator)
    elif task.rule == "scheme" and scheme is not None:
        _fill_weight(task, tensor, stream(seed, parameter.name))


def _fill_weight(task: Task, tensor: Tensor, generator: torch.Generator) -> None:
    parameter, scheme = task.parameter, task.scheme
    assert scheme is not None
    same = parameter.fans is not None and len(set(task.roles)) == 1 and len(set(task.gains)) == 1
    if scheme.elementwise and same:
        # Independent elements of one law: the stored layout is as good as the blocks', and one call is faster.
        fans = parameter.blocks[0].fans
        scheme.fill_(tensor, fans=fans, gain=task.gains[0], role=task.roles[0], generator=generator)
    else:
        for block, gain, role in zip(parameter.blocks, task.gains, task.roles, strict=True):
            scheme.fill_(block.view(tensor), fans=block.fans, gain=gain, role=role, generator=generator)
    padding = getattr(parameter.owner, "padding_idx", None)
    if parameter.kind == "embedding" and padding is not None:
        tensor[padding].zero_()


def promised(task: Task) -> list[Law]:
    """Return the law of each block of a task's parameter (one for all where there are no blocks); [] if left alone."""
    parameter, scheme = task.parameter, task.scheme
    if task.rule == "constant":
        return [laws.constant(parameter.start)]
    if task.rule == "normal":
        return [laws.normal(0.0, task.sigma_b)]
    if task.rule == "bias" and scheme is not None:
        return [law for block in parameter.blocks if (law := scheme.bias_law(block.fans)) is not None]
    if task.rule == "scheme" and scheme is not None:
        return [
            scheme.law(block.fans, gain, role, block.shape)
            for block, gain, role in zip(parameter.blocks, task.gains, task.roles, strict=True)
        ]
    return []


def _moments(task: Task) -> tuple[float, float]:
    found = promised(task)
    if not found:
        return math.nan, math.nan
    sizes = [math.prod(block.shape) for block in task.parameter.blocks] if len(found) > 1 else [1]
    total = sum(sizes)
    mean = sum(size * law.mean for size, law in zip(sizes, found, strict=True)) / total
    square = sum(size * (law.variance + law.mean**2) for size, law in zip(sizes, found, strict=True)) / total
    return mean, math.sqrt(max(square - mean**2, 0.0)) if len(found) > 1 else found[0].std


def measured(tensor: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation over all elements, summed in float64.

    >>> measured(torch.tensor([1.0, 3.0]))
    (2.0, 1.0)
    """
    values = tensor.detach().float()
    mean = float(values.mean(dtype=torch.float64))
    return mean, float(torch.linalg.vector_norm(values - mean, dtype=torch.float64)) / math.sqrt(values.numel())


def _row(task: Task, measure: bool) -> tuple[Any, ...]:
    parameter = task.parameter
    fans = parameter.fans if parameter.is_weight else None
    mean = std = math.nan
    if measure and parameter.tensor.numel():
        mean, std = measured(parameter.tensor)
    return (
        parameter.name,
        parameter.kind,
        task.role,
        "x".join(map(str, parameter.shape)),
        fans.fan_in if fans else None,
        fans.fan_out if fans else None,
        _scheme_name(task, parameter),
        *_moments(task),
        mean,
        std,
        fingerprint(parameter.tensor) if measure else None,
    )


def _scheme_name(task: Task, parameter: Parameter) -> str:
    if task.rule == "left":
        return "left alone"
    if task.rule == "normal":
        return "normal"
    if task.rule == "constant":
        return {0.0: "zeros", 1.0: "ones"}.get(parameter.start, "constant")
    return task.scheme.name if task.scheme else ""


def _frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("fan_in", "fan_out"):
        whole = all(value is None or value == int(value) for value in frame[column].astype(object) if value == value)
        frame[column] = pd.array(frame[column].tolist(), dtype="Int64" if whole else "Float64")
    return frame
