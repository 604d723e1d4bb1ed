"""The roles of a module's parameters: declared by the module, or given by globs."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from initlab.activations import activation
from initlab.errors import Impossible, UserError, did_you_mean
from initlab.initialize.plan import plan
from initlab.initialize.procedures.record import Procedure, ProcedureContext, RoleLayer
from initlab.initialize.request import Roles, as_tuple, request
from initlab.initialize.roles import declared_layers
from initlab.inspection import Parameter
from initlab.models import MODELS, WeightLayer

PARAMETER_ROLES = ("branch_scale", "shift", "norm")
"""Roles of parameters other than weights."""


def make_context(
    module: nn.Module, record: Procedure, *, act: Any = "linear", seed: int = 0, roles: Roles | None = None
) -> ProcedureContext:
    """Find the roles of a module's parameters, and check that the procedure can be applied to it.

    Args:
        module: any module, also on the meta device.
        record: the procedure.
        act: the module's activation.
        seed: the init seed.
        roles: {role: glob or globs}.

    Raises:
        Impossible: a role that no parameter has, or a structure to which the procedure does not apply.
        UserError: a glob that matches nothing, a parameter that cannot be written.
    """
    globs = dict(roles or {})
    asked = request(record.start, act=act, roles={r: g for r, g in globs.items() if r not in PARAMETER_ROLES})
    parameters = [task.parameter for task in plan(module, asked)]
    declared = declared_layers(module, parameters, asked, {})
    layers = []
    for p in parameters:
        if p.is_weight:
            default = "embedding" if p.kind == "embedding" else "hidden"
            layer = declared.get(p.layer, WeightLayer("", default, "unknown"))
            biases = tuple(bias for bias in parameters if bias.kind == "bias" and bias.layer == p.layer)
            layers.append(RoleLayer(p, layer.role, layer.branch, layer.fed_by, biases))
    context = ProcedureContext(module, record, activation(act), seed, layers, _named_parameters(parameters, globs))
    _check_roles(context)
    if record.possible is not None and (reason := record.possible(context)):
        raise Impossible(f"init={record.name} {reason}.")
    return context


def _named_parameters(parameters: list[Parameter], globs: Mapping[str, Any]) -> dict[str, list[Parameter]]:
    # initlab's models name these parameters so; a user's are named by globs.
    by_role = {
        "branch_scale": [p for p in parameters if p.name.endswith(".res_scale")],
        "shift": [p for p in parameters if p.name.endswith(".shift")],
    }
    for role in PARAMETER_ROLES:
        for glob in as_tuple(globs.get(role, ())):
            matching = [p for p in parameters if fnmatchcase(p.name, glob)]
            if not matching:
                near = did_you_mean(glob, [p.name for p in parameters])
                raise UserError(f"roles: {role}={glob} matches no parameter of the module.{near}")
            by_role.setdefault(role, []).extend(p for p in matching if p not in by_role.get(role, ()))
    return by_role


def models_with_role(role: str) -> str:
    """Name the families whose weights have a role besides first, hidden and readout, as it is typed.

    >>> models_with_role("k"), models_with_role("hidden")
    ('model=vit or gpt', '')
    """
    names = [model.name for model in MODELS.values() if role in model.roles]
    return "model=" + " or ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""


def _check_roles(context: ProcedureContext) -> None:
    present = {layer.role_of(block) for layer in context.layers for block in layer.parameter.blocks}
    present |= {layer.role for layer in context.layers}
    present |= {role for role, parameters in context.parameters_by_role.items() if parameters}
    for role, example in context.procedure.roles.items():
        if role not in present:
            what = "a parameter" if role in PARAMETER_ROLES else "a layer"
            options = ", ".join(f"model.{key}={value}" for key, value in context.procedure.overrides.items())
            models = models_with_role(role) or ("initlab's own" if options else "")
            ours = f" ({models}{f' with {options}' if options else ''})" if models else ""
            raise Impossible(
                f"init={context.procedure.name} needs {what} with the role {role}, and the module declares none: "
                f"take a model that has it{ours}, or in Python name it with roles={{{role!r}: {example!r}}}."
            )
