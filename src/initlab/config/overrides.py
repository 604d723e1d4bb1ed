"""Aliases are rewritten before Hydra sees them: `init=xavier_normal,zeros` becomes `init=glorot_normal,zeros`."""

import re
from collections.abc import Iterable

from initlab.names import ALIASES


def canonical(arguments: Iterable[str]) -> list[str]:
    """Replace aliases in the overrides of `init` and `act`; `glob(…)` is left alone, for it matches file names.

    >>> canonical(["init=xavier_uniform,he_normal", "act=swish", "init=glob(*)", "-m"])
    ['init=glorot_uniform,he_normal', 'act=silu', 'init=glob(*)', '-m']
    """
    return [rewrite(argument) for argument in arguments]


def rewrite(argument: str) -> str:
    """Rewrite one argument if it chooses a scheme or an activation."""
    key, equals, value = argument.partition("=")
    aliases = ALIASES.get(key.lstrip("+"))
    if not equals or aliases is None or "glob(" in value:
        return argument
    return f"{key}={re.sub(r'[A-Za-z_0-9]+', lambda word: canonical_name(word.group(), aliases), value)}"


def canonical_name(name: str, aliases: dict[str, str]) -> str:
    """Return the registry's name; torch's in-place names (`kaiming_normal_`) lose their underscore first.

    >>> canonical_name("kaiming_normal_", ALIASES["init"]), canonical_name("zeros", ALIASES["init"])
    ('he_normal', 'zeros')
    """
    bare = name.rstrip("_")
    return aliases.get(bare, bare or name)
