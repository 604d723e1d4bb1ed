"""What a user asks for, resolved: schemes by rules, the gain as a number, which parameters are meant."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """A glob over parameter names and its scheme; `own`: it matches no weight, so it means what it matches itself."""

    glob: str
    scheme: Scheme
    own: bool = False


@dataclass(frozen=True)
class Request:
    """The arguments of `initialize_` that decide the plan, resolved; `flows`: gains that follow from the module."""

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
    mapped: bool = False
    flows: Mapping[str, float] = field(default_factory=dict)

    def scheme_of(self, name: str) -> Scheme | None:
        """Return the scheme of the first glob that matches a parameter's name."""
        return next((scheme for glob, scheme in self.rules if fnmatch.fnmatchcase(name, glob)), None)

    def means(self, *names: str) -> bool:
        """Return whether `only` and `skip` let a parameter of these names be touched."""
        if not (self.only or self.skip):
            return True
        chosen = not self.only or matches_any(self.only, names)
        return chosen and not matches_any(self.skip, names)


def require_module(module: Any) -> None:
    """Refuse what is no module: a list of layers, a state dict, a class that nobody has called.

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
    """Resolve names to records and refuse what no module could make right."""
    for key, value, example in (
        ("parameters", parameters, "{'mode': 'fan_out'}"),
        ("roles", roles, "{'first': 'stem', 'readout': 'head'}"),
        ("kinds", kinds, "{'table': 'embedding'}"),
    ):
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{key}={value!r} must be a mapping, for example {key}={example}.")
    asked = None if sigma_b is None else _check_sigma_b(sigma_b)
    record = activation(act)
    number = _gain_number(gain, record, asked or 0.0)
    mapped = isinstance(scheme, Mapping)
    specs = scheme if isinstance(scheme, Mapping) else {"*": scheme}
    if not specs:
        raise UserError("the mapping of rules is empty: give {'*': 'he_normal'} or the name of a scheme.")
    rules = [
        (glob, _resolve_scheme(spec, parameters or {}, gain, number, asked, record)) for glob, spec in specs.items()
    ]
    _check_gates(forget_bias, chrono)
    return Request(
        tuple(rules),
        record,
        gain,
        number,
        asked or 0.0,
        dict(roles or {}),
        as_tuple(only),
        as_tuple(skip),
        dict(kinds or {}),
        forget_bias,
        chrono,
        mapped,
    )


def _check_sigma_b(sigma_b: Any) -> float:
    if isinstance(sigma_b, bool) or not isinstance(sigma_b, (int, float)) or not 0 <= sigma_b < float("inf"):
        raise UserError(f"init.sigma_b={sigma_b} must be a standard deviation: 0 or a positive number.")
    if not fits_float32(sigma_b):
        raise UserError(f"init.sigma_b={sigma_b} cannot be: {describe_float32_limit(sigma_b)}.")
    return float(sigma_b)


def _resolve_scheme(
    spec: Spec,
    parameters: Mapping[str, Any],
    gain: float | str,
    number: float,
    sigma_b: float | None,
    act: Activation,
) -> Scheme:
    name, own = spec if isinstance(spec, tuple) else (spec, {})
    found = find_scheme(name, **{**parameters, **own})
    if gain != "paper":
        found.check_gain(number)
    if found.derived:
        return bind_critical_point(found, act, sigma_b)
    if "sigma_b" in found.parameters:
        found = found.bind(sigma_b=sigma_b or 0.0)
    elif sigma_b and found.bias is not None:
        raise Impossible(f"init={found.name} draws its own biases, so init.sigma_b={sigma_b} cannot be: leave it 0.")
    return found


def _gain_number(gain: float | str, act: Activation, sigma_b: float) -> float:
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
        raise UserError(
            f"init.gain={gain} must be a number or one of {', '.join(choices)}.{did_you_mean(gain, choices)}"
        )
    return 1.0


def _check_gates(forget_bias: float | None, chrono: float | None) -> None:
    if forget_bias is not None and chrono is not None:
        raise UserError(f"forget_bias={forget_bias} and chrono={chrono} set the same biases: give one of them.")
    for key, value, least in (("forget_bias", forget_bias, -math.inf), ("chrono", chrono, 2)):
        wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < math.inf
        if value is not None and wrong:
            meant = "a number" if key == "forget_bias" else "the longest time lag in steps, more than 2"
            raise UserError(f"{key}={value} must be {meant}.")


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
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in names)


def assign_rules(parameters: Sequence[Parameter], wanted: Request) -> tuple[dict[str, GlobRule], dict[str, list[str]]]:
    """Return each parameter's rule, and for those that several rules match the globs in order (a last `*` apart).

    Raises:
        UserError: a glob of the rules, of `only` or of `skip` matches no parameter.
    """
    for key, globs in (("rules", [glob for glob, _ in wanted.rules]), ("only", wanted.only), ("skip", wanted.skip)):
        for glob in globs:
            if glob != "*" and not any(matches_any((glob,), p.names) for p in parameters):
                near = did_you_mean(glob, [name for p in parameters for name in (p.name, p.layer)])
                raise UserError(f"{key}: {glob!r} matches no parameter of the module.{near}")
    weighty = {
        g: any(p.is_weight and matches_any((g,), p.names) for p in parameters) for g, _ in wanted.rules if g != "*"
    }
    rules = [GlobRule(glob, scheme, wanted.mapped and not weighty.get(glob, True)) for glob, scheme in wanted.rules]
    found: dict[str, GlobRule] = {}
    several: dict[str, list[str]] = {}
    for p in parameters:
        hits = [rule for rule in rules if rule.glob == "*" or matches_any((rule.glob,), p.names)]
        if hits:
            found[p.name] = hits[0]
        if len(named := [rule.glob for rule in hits if rule.glob != "*"]) > 1:
            several[p.name] = named
    return found, several
