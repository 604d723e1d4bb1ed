"""Carry a plan out: check it, fill every parameter in place, and return the rows."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import nn

from initlab.errors import UserError
from initlab.initialize.draw import draw_and_check, fill_parameter
from initlab.initialize.meta_device import has_meta_tensors, materialize
from initlab.initialize.plan import FillPlan, FillTask, plan
from initlab.initialize.request import Globs, Request, Roles, Spec, request
from initlab.initialize.rows import add_measurements, frame_from_tasks
from initlab.initialize.streams import stream
from initlab.inspection import NamedModule
from initlab.schemes import Law

MEAN_TOLERANCE = 1e-6  # a mean below this share of the deviation is what rounding left of 0


def fill_(
    module: nn.Module,
    scheme: Spec | Mapping[str, Spec],
    *,
    act: Any = "linear",
    gain: float | str = "paper",
    seed: int = 0,
    sigma_b: float | None = None,
    roles: Roles | None = None,
    parameters: Mapping[str, Any] | None = None,
    only: Globs = (),
    skip: Globs = (),
    kinds: Mapping[str, str] | None = None,
    forget_bias: float | None = None,
    chrono: float | None = None,
    device: torch.device | str | None = None,
    strict: bool = False,
    measure: bool = True,
    dry_run: bool = False,
) -> pd.DataFrame:
    """Fill every parameter of a module in place by a scheme, and return one row per parameter.

    Weights get the scheme, each from its own random stream keyed by (seed, canonical name): the same values come out
    when the depth grows, a norm is added, or the device, the thread count or the global random state changes. Biases
    are 0, N(0, sigma_b²), or follow the scheme's own rule; norm scales are 1, shifts 0, running statistics reset;
    PReLU's slopes and LayerScales go back to their start; tokens and tables of positions are N(0, 0.02²). A weight
    under weight_norm gets its law as the forward pass sees it. Kinds that initlab does not know are left alone and say
    so in the column `scheme`. Everything is checked first: on an error the module is as it was. Tied parameters are
    filled once; 16-bit ones are drawn in float32, then rounded; each rank of a sharded model gets its shard of what one
    process would draw.

    Args:
        module: any module on any device; what is on the meta device is given memory on `device` first.
        scheme: a name, an alias, a record or (name, {key: value}); or {glob over parameter names: one of these}, the
            first match wins. A glob that matches no weight means what it does match: {"*.bn3.weight": "zeros"}.
        act: the activation that the scheme's own gain looks at.
        gain: "paper" for the scheme's own; a positive number that replaces it in every weight layer; or "forward",
            "backward", "critical", derived from `act`, in hidden layers that an activation feeds (1 elsewhere).
        seed: the init seed.
        sigma_b: std of the biases of every scheme that has no rule for them (default 0); where `critical` is to look.
        roles: {role: glob or globs} for modules that do not declare `weight_layers`.
        parameters: the scheme's own (mode, distribution, mean, std, …).
        only, skip: globs of the parameters that are meant, and of those that are not; the others stay as they are.
        kinds: {glob: kind} for parameters that initlab cannot know (`initlab.inspection.walk` lists the kinds).
        forget_bias: bias of LSTM forget gates and GRU update gates (Jozefowicz et al. 2015: 1).
        chrono: longest time lag T; those biases are log U(1, T − 1) (Tallec & Ollivier 2018).
        device: where meta tensors are given memory; default: torch's default device.
        strict: refuse kinds that initlab does not know, and parameters that no rule matches, instead of leaving them.
        measure: fill the columns mean, std and fingerprint (else they are missing, and it is faster).
        dry_run: write nothing and return what would be done.

    Returns:
        A frame with columns name, kind, role, shape ("128x784"), fan_in, fan_out, scheme, promised_mean, promised_std,
        mean, std, fingerprint; `attrs["unmatched"]` lists parameters that no rule matches, `attrs["doubly_matched"]`
        {name: globs} those that several do (a last "*" apart).

    Raises:
        UserError: an unknown name, key or value, a glob without a match, a parameter that cannot be written (lazy,
            quantized, under spectral_norm). `Impossible`, its subclass: the scheme cannot fill this module.

    >>> rows = fill_(nn.Linear(784, 128), "he_normal", act="relu", seed=0)
    >>> rows[["name", "shape", "scheme"]].values.tolist()
    [['weight', '128x784', 'he_normal'], ['bias', '128', 'zeros']]
    """
    wanted = request(
        scheme,
        act=act,
        gain=gain,
        sigma_b=sigma_b,
        roles=roles,
        parameters=parameters,
        only=only,
        skip=skip,
        kinds=kinds,
        forget_bias=forget_bias,
        chrono=chrono,
    )
    stream(seed, "")  # refuses a bad seed before anything is written
    tasks = plan(module, wanted)
    meta = has_meta_tensors(tasks.parts)
    _check_tasks(tasks, strict, meta)
    if not dry_run:
        with materialize(module, _device_for_meta(device)) if meta else nullcontext():
            tasks = plan(module, wanted) if meta else tasks
            drawn = [draw_and_check(task, seed) for task in tasks]
    rows = frame_from_tasks(tasks)  # before the draws: a hundred megabytes of them leave the processor's caches cold
    _check_representable(tasks, rows)
    if not dry_run:
        _reset_statistics(tasks.parts, wanted)
        # Constants first: between draws each would wait for the memory of its own.
        for task, values in sorted(zip(tasks, drawn, strict=True), key=lambda pair: pair[0].rule != "constant"):
            if task.writes:
                fill_parameter(task, seed, values)
        if measure:
            add_measurements(rows, tasks)
    rows.attrs["unmatched"] = [task.parameter.name for task in tasks if task.rule == "unmatched"]
    rows.attrs["doubly_matched"] = tasks.several
    return rows


def promised(task: FillTask) -> list[Law]:
    """Return the law of each block of a task's parameter (one for all where there are no blocks); [] if left alone."""
    return task.promised()


def _device_for_meta(device: torch.device | str | None) -> torch.device:
    found = torch.get_default_device() if device is None else torch.device(device)
    return torch.device("cpu") if found.type == "meta" else found


def _check_tasks(tasks: FillPlan, strict: bool, meta: bool) -> None:
    for task in tasks:
        name, doubt = task.parameter.name, task.parameter.mismatch
        if strict and task.rule == "left":
            why = f" ({doubt})" if doubt else ""
            raise UserError(
                f"{name} is of a kind initlab does not know{why}: name it in kinds=, give it a rule of its own, leave "
                "it out with skip=, or strict=False."
            )
        if strict and task.rule == "unmatched":
            raise UserError(f"{name} matches no rule: add '*' as the last one, skip= it, or strict=False.")
        if meta and task.parameter.tensor.is_meta and not task.writes:
            raise UserError(
                f"{name} is on the meta device and nothing would fill it: give it a rule, a kind, or its values first."
            )


def _check_representable(tasks: FillPlan, rows: pd.DataFrame) -> None:
    # Weights that are promised to vary, or not to be 0, and would be 0 or infinite in their own type.
    for task, mean, std in zip(tasks, rows["promised_mean"], rows["promised_std"], strict=True):
        kind = task.parameter.tensor.dtype
        if not (task.writes and kind.is_floating_point):
            continue
        least, most = torch.finfo(kind).smallest_normal, torch.finfo(kind).max
        # A mean that is small beside the deviation, as rounding leaves it, means 0.
        means = 0.0 if abs(mean) <= MEAN_TOLERANCE * std else mean
        for word, value in (("a mean", means), ("a standard deviation", std)):
            if value == value and value and not least <= abs(value) <= most:
                raise UserError(
                    f"{task.parameter.name} would have {word} of {value:g}, which {str(kind).removeprefix('torch.')} "
                    "does not hold: choose another init.gain, or other keys of the scheme."
                )


def _reset_statistics(parts: Sequence[NamedModule], wanted: Request) -> None:
    for name, owner in parts:
        if not isinstance(owner, nn.modules.batchnorm._NormBase) or owner._buffers.get("running_mean") is None:
            continue
        if getattr(owner, "track_running_stats", False) and wanted.means(f"{name}.running_mean"):
            owner.reset_running_stats()
