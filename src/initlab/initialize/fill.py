"""Check a plan, fill every parameter in place, and return one row per parameter."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import nn

from initlab.errors import UserError
from initlab.initialize.draw import draw_and_check, fill_parameter
from initlab.initialize.meta_device import has_meta_tensors, materialize
from initlab.initialize.plan import FillPlan, plan
from initlab.initialize.request import Request, Spec, request
from initlab.initialize.rows import add_measurements, frame_from_tasks
from initlab.initialize.streams import stream
from initlab.inspection.torch_internals import RunningNorm, own_buffers

MEAN_TOLERANCE = 1e-6
"""A mean below this share of the standard deviation is a rounding error of 0."""


def fill_(
    module: nn.Module,
    scheme: Spec | Mapping[str, Spec],
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    strict: bool = False,
    measure: bool = True,
    dry_run: bool = False,
    **arguments: Any,
) -> pd.DataFrame:
    """Fill every parameter of a module in place by a scheme, and return one row per parameter.

    Weights get the scheme, each from its own random stream keyed by (seed, canonical name): the values do not change
    when the depth grows, a norm is added, or the device, the thread count or the global random state changes. Biases
    are 0, N(0, sigma_b²), or follow the scheme's own rule; norm scales are 1, shifts 0, running statistics reset;
    PReLU's slopes and LayerScales get their initial constants; tokens and tables of positions are N(0, 0.02²). A weight
    under weight_norm gets its law as the forward pass sees it. Parameters of unknown kinds do not change, and the
    column `scheme` says so. Everything is checked first: after an error the module is unchanged. Tied parameters are
    filled once; 16-bit ones are drawn in float32, then rounded; each rank of a sharded model gets its shard of the
    values that one process would draw.

    Args:
        module: any module on any device; tensors on the meta device get memory on `device` first.
        scheme: a name, an alias, a record or (name, {key: value}); or {glob over parameter names: one of these}, the
            first match wins. A glob that matches no weight fills the parameters it matches: {"*.bn3.weight": "zeros"}.
        seed: the init seed.
        device: where meta tensors get memory; default: torch's default device.
        strict: refuse unknown kinds, and parameters that no rule matches.
        measure: fill the columns mean, std and fingerprint (without them it is faster).
        dry_run: write nothing, and return the rows of the plan.
        **arguments: those of `request`: act, gain, sigma_b, roles, parameters, only, skip, kinds, forget_bias, chrono.

    Returns:
        A frame with columns name, kind, role, shape ("128x784"), fan_in, fan_out, scheme, promised_mean, promised_std,
        mean, std, fingerprint; `attrs["unmatched"]` lists parameters that no rule matches, `attrs["doubly_matched"]`
        is {name: globs} of those that several do (a last "*" apart).

    Raises:
        UserError: an unknown name, key or value, a glob without a match, a parameter that cannot be written (lazy,
            quantized, under spectral_norm). `Impossible`, its subclass: the scheme cannot fill this module.

    >>> rows = fill_(nn.Linear(784, 128), "he_normal", act="relu", seed=0)
    >>> rows[["name", "shape", "scheme"]].values.tolist()
    [['weight', '128x784', 'he_normal'], ['bias', '128', 'zeros']]
    """
    asked = request(scheme, **arguments)
    stream(seed, "")  # refuses a bad seed before anything is written
    tasks = plan(module, asked)
    meta = has_meta_tensors(tasks.modules)
    _check_tasks(tasks, strict, meta)
    if not dry_run:
        with materialize(module, _device_for_meta(device)) if meta else nullcontext():
            tasks = plan(module, asked) if meta else tasks
            drawn = [draw_and_check(task, seed) for task in tasks]
    rows = frame_from_tasks(tasks)  # before the draws, which displace the processor's caches
    _check_representable(tasks, rows)
    if not dry_run:
        _reset_statistics(tasks, asked)
        # Constants first: after a draw, each would wait for memory that the caches no longer hold.
        for task, values in sorted(zip(tasks, drawn, strict=True), key=lambda pair: pair[0].rule != "constant"):
            if task.is_filled:
                fill_parameter(task, seed, values)
        if measure:
            add_measurements(rows, tasks)
    rows.attrs["unmatched"] = [task.parameter.name for task in tasks if task.rule == "unmatched"]
    rows.attrs["doubly_matched"] = tasks.doubly_matched
    return rows


def _device_for_meta(device: torch.device | str | None) -> torch.device:
    target = torch.get_default_device() if device is None else torch.device(device)
    return torch.device("cpu") if target.type == "meta" else target


def _check_tasks(tasks: FillPlan, strict: bool, meta: bool) -> None:
    for task in tasks:
        name, mismatch = task.parameter.name, task.parameter.mismatch
        if strict and task.rule == "left":
            why = f" ({mismatch})" if mismatch else ""
            raise UserError(
                f"{name} is of a kind initlab does not know{why}: name it in kinds=, give it a rule of its own, leave "
                "it out with skip=, or strict=False."
            )
        if strict and task.rule == "unmatched":
            raise UserError(f"{name} matches no rule: add '*' as the last one, skip= it, or strict=False.")
        if meta and task.parameter.tensor.is_meta and not task.is_filled:
            raise UserError(
                f"{name} is on the meta device and nothing would fill it: give it a rule, a kind, or its values first."
            )


def _check_representable(tasks: FillPlan, rows: pd.DataFrame) -> None:
    # Refuse moments that are not 0 and that the parameter's dtype would make 0 or infinite.
    for task, mean, std in zip(tasks, rows["promised_mean"], rows["promised_std"], strict=True):
        dtype = task.parameter.tensor.dtype
        if not (task.is_filled and dtype.is_floating_point):
            continue
        least, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
        exact_mean = 0.0 if abs(mean) <= MEAN_TOLERANCE * std else mean
        for moment, value in (("a mean", exact_mean), ("a standard deviation", std)):
            if value == value and value and not least <= abs(value) <= most:
                raise UserError(
                    f"{task.parameter.name} would have {moment} of {value:g}, which {str(dtype).removeprefix('torch.')}"
                    " does not hold: choose another init.gain, or other keys of the scheme."
                )


def _reset_statistics(tasks: FillPlan, asked: Request) -> None:
    for name, owner in tasks.modules:
        if (
            isinstance(owner, RunningNorm)
            and getattr(owner, "track_running_stats", False)
            and own_buffers(owner).get("running_mean") is not None
            and asked.selects(f"{name}.running_mean")
        ):
            owner.reset_running_stats()
