"""Apply a procedure to any module: checked first, undone on an error, one row per parameter."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from initlab import initialize
from initlab.errors import Impossible, UserError, did_you_mean
from initlab.initialize import Roles, mean_and_std
from initlab.initialize.procedures.catalogue import PROCEDURES
from initlab.initialize.procedures.guards import (
    check_data,
    check_finite,
    require_values,
    rollback_on_error,
    temporary_modes,
)
from initlab.initialize.procedures.record import Procedure, ProcedureContext
from initlab.initialize.procedures.roles import PARAMETER_ROLES, make_context
from initlab.inspection import walk
from initlab.inspection.shape_errors import explain_shape_errors

Loss = Callable[[Any, Any], Tensor]
OPTIMIZERS = ("sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad")
"""Those whose factors are known; all but SGD divide gradients by their size, which is all that factors depend on."""


def procedure(spec: "str | Procedure", **parameters: Any) -> Procedure:
    """Return the procedure of a name or a record, with these parameters bound.

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
    """Initialize a module by a scheme, or by a procedure that looks at its structure, a batch or its gradients.

    `initlab.initialize_(model, "lsuv", inputs=batch)` changes the model in place and returns one row per parameter.
    What a scheme is given is `initlab.initialize.fill_`'s, options and all; a procedure fills the weights by its
    base scheme first. Everything is checked before; on an error the module is as it was.

    Args:
        module: any module on any device.
        scheme: a name in `initlab.SCHEMES` or `initlab.PROCEDURES`, a record, or a mapping of globs to schemes.
        act: the module's activation.
        seed: the init seed.
        roles: {role: glob or globs} for modules that do not declare `weight_layers`; `branch_scale` means parameters.
        parameters: the scheme's or procedure's own.
        inputs: a batch of inputs [B, …] (or a tuple, or a mapping of arguments), for procedures that need data.
        targets: labels [B] or values of the same shape as the output; drawn at random where a loss needs some.
        loss: `loss(output, targets)`; default: cross-entropy for labels, squared error for values.
        options: of `initlab.initialize.fill_`.

    Returns:
        The rows of `initlab.initialize.fill_`; `attrs["unreached"]` names layers that a forward pass on the batch
        did not call as modules (packed attention): they keep what the base scheme gave them.

    Raises:
        UserError: an unknown name, key or value; data that are missing or that the module cannot take. `Impossible`,
            its subclass: a module that the procedure cannot be applied to, and the remedy.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32))
    >>> rows = initialize_(net, "lsuv", act="tanh", inputs=torch.randn(256, 8))
    >>> rows["scheme"].tolist()
    ['lsuv', 'zeros', 'lsuv', 'zeros']
    """
    if isinstance(scheme, Mapping):
        for glob, own in scheme.items():
            if isinstance(own, str) and own.removesuffix("_") in PROCEDURES:
                raise UserError(
                    f"{glob!r}: init={own} looks at a whole module, not at single parameters: apply it alone."
                )
    if not is_procedure(scheme):
        if inputs is not None or targets is not None or loss is not None:
            raise UserError(f"init={_scheme_name(scheme)} looks at no data: leave inputs, targets and loss out.")
        given = {"act": act, "seed": seed, "roles": roles, "parameters": parameters, **options}
        return initialize.fill_(module, scheme, **given)
    if options:
        key = next(iter(options))
        raise UserError(
            f"init={_scheme_name(scheme)} takes no {key}={options[key]}: a procedure sets the whole module."
        )
    found = procedure(scheme, **(parameters or {}))
    require_values(module, found)
    case = make_context(module, found, act=act, seed=seed, roles=roles)
    case.inputs, case.targets, case.loss = inputs, targets, loss
    check_data(case)
    with explain_shape_errors("the module", module, inputs), rollback_on_error(module):
        weights = {k: v for k, v in (roles or {}).items() if k not in PARAMETER_ROLES}
        rows = initialize.fill_(module, found.start, act=case.act, seed=seed, roles=weights)
        with temporary_modes(module, seed):
            found.apply_(case)
        check_finite(case)
    return _update_rows(rows, case)


def is_procedure(scheme: Any) -> bool:
    """Is it the name or record of a procedure?

    >>> is_procedure("lsuv"), is_procedure("he_normal")
    (True, False)
    """
    return isinstance(scheme, Procedure) or (isinstance(scheme, str) and scheme.removesuffix("_") in PROCEDURES)


def procedure_refusal(
    module: nn.Module, scheme: Any, *, act: Any = "linear", roles: Roles | None = None, **own: Any
) -> Any:
    """Return why a procedure cannot be applied to a module, or None; looks at no values, so that meta will do.

    >>> procedure_refusal(nn.Linear(2, 2), "lsuv"), "branch_scale" in procedure_refusal(nn.Linear(2, 2), "rezero")
    (None, True)
    """
    try:
        make_context(module, procedure(scheme, **own), act=act, roles=roles)
    except Impossible as reason:
        return str(reason)
    return None


def _scheme_name(scheme: Any) -> str:
    return str(getattr(scheme, "name", scheme))


def _update_rows(rows: pd.DataFrame, case: ProcedureContext) -> pd.DataFrame:
    found = rows.copy()
    by_name = {p.name: p for p in walk(case.module)}
    for k, name in enumerate(found["name"]):
        if name in case.touched:
            values = by_name[name].values()
            found.loc[found.index[k], ["promised_mean", "promised_std"]] = math.nan
            found.loc[found.index[k], ["mean", "std"]] = mean_and_std(values)
            found.loc[found.index[k], "scheme"] = case.procedure.name
            found.loc[found.index[k], "fingerprint"] = initialize.fingerprint(values)
    found.attrs = {**rows.attrs, "unreached": case.unreached}
    return found


def rates(
    module: nn.Module, scheme: Any, optimizer: str, *, roles: Roles | None = None, **own: Any
) -> dict[str, float]:
    """Return the factors on the learning rate that a scheme implies, by parameter name; {} for most.

    Args:
        module: the module that was initialized.
        scheme: name or record; `own` are its parameters.
        optimizer: sgd, adam, … (all but sgd count as adam).
        roles: as for `initialize_`.

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
        initialize.request(scheme)  # refuses a name that nobody knows
        return {}
    found = procedure(scheme, **own)
    return {} if found.multipliers is None else found.multipliers(make_context(module, found, roles=roles), optimizer)
