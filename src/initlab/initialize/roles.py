"""The role of each weight layer: declared by the module, read from a Sequential, or given by globs."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from initlab.errors import Impossible, UserError, did_you_mean
from initlab.initialize.request import Request, as_tuple
from initlab.inspection import NORMS, Parameter
from initlab.inspection.torch_internals import compiled_module
from initlab.models.layers import WeightLayer
from initlab.schemes import Scheme

ROLES = ("first", "hidden", "readout", "embedding", "branch", "branch_end", "shortcut", "q", "k", "v", "o")
"""Roles in schemes, procedures and initlab's own models."""


def declared_layers(
    module: nn.Module, parameters: Sequence[Parameter], asked: Request, schemes: Mapping[str, Scheme]
) -> dict[str, WeightLayer]:
    """Return the record of each weight layer whose role is known, by name.

    Args:
        module: the module, whose `weight_layers` count where it declares them.
        parameters: its parameters.
        asked: the request, with globs for roles.
        schemes: the scheme of each parameter, by name.

    Raises:
        UserError: a role's glob matches no weight.
        Impossible: a scheme depends on the first layer, and nothing says which one that is.
    """
    inner = _unwrap(module)
    weights = [p for p in parameters if p.is_weight]
    declared: Sequence[WeightLayer] | None = getattr(inner, "weight_layers", None)
    if declared is None and isinstance(inner, nn.Sequential):
        declared = _sequential_layers(inner, weights)
    layers = {layer.name: layer for layer in declared or ()}
    for role, globs in asked.roles.items():
        # A user's own scheme may have other roles; a name that is nearly one of ours is a mistake.
        if role not in ROLES and (near := did_you_mean(role, ROLES)):
            raise UserError(f"roles: {role} is not a role of a layer.{near} There are {', '.join(ROLES)}.")
        for glob in as_tuple(globs):
            matching = [p for p in weights if fnmatchcase(p.name, glob) or fnmatchcase(p.layer, glob)]
            if not matching:
                near = did_you_mean(glob, [p.layer for p in weights])
                raise UserError(f"roles: {role}={glob} matches no weight of the module.{near}")
            for p in matching:
                fed_by = "data" if role == "first" else layers[p.layer].fed_by if p.layer in layers else "unknown"
                layers[p.layer] = WeightLayer(p.layer, role, fed_by)
    dependent = {schemes[p.name].name for p in weights if p.name in schemes and "role" in schemes[p.name].needs}
    if dependent and not layers and len(weights) > 1:
        raise Impossible(
            f"init={min(dependent)} must know which layer comes first and the module does not declare it: "
            "give roles={'first': 'name', 'readout': 'name'} or the module a `weight_layers`."
        )
    return layers


def _unwrap(module: nn.Module) -> nn.Module:
    # Wrappers of data parallelism have one child called `module`.
    while len(children := dict(module.named_children())) == 1 and "module" in children:
        module = children["module"]
    return compiled_module(module) or module


def _sequential_layers(module: nn.Sequential, weights: Sequence[Parameter]) -> list[WeightLayer]:
    # In a Sequential the order of registration is the order of the forward pass.
    names = list(dict.fromkeys(p.layer for p in weights))
    layers, fed_by = [], "data"
    for name, child in module.named_modules():
        if name in names:
            role = "first" if name == names[0] else "readout" if name == names[-1] else "hidden"
            layers.append(WeightLayer(name, role, fed_by))
            fed_by = "unknown"
        elif isinstance(child, NORMS):
            fed_by = "norm"
        elif type(child).__module__ == "torch.nn.modules.activation":
            fed_by = "activation"
    return layers
