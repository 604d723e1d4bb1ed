"""The record of a procedure, a scheme that needs more than a weight's shape, and the context in which it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from initlab.activations import Activation
from initlab.errors import UserError, did_you_mean
from initlab.inspection import Block, Parameter
from initlab.schemes import SCHEMES, Scheme
from initlab.schemes import scheme as find_scheme
from initlab.system.numbers import fits_float32
from initlab.system.random_streams import generator


@dataclass(frozen=True)
class RoleLayer:
    """One weight of a module: its parameter, role, branch (0 outside), input (`fed_by`) and biases."""

    parameter: Parameter
    role: str
    branch: int = 0
    fed_by: str = "unknown"
    biases: tuple[Parameter, ...] = ()

    @property
    def name(self) -> str:
        """Canonical name of the module that owns it."""
        return self.parameter.layer

    @property
    def inside_branch(self) -> bool:
        """Whether it stands in a residual branch and does not end it."""
        return self.role == "branch" or (self.branch > 0 and self.role == "hidden")

    def role_of(self, block: Block) -> str:
        """Return the role of a block: q, k and v of a packed weight have their own."""
        return block.label if block.label in ("q", "k", "v") else self.role


@dataclass
class ProcedureContext:
    """A module to which a procedure is applied, its weights already filled by `base`.

    Attributes:
        module: the module.
        procedure: the procedure, its parameters bound.
        act: the module's activation.
        seed: the init seed.
        layers: its weights in order of registration.
        parameters_by_role: other parameters by the role that a user or model gave them.
        inputs, targets: the batch; `loss(output, targets)`.
        changed: names of the parameters that the procedure has written.
        unreached: layers that the forward pass did not call as modules.
    """

    module: nn.Module
    procedure: "Procedure"
    act: Activation
    seed: int
    layers: list[RoleLayer]
    parameters_by_role: dict[str, list[Parameter]]
    inputs: Any = None
    targets: Any = None
    loss: Callable[..., Tensor] | None = None
    changed: set[str] = field(default_factory=set)
    unreached: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The procedure's parameters."""
        return self.procedure.parameters

    def generator(self, purpose: str, name: str = "") -> Generator:
        """Return the random stream of a purpose, keyed by the seed and a name."""
        return generator(purpose, self.seed, name)

    def layers_of_role(self, *roles: str) -> list[RoleLayer]:
        """Return the layers that have one of these roles as a whole."""
        return [layer for layer in self.layers if layer.role in roles]

    @property
    def branch_count(self) -> int:
        """Number of residual branches, at least 1."""
        return max(len(self.layers_of_role("branch_end")), 1)

    def normalization(self) -> str:
        """Return the name of the first normalization layer, "" where there is none."""
        return next((name for name, part in self.module.named_modules() if "Norm" in type(part).__name__), "")

    def write(self, parameter: Parameter, values: Tensor) -> None:
        """Write a parameter's values, through its parametrization where it has one."""
        if parameter.parametrization is not None:
            parameter.parametrization.write(values.to(parameter.tensor))
        else:
            parameter.tensor.detach().copy_(values)
        self.changed.add(parameter.name)

    def scale(self, parameter: Parameter, factor: Any) -> None:
        """Multiply a parameter by a factor."""
        self.write(parameter, parameter.values() * factor)

    def set_constant(self, parameter: Parameter, value: float) -> None:
        """Set all elements of a parameter to one value."""
        self.write(parameter, torch.full_like(parameter.values(), value))

    def fill(self, layer: RoleLayer, scheme: Scheme | str, factor: float | Callable[[Block], float] = 1.0) -> None:
        """Fill a weight by a scheme from the weight's own stream, block by block, times a factor."""
        record, parameter = find_scheme(scheme), layer.parameter
        drawn = torch.empty(parameter.shape, dtype=torch.float32)
        weights = self.generator("weights", parameter.name)
        for block in parameter.blocks:
            gain = record.gain(self.act, block.fans, layer.role_of(block))
            view = record.fill_(block.view(drawn), fans=block.fans, gain=gain, generator=weights)
            view.mul_(factor(block) if callable(factor) else factor)
        self.write(parameter, drawn)


@dataclass(frozen=True)
class Procedure:
    """A scheme that depends on depth, structure, a batch or gradients.

    Attributes:
        name, formula, reference, year: as of a `Scheme`.
        apply_: changes the module of a `ProcedureContext` in place.
        base: scheme that fills the weights first, where the parameter `base` does not name another.
        parameters: defaults, or the values bound by `bind`; their names are the keys `init.*`.
        needs: what it reads or changes: structure, data, loss, architecture, rates.
        roles: roles that some parameter must have, each with an example of a glob for a user's own module.
        overrides: options of the model (`model.*`) that it sets; `optional` ones where the model has them.
        possible: `possible(context) -> reason` why it cannot be applied to a module, or None; reads no values.
        reshape: `reshape(act, depth, **parameters) -> Activation`, for those that change the activation.
        multipliers: `multipliers(context, optimizer) -> {parameter: factor on the rate}`.
    """

    name: str
    formula: str
    apply_: Callable[[ProcedureContext], None] = field(repr=False)
    reference: str
    year: int
    base: str = "he_normal"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ("structure",)
    roles: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    possible: Callable[[ProcedureContext], str | None] | None = field(default=None, repr=False)
    reshape: Callable[..., Activation] | None = field(default=None, repr=False)
    multipliers: Callable[[ProcedureContext, str], dict[str, float]] | None = field(default=None, repr=False)

    @property
    def start(self) -> Scheme:
        """The scheme that fills the weights first."""
        return find_scheme(self.parameters.get("base", self.base))

    def bind(self, **parameters: Any) -> "Procedure":
        """Return the record with these parameters in place of its own.

        Args:
            **parameters: values by key.

        Raises:
            UserError: it has no such parameter (the nearest is named), or the value cannot be.
        """
        for key, value in parameters.items():
            if key not in self.parameters:
                own = ", ".join(f"init.{k}" for k in self.parameters)
                has = f"its keys are {own}" if own else "it takes none"
                near = did_you_mean(key, self.parameters)
                raise UserError(f"init={self.name} has no parameter init.{key}; {has}.{near}")
            check_procedure_parameter(self.name, key, value)
        return replace(self, parameters={**self.parameters, **parameters})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and fits_float32(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


MAX_COUNT = 10**6  # samples, steps, units
_POSITIVE = (lambda value: _is_number(value) and value > 0, "a positive number")
_STEPS = (_is_count, f"a whole number from 0 to {MAX_COUNT:,}")
_SAMPLES = (lambda value: _is_count(value) and value >= 2, "a whole number of at least 2 samples")

PARAMETER_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch": _SAMPLES,
    "steps": _STEPS,
    "iterations": _STEPS,
    "heads": (lambda value: value is None or (_is_count(value) and value > 0), "a number of heads, or null"),
    "base_width": (lambda value: _is_count(value) and value > 0, "a whole number of units"),
    "power": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "momentum": (lambda value: _is_number(value) and 0 <= value < 1, "a number in [0, 1)"),
    "eta": (lambda value: _is_number(value) and 0 < value < 1, "a correlation in (0, 1)"),
    "zeta": (lambda value: _is_number(value) and value > 1, "a slope above 1"),
    "equal_rates": (lambda value: isinstance(value, bool), "true or false"),
    "optimizer": (lambda value: value in ("sgd", "adam"), "sgd or adam"),
}
"""Key -> test, and the words for a right value; other keys are positive numbers."""


def check_procedure_parameter(name: str, key: str, value: Any) -> None:
    """Check the value of a procedure's parameter.

    Args:
        name: the procedure's name.
        key: the parameter's.
        value: its value.

    Raises:
        UserError: the value cannot be.

    >>> check_procedure_parameter("lsuv", "batch", 1)
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: init.batch=1 must be a whole number of at least 2 samples for init=lsuv.
    """
    if key == "base":
        if value not in SCHEMES:
            raise UserError(f"init.base={value} must be a scheme of its own.{did_you_mean(str(value), SCHEMES)}")
        return
    test, must = PARAMETER_RULES.get(key, _POSITIVE)
    if not test(value):
        raise UserError(f"init.{key}={value} must be {must} for init={name}.")


def is_homogeneous(act: Activation) -> bool:
    """Return whether φ(cx) = c φ(x) for c > 0.

    >>> from initlab.activations import activation
    >>> is_homogeneous(activation("relu")), is_homogeneous(activation("tanh"))
    (True, False)
    """
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    return bool(torch.allclose(act(2 * x), 2 * act(x)))
