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
    return f"{key}={re.sub(r'[A-Za-z_0-9]+', lambda word: aliases.get(word.group(), word.group()), value)}"
