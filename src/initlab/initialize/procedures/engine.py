"""Apply a procedure to any module: checked first, undone on an error, one row per parameter."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from initlab.errors import Impossible, UserError, did_you_mean
from initlab.initialize.fill import fill_
from initlab.initialize.procedures.catalogue import PROCEDURES
from initlab.initialize.procedures.guards import check_data, check_finite, procedure_mode, require_values
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.initialize.procedures.roles import PARAMETER_ROLES, make_context
from initlab.initialize.request import Roles, request
from initlab.initialize.rows import measure_parameter
from initlab.inspection import walk
from initlab.inspection.restore import preserve_values
from initlab.inspection.shape_errors import explain_shape_errors

Loss = Callable[[Any, Any], Tensor]
OPTIMIZERS = ("sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad")
"""Optimizers with known factors, which depend only on whether gradients are divided by their size (all but SGD)."""


def procedure(spec: "str | Procedure", **parameters: Any) -> Procedure:
    """Return the procedure of a name or a record, with these parameters bound.

    Args:
        spec: name or record.
        **parameters: the procedure's own.

    Raises:
        UserError: no such procedure (the nearest names are given), no such parameter, or a value that cannot be.

    >>> procedure("lsuv", batch=64).parameters["batch"]
    64
    """
    if isinstance(spec, Procedure):
        return spec.bind(**parameters)
    name = spec.removesuffix("_")
    if name not in PROCEDURES:
        raise UserError(f"init={spec} is no procedure.{did_you_mean(name, PROCEDURES)} `initlab schemes` lists all.")
    return PROCEDURES[name].bind(**parameters)


def initialize_(
    module: nn.Module,
    scheme: Any,
    *,
    act: Any = "linear",
    seed: int = 0,
    roles: Roles | None = None,
    parameters: Mapping[str, Any] | None = None,
    inputs: Any = None,
    targets: Any = None,
    loss: Loss | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Initialize a module by a scheme, or by a procedure that depends on its structure, a batch or its gradients.

    `initlab.initialize_(model, "lsuv", inputs=batch)` changes the model in place and returns one row per parameter. A
    procedure fills the weights by its base scheme first. Everything is checked before; after an error the module is
    unchanged.

    Args:
        module: any module on any device.
        scheme: a name in `initlab.SCHEMES` or `initlab.PROCEDURES`, a record, or a mapping of globs to schemes.
        act: the module's activation.
        seed: the init seed.
        roles: {role: glob or globs} for modules that do not declare `weight_layers`; `branch_scale` means parameters.
        parameters: the scheme's or procedure's own.
        inputs: a batch of inputs [B, …] (or a tuple, or a mapping of arguments), for procedures that need data.
        targets: labels [B] or values of the same shape as the output; random where a loss needs some.
        loss: `loss(output, targets)`; default: cross-entropy for labels, squared error for values.
        **options: for schemes: gain, sigma_b, only, skip, kinds, forget_bias, chrono (see
            `initlab.initialize.request`); device, strict, measure, dry_run (see `initlab.initialize.fill_`).

    Returns:
        A frame with columns name, kind, role, shape ("128x784"), fan_in, fan_out, scheme, promised_mean, promised_std,
        mean, std, fingerprint. Of a scheme, `attrs["unmatched"]` lists parameters that no rule matches and
        `attrs["doubly_matched"]` is {name: globs} of those that several do; of a procedure, `attrs["unreached"]` lists
        layers that a forward pass on the batch did not call as modules (packed attention): they keep the values of the
        base scheme.

    Raises:
        UserError: an unknown name, key or value; data that are missing or that the module cannot take. `Impossible`,
            its subclass: a module to which the scheme or procedure cannot be applied, and the remedy.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32))
    >>> rows = initialize_(net, "lsuv", act="tanh", inputs=torch.randn(256, 8))
    >>> rows["scheme"].tolist()
    ['lsuv', 'zeros', 'lsuv', 'zeros']
    """
    for glob, own in scheme.items() if isinstance(scheme, Mapping) else ():
        if is_procedure(own):
            name = getattr(own, "name", own)
            raise UserError(f"{glob!r}: init={name} applies to a whole module, not to single parameters: use it alone.")
    name = str(getattr(scheme, "name", scheme))
    if not is_procedure(scheme):
        if inputs is not None or targets is not None or loss is not None:
            raise UserError(f"init={name} uses no data: leave inputs, targets and loss out.")
        return fill_(module, scheme, act=act, seed=seed, roles=roles, parameters=parameters, **options)
    if options:
        key = next(iter(options))
        raise UserError(f"init={name} takes no {key}={options[key]}: a procedure sets the whole module.")
    record = procedure(scheme, **(parameters or {}))
    require_values(module, record)
    context = make_context(module, record, act=act, seed=seed, roles=roles)
    context.inputs, context.targets, context.loss = inputs, targets, loss
    check_data(context)
    tensors = (*module.parameters(), *module.buffers())
    with explain_shape_errors("the module", module, inputs), preserve_values(*tensors, only_on_error=True):
        weights = {role: globs for role, globs in (roles or {}).items() if role not in PARAMETER_ROLES}
        rows = fill_(module, record.start, act=context.act, seed=seed, roles=weights)
        with procedure_mode(module, seed):
            record.apply_(context)
        check_finite(context)
    return _update_rows(rows, context)


def is_procedure(scheme: Any) -> bool:
    """Return whether a scheme is the name or record of a procedure.

    >>> is_procedure("lsuv"), is_procedure("he_normal")
    (True, False)
    """
    return isinstance(scheme, Procedure) or (isinstance(scheme, str) and scheme.removesuffix("_") in PROCEDURES)


def procedure_refusal(
    module: nn.Module, scheme: Any, *, act: Any = "linear", roles: Roles | None = None, **own: Any
) -> str | None:
    """Return why a procedure cannot be applied to a module, or None; values are not read, so meta will do.

    Args:
        module: any module, also on the meta device.
        scheme: name or record of a procedure.
        act: the module's activation.
        roles: as for `initialize_`.
        **own: the procedure's parameters.

    >>> procedure_refusal(nn.Linear(2, 2), "lsuv"), "branch_scale" in procedure_refusal(nn.Linear(2, 2), "rezero")
    (None, True)
    """
    try:
        make_context(module, procedure(scheme, **own), act=act, roles=roles)
    except Impossible as reason:
        return str(reason)
    return None


def _update_rows(rows: pd.DataFrame, context: ProcedureContext) -> pd.DataFrame:
    parameters = {p.name: p for p in walk(context.module)}
    changed = rows["name"].isin(context.changed)
    rows.loc[changed, "scheme"] = context.procedure.name
    rows.loc[changed, ["promised_mean", "promised_std"]] = float("nan")
    for index, name in rows["name"][changed].items():
        rows.loc[index, ["mean", "std", "fingerprint"]] = measure_parameter(parameters[name])
    rows.attrs["unreached"] = context.unreached
    return rows


def rates(
    module: nn.Module, scheme: Any, optimizer: str, *, roles: Roles | None = None, **own: Any
) -> dict[str, float]:
    """Return the factors on the learning rate that a scheme implies, by parameter name; {} for most.

    Args:
        module: the initialized module.
        scheme: name or record.
        optimizer: sgd, adam, … (all but sgd count as adam).
        roles: as for `initialize_`.
        **own: the scheme's parameters.

    Raises:
        UserError: an optimizer that is neither SGD nor one that divides gradients by their size.

    >>> rates(nn.Linear(2, 2), "he_normal", "adam")
    {}
    """
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"optimizer={optimizer} has no known factors: choose one of {', '.join(OPTIMIZERS)}."
            f"{did_you_mean(str(optimizer), OPTIMIZERS)}"
        )
    if not is_procedure(scheme):
        request(scheme)  # refuses an unknown name
        return {}
    record = procedure(scheme, **own)
    factors = record.multipliers
    return {} if factors is None else factors(make_context(module, record, roles=roles), optimizer)
