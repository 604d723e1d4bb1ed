"""The parts that a module's parameters play: declared by the module, or named by globs."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from initlab.activations import activation
from initlab.errors import UserError, nearest
from initlab.initialize import Roles, plan, request
from initlab.initialize.procedures.record import Case, Layer, Procedure, refuse
from initlab.initialize.request import listed
from initlab.initialize.roles import layers_of
from initlab.inspection import Parameter
from initlab.models import WeightLayer

FAMILIES = {
    "branch_end": "model=resmlp, resnet, vit or gpt",
    "q": "model=vit or gpt",
    "k": "model=vit or gpt",
    "v": "model=vit or gpt",
}
"""Roles that only some of our own models have, with those."""

ON_PARAMETERS = ("branch_scale", "shift", "norm")
"""Roles that are played by parameters which are no weights."""


def case_of(
    module: nn.Module, found: Procedure, *, act: Any = "linear", seed: int = 0, roles: Roles | None = None
) -> Case:
    """Find the parts that a module's parameters play, and check that the procedure can be applied to it.

    Raises:
        Impossible: a part that nobody plays, or a structure that the procedure cannot treat.
        UserError: a glob that matches nothing, a parameter that cannot be written.
    """
    record = activation(act)
    globs = dict(roles or {})
    wanted = request(found.start, act=record, roles={role: globs[role] for role in globs if role not in ON_PARAMETERS})
    tasks = plan(module, wanted)
    parameters = [task.parameter for task in tasks]
    declared = layers_of(module, parameters, wanted, {})
    biases: dict[str, list[Parameter]] = {}
    for p in parameters:
        if p.kind == "bias":
            biases.setdefault(p.layer, []).append(p)
    layers = []
    for task in tasks:
        if task.parameter.is_weight:
            at = declared.get(task.parameter.layer, WeightLayer("", task.role, "unknown"))
            own = tuple(biases.get(task.parameter.layer, ()))
            layers.append(Layer(task.parameter, at.role, at.branch, at.fed_by, own))
    case = Case(module, found, record, seed, layers, _named(parameters, globs))
    _check_roles(case)
    if found.possible is not None and (reason := found.possible(case)):
        raise refuse(found.name, reason)
    return case


def _named(parameters: list[Parameter], globs: Mapping[str, Any]) -> dict[str, list[Parameter]]:
    # Our own models call these parameters so; a user's are named by globs.
    found = {
        "branch_scale": [p for p in parameters if p.name.endswith(".res_scale")],
        "shift": [p for p in parameters if p.name.endswith(".shift")],
    }
    for role in ON_PARAMETERS:
        for glob in listed(globs.get(role, ())):
            matched = [p for p in parameters if fnmatch.fnmatchcase(p.name, glob)]
            if not matched:
                near = nearest(glob, [p.name for p in parameters])
                raise UserError(f"roles: {role}={glob} matches no parameter of the module.{near}")
            found.setdefault(role, []).extend(p for p in matched if p not in found.get(role, ()))
    return found


def _check_roles(case: Case) -> None:
    played = {layer.role_of(block) for layer in case.layers for block in layer.parameter.blocks}
    played |= {layer.role for layer in case.layers} | {role for role, found in case.named.items() if found}
    for role, example in case.procedure.roles.items():
        if role not in played:
            what = "a parameter" if role in ON_PARAMETERS else "a layer"
            options = ", ".join(f"model.{key}={value}" for key, value in case.procedure.overrides.items())
            own = FAMILIES.get(role, "initlab's own" if options else "")
            ours = f" ({own}{f' with {options}' if options else ''})" if own else ""
            raise refuse(
                case.procedure.name,
                f"needs {what} that plays the part {role}, and the module declares none: take a model that has it"
                f"{ours}, or in Python name it with roles={{{role!r}: {example!r}}}",
            )
