"""Hydra's and OmegaConf's errors in one sentence with the remedy."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, ValidationError

from initlab.config.aliases import ALIASES
from initlab.config.checks import RULES, known_keys, nearest_key, refusal, typed
from initlab.config.help import program
from initlab.config.option_files import option_keys, options
from initlab.config.schema import GROUPS
from initlab.errors import UserError, nearest

FUNCTIONS = ("range", "glob", "choice", "interval", "shuffle", "sort", "tag", "int", "float", "str", "bool")
QUOTES = """, as in "sweep.name='a(b)'\""""
CATALOGUES = {"init": "`initlab schemes` lists all", "act": "`initlab activations` lists all"}


@contextmanager
def translated() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside the block into UserError; everything else passes."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """Say what the user got wrong and what to do."""
    text, cause = first_line(error), error.__cause__
    if isinstance(error, MissingConfigException):
        return missing_option(error)
    if isinstance(error, OverrideParseException):
        called = re.search(r"=\s*(?:.*[,\[])?\s*([A-Za-z_]\w*)\(", str(error.override))
        if called and called[1] not in FUNCTIONS:
            return f"{error.override}: there is no {called[1]}(…): list the values, or put a text in quotes{QUOTES}."
        why = "" if re.search("Exception|expecting|Error parsing", text) else f" ({text})"
        return f"{error.override} cannot be read as key=value{why}: check its brackets and quotes, as in 'width=[8,4]'."
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key} refers to what is not there ({text}): name another key in ${{…}}."
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        return several(found.group(1))
    if found := re.match(r"Could not delete from config. '([^']+)'", text):
        return f"~{found.group(1)} takes out what is not there: leave it out."
    if isinstance(cause, ValidationError) and cause.full_key:
        name = text.removeprefix("Error merging override ").lstrip("+").partition("=")[0]
        return wrong_kind(name, str(cause.full_key), cause)
    if found := re.match(r"Could not override '([^']+)'", text):
        return unknown(found.group(1), cause.parent_node if isinstance(cause, OmegaConfBaseException) else None)
    if text.startswith("Additional config directory"):
        return f"{text.rstrip('.')}: give a directory that holds files of options, such as init/mine.yaml."
    why = f" ({first_line(cause)})" if cause is not None else ""
    return f"{text.rstrip('.')}{why}: {all_keys()}."


def missing_option(error: MissingConfigException) -> str:
    """Name the option that does not exist, the nearest ones and the choices."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, option = missing.rpartition("/")
    if not group:
        return f"{first_line(error)}: {all_keys()}."
    return unknown_option(group, option, sorted(o.removesuffix(".yaml") for o in error.options or []))


def unknown_option(group: str, option: str, choices: list[str]) -> str:
    """Say that a group has no such option: the nearest names where there are any, else all of them."""
    near = nearest(option, [*choices, *ALIASES.get(group, ())])
    own = f"; {group}=package.module:function takes your own" if "custom" in choices else ""
    named = [choice for choice in choices if choice != "custom"]
    if near and group in CATALOGUES:
        return f"{group}={option} is unknown.{near} {CATALOGUES[group]}{own}."
    return f"{group}={option} is unknown.{near} Choose one of {', '.join(named)}{own}."


def several(override: str) -> str:
    """Say how to run every value of a list, or how to choose one."""
    key, _, value = override.partition("=")
    if "interval(" in value:
        return endless(override)
    listed = f", or write the list as '{key}=[{value}]'" if key == "width" else ""
    return f"{override} names several values: add -m to run each of them, or choose one{listed}."


def endless(override: str) -> str:
    """Say that there are too many numbers between two to run each of them.

    >>> endless("optim.lr=interval(0.01,1)")
    'optim.lr=interval(0.01,1) has no end of values, and a grid runs each: list them, as in -m optim.lr=0.01,0.1,1.'
    """
    key = override.partition("=")[0]
    values = "0.01,0.1,1" if key.lstrip("+").startswith("optim.") else "1,2,3"
    return f"{override} has no end of values, and a grid runs each: list them, as in -m {key}={values}."


def wrong_kind(name: str, key: str, cause: ValidationError) -> str:
    """Say what the value of a key must be, which its own rule knows best; `name` is what was typed."""
    if name.startswith(f"{key}."):
        return (
            f"{name} is not a key: {key} is a single value{f', for example {RULES[key][2]}' if key in RULES else ''}."
        )
    if key in RULES:
        return refusal(key, cause.value)
    return f"{key}={typed(cause.value)} has a value of the wrong kind ({first_line(cause)})."


def unknown(key: str, siblings: Any) -> str:
    """Say that there is no such key: what keys the chosen option has, and which options have it."""
    group, _, leaf = key.partition(".")
    known = known_keys()
    if group in GROUPS and leaf and isinstance(siblings, DictConfig) and "name" in siblings:
        own = [f"{group}.{name!s}" for name in siblings if name != "name"]
        return unknown_of_option(key, f"{group}={siblings['name']}", own)
    own = [k for k in known if k.startswith(f"{group}.")] if leaf and group not in GROUPS else []
    rest = f" The keys of {group} are {', '.join(own)}." if own else f" {all_keys()}."
    if group == "hydra":
        return f"{key} is not a key: `{program()} --cfg hydra` shows Hydra's own."
    return f"{key} is not a key.{nearest_key(key, own or known)}{rest}"


def unknown_of_option(key: str, chosen: str, own: list[str]) -> str:
    """Say that the chosen option has no such key, and where it is at home."""
    has = f"its keys are {', '.join(own)}" if own[1:] else f"its only key is {own[0]}" if own else "it has no keys"
    plus = f"; a parameter of your own function needs a plus sign: +{key}=…" if chosen.endswith("=custom") else ""
    if elsewhere := [option for option in having(key) if option != chosen and not option.endswith("=custom")]:
        others = f"{', '.join(elsewhere[:4])}{' and others' if len(elsewhere) > 4 else ''}"
        return f"{chosen} has no {key} (a key of {others}); {has}{plus}."
    return f"{chosen} has no {key}; {has}{plus}.{nearest(key, own)}"


@functools.cache
def having(key: str) -> list[str]:
    """List the options that have a key: `act.omega` belongs to `act=sin`."""
    group, _, leaf = key.partition(".")
    return [f"{group}={option}" for option in options(group) if leaf in (option_keys(group, option) or ())]


def all_keys() -> str:
    """Say where all keys are listed."""
    return f"`{program()} --help` lists all keys"


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
