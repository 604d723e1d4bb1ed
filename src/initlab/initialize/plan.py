"""What `initialize_` would do to each parameter, decided and checked before anything is written."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import Impossible, UserError, nearest
from initlab.fans import NORMS, Block, Parameter, walk
from initlab.models.layers import WeightLayer
from initlab.schemes import Scheme
from initlab.schemes import scheme as find_scheme
from initlab.theory.gains import derived_gain

Spec = str | Scheme
Roles = Mapping[str, str | Sequence[str]]

DERIVED_GAINS = ("forward", "backward", "critical")
"""Gains that theory derives from the activation: they apply to hidden layers that an activation feeds, 1 elsewhere."""

GAINLESS_ROLES = ("first", "readout")
"""Roles whose layers get gain 1 where the gain is derived."""


@dataclass(frozen=True)
class Task:
    """What happens to one parameter: `rule` is scheme, bias (by the scheme's rule), normal (sigma_b), constant, left.

    `gains` has one entry per block; `role` is the layer's, `roles` those of the blocks (q, k and v have their own).
    """

    parameter: Parameter
    rule: str
    scheme: Scheme | None = None
    role: str = ""
    roles: tuple[str, ...] = ()
    gains: tuple[float, ...] = ()
    sigma_b: float = 0.0


@dataclass(frozen=True)
class Request:
    """The arguments of `initialize_` that decide the plan, resolved."""

    rules: tuple[tuple[str, Scheme], ...]
    act: Activation
    gain: float | str
    number: float
    sigma_b: float
    roles: Roles = field(default_factory=dict)

    def scheme_of(self, name: str) -> Scheme | None:
        """Return the scheme of the first glob that matches a parameter's name."""
        return next((scheme for glob, scheme in self.rules if fnmatch.fnmatchcase(name, glob)), None)


def request(
    scheme: Spec | Mapping[str, Spec],
    *,
    act: Any = "linear",
    gain: float | str = "paper",
    sigma_b: float = 0.0,
    roles: Roles | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Request:
    """Resolve names to records and refuse what no module could make right."""
    if isinstance(sigma_b, bool) or not isinstance(sigma_b, (int, float)) or not 0 <= sigma_b < float("inf"):
        raise UserError(f"init.sigma_b={sigma_b} must be a standard deviation: 0 or a positive number.")
    record = activation(act)
    number = _number(gain, record, float(sigma_b))
    specs = scheme if isinstance(scheme, Mapping) else {"*": scheme}
    rules = []
    for glob, spec in specs.items():
        found = find_scheme(spec, **(parameters or {}))
        if "sigma_b" in found.parameters:
            found = found.bind(sigma_b=sigma_b)
        elif sigma_b and found.bias is not None:
            raise Impossible(
                f"init={found.name} draws its own biases, so init.sigma_b={sigma_b} cannot be: leave it 0."
            )
        if gain != "paper":
            found.check_gain(number)
        rules.append((glob, found))
    return Request(tuple(rules), record, gain, number, float(sigma_b), dict(roles or {}))


def _number(gain: float | str, act: Activation, sigma_b: float) -> float:
    # The gain as a number: the user's, or the one that theory derives from the activation; 1 stands for "paper".
    if not isinstance(gain, str):
        return gain
    if gain in DERIVED_GAINS:
        try:
            return derived_gain(gain, act, sigma_b)
        except UserError as reason:  # in a grid, a cell that cannot exist
            raise Impossible(f"init.gain={gain} cannot be: {reason}") from reason
    if gain != "paper":
        choices = ("paper", *DERIVED_GAINS)
        raise UserError(f"init.gain={gain} must be a number or one of {', '.join(choices)}.{nearest(gain, choices)}")
    return 1.0


def plan(module: nn.Module, wanted: Request) -> list[Task]:
    """Return one task per parameter; `module` may be on the meta device, nothing is written.

    Raises:
        Impossible: the scheme cannot fill some weight of this module; the message names the first.
        UserError: a parameter that must not be written as it is (lazy, parametrized), or a role glob without a match.
    """
    parameters = list(walk(module))
    for parameter in parameters:
        _refuse(parameter)
    layers = _layers(module, parameters, wanted)
    tasks = [_task(parameter, layers.get(parameter.layer), wanted) for parameter in parameters]
    _check_convolutions(tasks)
    return tasks


def impossible(module: nn.Module, scheme: Spec | Mapping[str, Spec], **arguments: Any) -> str | None:
    """Return why a scheme cannot initialize a module, or None: `initialize_`'s own check, without writing.

    Args:
        module: any module, on the meta device too.
        scheme: as in `initialize_`; `arguments` are its act, gain, sigma_b, roles and parameters.

    >>> impossible(nn.Linear(3, 3), "dirac")
    'init=dirac needs convolutions and the model has none: use init=identity or a model with convolutions.'
    """
    try:
        plan(module, request(scheme, **arguments))
    except Impossible as reason:
        return str(reason)
    return None


def _refuse(parameter: Parameter) -> None:
    if parameter.kind == "lazy":
        raise UserError(f"{parameter.name} is lazy and has no shape yet: pass one batch through the module first.")
    if parameter.kind == "parametrized":
        raise UserError(
            f"{parameter.name} belongs to a parametrized weight, which the next forward pass would recompute: "
            "initialize the module before weight_norm, spectral_norm or another parametrization is registered."
        )


def _layers(module: nn.Module, parameters: Iterable[Parameter], wanted: Request) -> dict[str, WeightLayer]:
    declared = _declared(module)
    weights = [p for p in parameters if p.is_weight]
    inner = _unwrapped(module)
    if declared is None and isinstance(inner, nn.Sequential):
        declared = _in_sequence(inner, weights)
    layers = {layer.name: layer for layer in declared or ()}
    for role, globs in wanted.roles.items():
        for glob in [globs] if isinstance(globs, str) else globs:
            matched = [p for p in weights if fnmatch.fnmatchcase(p.name, glob) or fnmatch.fnmatchcase(p.layer, glob)]
            if not matched:
                near = nearest(glob, [p.layer for p in weights])
                raise UserError(f"roles: {role}={glob} matches no weight of the module.{near}")
            for p in matched:
                fed_by = "data" if role == "first" else layers[p.layer].fed_by if p.layer in layers else "unknown"
                layers[p.layer] = WeightLayer(p.layer, role, fed_by)
    used = {scheme.name for p in weights if (scheme := wanted.scheme_of(p.name)) and "role" in scheme.needs}
    if used and not layers and len(weights) > 1:
        raise Impossible(
            f"init={min(used)} must know which layer comes first and the module does not declare it: "
            "give roles={'first': 'name', 'readout': 'name'} or the module a `weight_layers`."
        )
    return layers


def _unwrapped(module: nn.Module) -> nn.Module:
    while len(children := dict(module.named_children())) == 1 and (inner := children.get("module")) is not None:
        module = inner
    return getattr(module, "_orig_mod", module)


def _declared(module: nn.Module) -> Sequence[WeightLayer] | None:
    return getattr(_unwrapped(module), "weight_layers", None)


def _in_sequence(module: nn.Sequential, weights: Sequence[Parameter]) -> list[WeightLayer]:
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


def _task(parameter: Parameter, layer: WeightLayer | None, wanted: Request) -> Task:
    scheme = wanted.scheme_of(parameter.name)
    if scheme is None or not parameter.tensor.dtype.is_floating_point:
        return Task(parameter, "left")
    if parameter.is_weight:
        return _weight_task(parameter, layer, wanted, scheme)
    if parameter.kind == "bias":
        role = layer.role if layer else ""
        rule = "bias" if scheme.bias is not None else "normal" if wanted.sigma_b else "constant"
        return Task(parameter, rule, scheme, role, sigma_b=wanted.sigma_b)
    return Task(parameter, "left" if parameter.kind == "unknown" else "constant")


def _weight_task(parameter: Parameter, layer: WeightLayer | None, wanted: Request, scheme: Scheme) -> Task:
    default = "embedding" if parameter.kind == "embedding" else "hidden"
    role = layer.role if layer else default
    roles = tuple(block.label if block.label in ("q", "k", "v") else role for block in parameter.blocks)
    gains = []
    for block, own in zip(parameter.blocks, roles, strict=True):
        if reason := scheme.structural(parameter.kind, block.shape, own):
            raise Impossible(f"init={scheme.name} cannot fill {parameter.name}: {reason}.")
        gains.append(_gain(wanted, scheme, block, own, layer))
    return Task(parameter, "scheme", scheme, role, roles, tuple(gains))


def _gain(wanted: Request, scheme: Scheme, block: Block, role: str, layer: WeightLayer | None) -> float:
    if wanted.gain == "paper":
        return scheme.gain(wanted.act, block.fans, role)
    fed_by_activation = layer is None or layer.fed_by in ("activation", "unknown")
    if isinstance(wanted.gain, str) and (role in GAINLESS_ROLES or not fed_by_activation):
        return 1.0
    return float(wanted.number)


def _check_convolutions(tasks: Sequence[Task]) -> None:
    weights = [task for task in tasks if task.rule == "scheme"]
    if any(task.parameter.kind in ("conv", "transposed_conv") for task in weights):
        return
    for task in weights:
        if task.scheme is not None and task.scheme.conv_only:
            counterpart = "identity" if task.scheme.name == "dirac" else "orthogonal"
            raise Impossible(
                f"init={task.scheme.name} needs convolutions and the model has none: "
                f"use init={counterpart} or a model with convolutions."
            )
