"""The user's own scheme: `init=package.module:function`."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.inspection import Fans
from initlab.schemes.record import Law, Scheme
from initlab.schemes.scaling import unit_gain
from initlab.system.imports import describe_contract, load_target

SAMPLER_ARGUMENTS = ("fans", "gain", "role", "generator")


def custom_scheme(target: Any, **parameters: Any) -> Scheme:
    """Make a scheme of the user's function `f(weight, *, fans, gain, role, generator)`, which fills `weight` in place.

    `weight` is a float32 CPU tensor (out, in, *receptive) of NaN. The function may leave out arguments.

    Args:
        target: the function or `"package.module:function"`.
        **parameters: further keywords that the function takes, given as `init.<key>`.

    Raises:
        UserError: the target cannot be imported, is no function, or does not take these arguments.

    >>> def half(weight, *, fans, gain, role, generator):
    ...     weight.fill_(0.5 * gain)
    >>> w = custom_scheme(half).fill_(torch.empty(2, 3), fans=Fans(3, 2), generator=torch.Generator())
    >>> float(w.sum())
    3.0
    """
    function = load_target(target, "init.target") if isinstance(target, str) or target is None else target
    if isinstance(function, Scheme):
        return function.bind(**parameters)
    if not callable(function):
        raise UserError(f"init.target={target} is no function{describe_contract('init')}.")
    name = target if isinstance(target, str) else getattr(function, "__name__", "custom")
    takes = _accepted_keywords(function, name, parameters)

    def sampler(
        weight: Tensor, *, fans: Fans, gain: float, role: str, generator: torch.Generator, **bound: Any
    ) -> Tensor:
        arguments = {"fans": fans, "gain": gain, "role": role, "generator": generator, **bound}
        weight.fill_(math.nan)
        function(weight, **{key: value for key, value in arguments.items() if takes is None or key in takes})
        if missing := int(weight.isnan().sum()):
            raise UserError(
                f"init.target={name} left {missing} of {weight.numel()} weights NaN: "
                "it must fill `weight` in place (weight.copy_(…)); its return value is not used."
            )
        return weight

    return Scheme(
        name,
        f"filled by {name}",
        sampler,
        lambda *_, **__: Law("custom", math.nan, math.nan),
        "your own",
        parameters=dict(parameters),
        own_gain=unit_gain,
    )


def _accepted_keywords(function: Any, name: str, parameters: dict[str, Any]) -> set[str] | None:
    # The keywords that the function takes; None: all of them.
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-in functions show no signature
        return None
    rest = list(signature.parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in rest):
        return None
    takes = {p.name for p in rest if p.kind is not p.VAR_POSITIONAL}
    needed = {p.name for p in rest if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    known = {*SAMPLER_ARGUMENTS, *parameters}
    if unknown := [*(needed - known), *(set(parameters) - takes)]:
        raise UserError(
            f"init.target={name} and its keys disagree about {unknown[0]!r}: initlab calls "
            f"function(weight, *, {', '.join(SAMPLER_ARGUMENTS)}) with the keys +init.<key>=… that it takes by name."
        )
    return takes
