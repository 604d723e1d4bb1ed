"""The parts that a module's parameters play: declared by the module, or named by globs."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from initlab.activations import activation
from initlab.errors import UserError, did_you_mean
from initlab.initialize import Roles, plan, request
from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer, not_applicable
from initlab.initialize.request import as_tuple
from initlab.initialize.roles import declared_layers
from initlab.inspection import Parameter
from initlab.models import MODELS, WeightLayer

PARAMETER_ROLES = ("branch_scale", "shift", "norm")
"""Roles that are played by parameters which are no weights."""


def make_context(
    module: nn.Module, found: Procedure, *, act: Any = "linear", seed: int = 0, roles: Roles | None = None
) -> ProcedureContext:
    """Find the parts that a module's parameters play, and check that the procedure can be applied to it.

    Raises:
        Impossible: a part that nobody plays, or a structure that the procedure cannot treat.
        UserError: a glob that matches nothing, a parameter that cannot be written.
    """
    record = activation(act)
    globs = dict(roles or {})
    wanted = request(
        found.start, act=record, roles={role: globs[role] for role in globs if role not in PARAMETER_ROLES}
    )
    tasks = plan(module, wanted)
    parameters = [task.parameter for task in tasks]
    declared = declared_layers(module, parameters, wanted, {})
    biases: dict[str, list[Parameter]] = {}
    for p in parameters:
        if p.kind == "bias":
            biases.setdefault(p.layer, []).append(p)
    layers = []
    for task in tasks:
        if task.parameter.is_weight:
            at = declared.get(task.parameter.layer, WeightLayer("", task.role, "unknown"))
            own = tuple(biases.get(task.parameter.layer, ()))
            layers.append(RoleLayer(task.parameter, at.role, at.branch, at.fed_by, own))
    case = ProcedureContext(module, found, record, seed, layers, _named_parameters(parameters, globs))
    _check_roles(case)
    if found.possible is not None and (reason := found.possible(case)):
        raise not_applicable(found.name, reason)
    return case


def _named_parameters(parameters: list[Parameter], globs: Mapping[str, Any]) -> dict[str, list[Parameter]]:
    # Our own models call these parameters so; a user's are named by globs.
    found = {
        "branch_scale": [p for p in parameters if p.name.endswith(".res_scale")],
        "shift": [p for p in parameters if p.name.endswith(".shift")],
    }
    for role in PARAMETER_ROLES:
        for glob in as_tuple(globs.get(role, ())):
            matched = [p for p in parameters if fnmatch.fnmatchcase(p.name, glob)]
            if not matched:
                near = did_you_mean(glob, [p.name for p in parameters])
                raise UserError(f"roles: {role}={glob} matches no parameter of the module.{near}")
            found.setdefault(role, []).extend(p for p in matched if p not in found.get(role, ()))
    return found


def models_with_role(role: str) -> str:
    """Name the families whose weights have a role besides first, hidden and readout, as it is typed.

    >>> models_with_role("k"), models_with_role("hidden")
    ('model=vit or gpt', '')
    """
    names = [model.name for model in MODELS.values() if role in model.roles]
    return "model=" + " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def _check_roles(case: ProcedureContext) -> None:
    played = {layer.role_of(block) for layer in case.layers for block in layer.parameter.blocks}
    played |= {layer.role for layer in case.layers} | {role for role, found in case.named.items() if found}
    for role, example in case.procedure.roles.items():
        if role not in played:
            what = "a parameter" if role in PARAMETER_ROLES else "a layer"
            options = ", ".join(f"model.{key}={value}" for key, value in case.procedure.overrides.items())
            own = models_with_role(role) or ("initlab's own" if options else "")
            ours = f" ({own}{f' with {options}' if options else ''})" if own else ""
            raise not_applicable(
                case.procedure.name,
                f"needs {what} that plays the part {role}, and the module declares none: take a model that has it"
                f"{ours}, or in Python name it with roles={{{role!r}: {example!r}}}",
            )
