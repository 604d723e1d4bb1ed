"""Schemes: named rules that fill weights, each one record with the law it promises.

A family is one engine and rows (`scaling.py`: LeCun, Glorot, He are points of variance scaling). Adding a scheme is one
row or function here and one file `conf/init/<name>.yaml`; the contract tests run over the whole registry.
"""

from typing import Any

from initlab.config.aliases import SCHEME_ALIASES
from initlab.config.option_files import option_names
from initlab.errors import UserError, did_you_mean
from initlab.schemes import derived, orthogonal, plain, scaling, structured
from initlab.schemes.custom import custom_scheme
from initlab.schemes.record import DISTRIBUTIONS, MODES, BiasRule, Law, Scheme
from initlab.system.imports import is_target

__all__ = ["DISTRIBUTIONS", "MODES", "SCHEMES", "SCHEME_ALIASES", "BiasRule", "Law", "Scheme", "scheme"]

SCHEMES: dict[str, Scheme] = {
    row.name: row for row in (*plain.ROWS, *scaling.ROWS, *orthogonal.ROWS, *derived.ROWS, *structured.ROWS)
}


def scheme(spec: str | Scheme, **parameters: Any) -> Scheme:
    """Return the scheme of a name, an alias (torch's names too, with or without the final `_`) or a record.

    `"package.module:function"` is a scheme of the user's own.

    Args:
        spec: the name or record.
        **parameters: keys of the scheme, bound to the record.

    Raises:
        UserError: no such scheme (the nearest names are given), no such parameter, or a value that cannot be.

    >>> scheme("xavier_normal_", distribution="truncated_normal").name
    'glorot_normal'
    >>> scheme("dirak")
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: init=dirak is unknown. Did you mean 'dirac'? `initlab schemes` lists all.
    """
    if isinstance(spec, Scheme):
        return spec.bind(**parameters)
    if spec == "custom":
        return custom_scheme(parameters.pop("target", None), **parameters)
    if isinstance(spec, str) and is_target(spec):
        return custom_scheme(spec, **parameters)
    if callable(spec):
        name = getattr(spec, "__name__", type(spec).__name__)
        raise UserError(
            f"init is {name}, a function: give a name such as 'he_normal', or wrap your own in "
            "initlab.schemes.custom_scheme(function)."
        )
    name = str(spec).removesuffix("_")
    name = SCHEME_ALIASES.get(name, name)
    if name not in SCHEMES and name in option_names("init"):
        raise UserError(
            f"init={spec} looks at a whole module and promises no law of single weights: "
            f"apply it by initlab.initialize_(model, {name!r}, …) or init={name} in an experiment."
        )
    if name not in SCHEMES:
        near = did_you_mean(name, [*SCHEMES, *SCHEME_ALIASES, *option_names("init")])
        raise UserError(f"init={spec} is unknown.{near} `initlab schemes` lists all.")
    return SCHEMES[name].bind(**parameters)
