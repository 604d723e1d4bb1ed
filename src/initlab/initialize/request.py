"""Resolve what a user asks for: schemes by rules, the gain as a number, the parameters that are selected."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from initlab.activations import Activation, activation
from initlab.errors import Impossible, UserError, did_you_mean
from initlab.initialize.from_theory import bind_critical_point
from initlab.inspection import Parameter
from initlab.schemes import Scheme
from initlab.schemes import scheme as find_scheme
from initlab.system.numbers import describe_float32_limit, fits_float32
from initlab.theory.gains import derived_gain

Spec: TypeAlias = str | Scheme | tuple[str, Mapping[str, Any]]
Globs: TypeAlias = str | Sequence[str]
Roles: TypeAlias = Mapping[str, Globs]

DERIVED_GAINS = ("forward", "backward", "critical")
"""Gains that theory derives from the activation: they apply to hidden layers that an activation feeds, 1 elsewhere."""


class GlobRule(NamedTuple):
    """A glob over parameter names and its scheme; `without_weight`: it matches no weight, so it fills other kinds."""

    glob: str
    scheme: Scheme
    without_weight: bool = False


@dataclass(frozen=True)
class Request:
    """The arguments of `initialize_` that decide the plan, resolved.

    `number` is the gain as a number; `is_mapping`: the user gave several rules; `layer_gains`: AutoInit's.
    """

    rules: tuple[tuple[str, Scheme], ...]
    act: Activation
    gain: float | str
    number: float
    sigma_b: float
    roles: Roles = field(default_factory=dict)
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    forget_bias: float | None = None
    chrono: float | None = None
    is_mapping: bool = False
    layer_gains: Mapping[str, float] = field(default_factory=dict)

    def selects(self, *names: str) -> bool:
        """Return whether `only` and `skip` select a parameter of these names."""
        chosen = not self.only or matches_any(self.only, names)
        return chosen and not (self.skip and matches_any(self.skip, names))


def require_module(module: Any) -> None:
    """Check that the argument is a module, and not a list of layers, a state dict or a class.

    Raises:
        UserError: it is no module.

    >>> require_module(nn.Linear)
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: initialize_ needs a torch.nn.Module, and this is the class Linear: build one, Linear(…).
    """
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type):
        name = module.__name__
        raise UserError(f"initialize_ needs a torch.nn.Module, and this is the class {name}: build one, {name}(…).")
    raise UserError(
        f"initialize_ needs a torch.nn.Module, and this is {type(module).__name__}: give the module that holds the "
        "parameters; nn.Sequential(…) or nn.ModuleList(…) makes one of several layers."
    )


def request(
    scheme: Spec | Mapping[str, Spec],
    *,
    act: Any = "linear",
    gain: float | str = "paper",
    sigma_b: float | None = None,
    roles: Roles | None = None,
    parameters: Mapping[str, Any] | None = None,
    only: Globs = (),
    skip: Globs = (),
    kinds: Mapping[str, str] | None = None,
    forget_bias: float | None = None,
    chrono: float | None = None,
) -> Request:
    """Resolve names to records, and refuse what is wrong for every module.

    Args:
        scheme: a name, an alias, a record or (name, {key: value}); or {glob over parameter names: one of these}.
        act: the activation from which the scheme computes its own gain.
        gain: "paper" for the scheme's own; a positive number that replaces it in every weight layer; or "forward",
            "backward", "critical", derived from `act`, in hidden layers that an activation feeds (1 elsewhere).
        sigma_b: std of the biases of every scheme that has no rule for them (default 0); for `critical`, where to look
            for the critical point.
        roles: {role: glob or globs} for modules that do not declare `weight_layers`.
        parameters: the scheme's own (mode, distribution, mean, std, …).
        only: globs of the parameters to initialize; the others do not change.
        skip: globs of parameters that do not change.
        kinds: {glob: kind} for parameters of unknown kinds (`initlab.inspection.walk` lists the kinds).
        forget_bias: bias of LSTM forget gates and GRU update gates (Jozefowicz et al. 2015: 1).
        chrono: longest time lag T; those biases are log U(1, T − 1) (Tallec & Ollivier 2018).

    Raises:
        UserError: an unknown name or key, or a value that cannot be.
    """
    for key, value, example in (
        ("parameters", parameters, "{'mode': 'fan_out'}"),
        ("roles", roles, "{'first': 'stem', 'readout': 'head'}"),
        ("kinds", kinds, "{'table': 'embedding'}"),
    ):
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r} must be a mapping, for example {key}={example}.")
    if sigma_b is not None:
        sigma_b = _check_sigma_b(sigma_b)
    record = activation(act)
    number = _gain_number(gain, record, sigma_b or 0.0)
    specs = scheme if isinstance(scheme, Mapping) else {"*": scheme}
    if not specs:
        raise UserError("the mapping of rules is empty: give {'*': 'he_normal'} or the name of a scheme.")
    _check_gate_options(forget_bias, chrono)
    return Request(
        tuple((glob, _resolve_scheme(s, parameters or {}, gain, number, sigma_b, record)) for glob, s in specs.items()),
        record,
        gain,
        number,
        sigma_b or 0.0,
        dict(roles or {}),
        as_tuple(only),
        as_tuple(skip),
        dict(kinds or {}),
        forget_bias,
        chrono,
        isinstance(scheme, Mapping),
    )


def _check_sigma_b(sigma_b: Any) -> float:
    if isinstance(sigma_b, bool) or not isinstance(sigma_b, (int, float)) or not 0 <= sigma_b < math.inf:
        raise UserError(f"init.sigma_b={sigma_b} must be a standard deviation: 0 or a positive number.")
    if not fits_float32(sigma_b):
        raise UserError(f"init.sigma_b={sigma_b} cannot be: {describe_float32_limit(sigma_b)}.")
    return float(sigma_b)


def _resolve_scheme(
    spec: Spec, parameters: Mapping[str, Any], gain: float | str, number: float, sigma_b: float | None, act: Activation
) -> Scheme:
    name, own = spec if isinstance(spec, tuple) else (spec, {})
    record = find_scheme(name, **{**parameters, **own})
    if gain != "paper":
        record.check_gain(number)
    if record.derived:
        return bind_critical_point(record, act, sigma_b)
    if "sigma_b" in record.parameters:
        return record.bind(sigma_b=sigma_b or 0.0)
    if sigma_b and record.bias is not None:
        raise Impossible(f"init={record.name} draws its own biases, so init.sigma_b={sigma_b} cannot be: leave it 0.")
    return record


def _gain_number(gain: float | str, act: Activation, sigma_b: float) -> float:
    # "paper" is 1 here.
    if not isinstance(gain, str):
        return gain
    if gain in DERIVED_GAINS:
        try:
            return derived_gain(gain, act, sigma_b)
        except UserError as reason:  # in a grid, a cell that cannot exist
            raise Impossible(f"init.gain={gain} cannot be: {reason}") from reason
    if gain != "paper":
        choices = ("paper", *DERIVED_GAINS)
        near = did_you_mean(gain, choices)
        raise UserError(f"init.gain={gain} must be a number or one of {', '.join(choices)}.{near}")
    return 1.0


def _check_gate_options(forget_bias: float | None, chrono: float | None) -> None:
    if forget_bias is not None and chrono is not None:
        raise UserError(f"forget_bias={forget_bias} and chrono={chrono} set the same biases: give one of them.")
    for key, value, least, meaning in (
        ("forget_bias", forget_bias, -math.inf, "a number"),
        ("chrono", chrono, 2, "the longest time lag in steps, more than 2"),
    ):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and least < value < math.inf
        if value is not None and not number:
            raise UserError(f"{key}={value} must be {meaning}.")


def as_tuple(globs: Globs) -> tuple[str, ...]:
    """Return one glob or several as a tuple.

    >>> as_tuple("head.*"), as_tuple(["a", "b"])
    (('head.*',), ('a', 'b'))
    """
    return (globs,) if isinstance(globs, str) else tuple(globs)


def matches_any(globs: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether one of the globs matches one of the names.

    >>> matches_any(("*.bias",), ("head.weight", "head.bias"))
    True
    """
    return any(fnmatchcase(name, glob) for glob in globs for name in names)


def assign_rules(parameters: Sequence[Parameter], asked: Request) -> tuple[dict[str, GlobRule], dict[str, list[str]]]:
    """Return the rule of each parameter, and the globs in order where several match (a last `*` apart).

    Raises:
        UserError: a glob of the rules, of `only` or of `skip` matches no parameter.
    """
    for key, globs in (("rules", [glob for glob, _ in asked.rules]), ("only", asked.only), ("skip", asked.skip)):
        for glob in globs:
            if glob != "*" and not any(matches_any((glob,), p.names) for p in parameters):
                near = did_you_mean(glob, [name for p in parameters for name in (p.name, p.layer)])
                raise UserError(f"{key}: {glob!r} matches no parameter of the module.{near}")
    rules = []
    for glob, scheme in asked.rules:
        fills_weight = glob == "*" or any(p.is_weight and matches_any((glob,), p.names) for p in parameters)
        rules.append(GlobRule(glob, scheme, asked.is_mapping and not fills_weight))
    first: dict[str, GlobRule] = {}
    doubly_matched: dict[str, list[str]] = {}
    for p in parameters:
        matching = [rule for rule in rules if rule.glob == "*" or matches_any((rule.glob,), p.names)]
        if matching:
            first[p.name] = matching[0]
        if len(globs := [rule.glob for rule in matching if rule.glob != "*"]) > 1:
            doubly_matched[p.name] = globs
    return first, doubly_matched
