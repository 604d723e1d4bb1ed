"""The private interfaces of Hydra and argparse that initlab uses, each with what happens where a release has none.

Seen in hydra-core 1.3.2 and 1.3.8 with omegaconf 2.3, and in Python 3.11 to 3.14.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


@dataclass(frozen=True)
class ComposeFunctions:
    """Hydra's functions for the parts of a composition.

    Attributes:
        apply_overrides: set values in a configuration.
        overrides_dirname: return the text of `hydra.job.override_dirname`.
        group_exists: return whether a key is a config group.
        load_file: return the values, package and defaults list of an option's file, None where there is no such file.
    """

    apply_overrides: Callable[[list[Override], DictConfig], None]
    overrides_dirname: Callable[..., str]
    group_exists: Callable[[str], bool]
    load_file: Callable[[str], Any]


def compose_functions(loader: ConfigLoader) -> ComposeFunctions | None:
    """Return the functions, or None where this release lacks one: Hydra then composes every job of a grid itself."""
    try:
        from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname

        repository = loader.repository  # type: ignore[attr-defined]
        apply = ConfigLoaderImpl._apply_overrides_to_config
        return ComposeFunctions(apply, get_overrides_dirname, repository.group_exists, repository.load_config)
    except (ImportError, AttributeError):
        return None


def command_line_parser() -> argparse.ArgumentParser | None:
    """Return the parser of Hydra's own flags, or None: Hydra then reports unknown flags in argparse's words."""
    try:
        from hydra._internal.utils import get_args_parser

        return get_args_parser()
    except (ImportError, AttributeError):
        return None


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags that a parser accepts, or [] where this release of Python does not list them."""
    return [flag for action in getattr(parser, "_actions", ()) for flag in action.option_strings]


def config_store_groups() -> dict[str, Any]:
    """Return the config store's own dictionary of groups, or an empty one: `group=module:function` is then unknown."""
    groups: dict[str, Any] = getattr(ConfigStore.instance(), "repo", {})
    return groups
