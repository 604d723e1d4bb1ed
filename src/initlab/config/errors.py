"""Hydra's and OmegaConf's errors in one sentence with the remedy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException, ValidationError

from initlab.config.checks import unknown_key
from initlab.errors import UserError, nearest

INIT_KEYS = ("gain", "sigma_b", "distribution", "mode", "std", "mean")
MORE = "run with --help to see the groups and keys"


@contextmanager
def translated() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise inside the block into UserError; everything else passes."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """Say what the user got wrong and what to do."""
    if isinstance(error, MissingConfigException):
        return missing_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not an override that Hydra can read ({first_line(error)}): write key=value."
    text = first_line(error)
    cause = error.__cause__
    if found := re.match(r"Could not override '([^']+)'", text):
        return unknown(found.group(1))
    if found := re.match(r"Error merging override (\S+)", text):
        why = f" ({first_line(cause)})" if isinstance(cause, ValidationError) else ""
        return f"{found.group(1)} has a value of the wrong kind{why}: {MORE}."
    if found := re.match(r"Could not (?:override|find) .*'(\w[\w/]*)@?.*No match in the defaults list", str(error)):
        return unknown(found.group(1))
    if isinstance(error, ConfigCompositionException) and cause is not None:
        text = f"{text} ({first_line(cause)})"
    return f"{text.rstrip('.')}: {MORE}."


def missing_option(error: MissingConfigException) -> str:
    """Name the option that does not exist, the nearest ones and the choices."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, option = missing.rpartition("/")
    choices = sorted(o.removesuffix(".yaml") for o in error.options or [])
    if not group:
        return f"{first_line(error)}: {MORE}."
    return (
        f"{group}={option} is unknown.{nearest(option, choices)} Choose one of {', '.join(choices)}"
        f"{f', or {group}=custom {group}.target=package.module:function' if 'custom' in choices else ''}."
    )


def unknown(name: str) -> str:
    """Say that a key does not exist for the chosen options, with the nearest that may."""
    group = name.rpartition(".")[0]
    known = [f"init.{k}" for k in INIT_KEYS] if group == "init" else []
    return (
        f"{name} is not a key of this configuration.{unknown_key(name, known)} "
        f"Keys depend on the chosen option ({'its file in conf/' + group if group else 'see the list'}): {MORE}."
    )


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
