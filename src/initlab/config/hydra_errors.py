"""Hydra's and OmegaConf's errors as one sentence with the remedy."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException, ValidationError

from initlab.config.aliases import ALIASES
from initlab.config.checks import RULES, command_line_text, nearest_key, refusal_text
from initlab.config.help import known_keys, program_name
from initlab.config.option_files import option_keys, option_names
from initlab.config.schema import GROUPS
from initlab.errors import UserError, did_you_mean

OVERRIDE_FUNCTIONS = ("range", "glob", "choice", "interval", "shuffle", "sort", "tag", "int", "float", "str", "bool")
QUOTES_EXAMPLE = """, as in "sweep.name='a(b)'\""""
CATALOGUE_HINTS = {"init": "`initlab schemes` lists all", "act": "`initlab activations` lists all"}


@contextmanager
def translate_hydra_errors() -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf inside the block into UserError.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(error_sentence(error)) from error


def error_sentence(error: BaseException) -> str:
    """Return what the user got wrong and what to do."""
    text, cause = first_line_of_error(error), error.__cause__
    if isinstance(error, MissingConfigException):
        return missing_option_sentence(error)
    if isinstance(error, OverrideParseException):
        call = re.search(r"=\s*(?:.*[,\[])?\s*([A-Za-z_]\w*)\(", str(error.override))
        if call and call[1] not in OVERRIDE_FUNCTIONS:
            remedy = f"list the values, or put a text in quotes{QUOTES_EXAMPLE}"
            return f"{error.override}: there is no function {call[1]}(…): {remedy}."
        why = "" if re.search("Exception|expecting|Error parsing", text) else f" ({text})"
        return f"{error.override} cannot be read as key=value{why}: check its brackets and quotes, as in 'width=[8,4]'."
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key} refers to a key that does not exist ({text}): name another one in ${{…}}."
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", text):
        return several_values_sentence(match[1])
    if match := re.match(r"Could not delete from config. '([^']+)'", text):
        return f"~{match[1]} removes a key that does not exist: leave it out."
    if isinstance(cause, ValidationError) and cause.full_key:
        name = text.removeprefix("Error merging override ").lstrip("+").partition("=")[0]
        return wrong_type_sentence(name, str(cause.full_key), cause)
    if match := re.match(r"Could not override '([^']+)'", text):
        parent = cause.parent_node if isinstance(cause, OmegaConfBaseException) else None
        return unknown_key_sentence(match[1], parent)
    if text.startswith("Additional config directory"):
        return f"{text.rstrip('.')}: give a directory that holds files of options, such as init/mine.yaml."
    why = f" ({first_line_of_error(cause)})" if cause is not None else ""
    return f"{text.rstrip('.')}{why}: {all_keys_hint()}."


def missing_option_sentence(error: MissingConfigException) -> str:
    """Return the sentence about an option that Hydra did not find."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, option = missing.rpartition("/")
    if not group:
        return f"{first_line_of_error(error)}: {all_keys_hint()}."
    return unknown_option_sentence(group, option, sorted(o.removesuffix(".yaml") for o in error.options or []))


def unknown_option_sentence(group: str, option: str, choices: list[str]) -> str:
    """Return that a group has no such option, with the nearest names or else all of them."""
    near = did_you_mean(option, [*choices, *ALIASES.get(group, ())])
    own = f"; {group}=package.module:function takes your own" if "custom" in choices else ""
    named = [choice for choice in choices if choice != "custom"]
    if near and group in CATALOGUE_HINTS:
        return f"{group}={option} is unknown.{near} {CATALOGUE_HINTS[group]}{own}."
    return f"{group}={option} is unknown.{near} Choose one of {', '.join(named)}{own}."


def several_values_sentence(override: str) -> str:
    """Return how to run every value of a list, or how to choose one."""
    key, _, value = override.partition("=")
    if "interval(" in value:
        return interval_sentence(override)
    listed = f", or write the list as '{key}=[{value}]'" if key == "width" else ""
    return f"{override} names several values: add -m to run each of them, or choose one{listed}."


def interval_sentence(override: str) -> str:
    """Return that the values of an interval cannot be listed.

    >>> interval_sentence("optim.lr=interval(0.01,1)")
    'optim.lr=interval(0.01,1) has infinitely many values: list those to run, as in -m optim.lr=0.01,0.1,1.'
    """
    key = override.partition("=")[0]
    values = "0.01,0.1,1" if key.lstrip("+").startswith("optim.") else "1,2,3"
    return f"{override} has infinitely many values: list those to run, as in -m {key}={values}."


def wrong_type_sentence(name: str, key: str, cause: ValidationError) -> str:
    """Return what the value of a key must be; `name` is what was typed, which may be a key below it."""
    if name.startswith(f"{key}."):
        example = f", for example {RULES[key][2]}" if key in RULES else ""
        return f"{name} is not a key: {key} is a single value{example}."
    if key in RULES:
        return refusal_text(key, cause.value)
    return f"{key}={command_line_text(cause.value)} has a value of the wrong kind ({first_line_of_error(cause)})."


def unknown_key_sentence(key: str, siblings: Any) -> str:
    """Return that there is no such key, with the nearest ones and the keys of its option or section."""
    group, _, leaf = key.partition(".")
    known = known_keys()
    if group in GROUPS and leaf and isinstance(siblings, DictConfig) and "name" in siblings:
        own = [f"{group}.{name!s}" for name in siblings if name != "name"]
        return unknown_option_key_sentence(key, f"{group}={siblings['name']}", own)
    own = [k for k in known if k.startswith(f"{group}.")] if leaf and group not in GROUPS else []
    rest = f" The keys of {group} are {', '.join(own)}." if own else f" {all_keys_hint()}."
    if group == "hydra":
        return f"{key} is not a key: `{program_name()} --cfg hydra` shows Hydra's own."
    return f"{key} is not a key.{nearest_key(key, own or known)}{rest}"


def unknown_option_key_sentence(key: str, chosen: str, own: list[str]) -> str:
    """Return that the chosen option has no such key, with its keys and the options that have it."""
    has = f"its keys are {', '.join(own)}" if own[1:] else f"its only key is {own[0]}" if own else "it has no keys"
    plus = f"; a parameter of your own function needs a plus sign: +{key}=…" if chosen.endswith("=custom") else ""
    if elsewhere := [option for option in options_with_key(key) if option != chosen and not option.endswith("=custom")]:
        others = f"{', '.join(elsewhere[:4])}{' and others' if len(elsewhere) > 4 else ''}"
        return f"{chosen} has no {key} (a key of {others}); {has}{plus}."
    return f"{chosen} has no {key}; {has}{plus}.{did_you_mean(key, own)}"


@functools.cache
def options_with_key(key: str) -> list[str]:
    """Return the options that have a key, such as `act=sin` for `act.omega`."""
    group, _, leaf = key.partition(".")
    return [f"{group}={option}" for option in option_names(group) if leaf in (option_keys(group, option) or ())]


def all_keys_hint() -> str:
    """Return where all keys are listed, to end a sentence with."""
    return f"`{program_name()} --help` lists all keys"


def first_line_of_error(error: BaseException | None) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
