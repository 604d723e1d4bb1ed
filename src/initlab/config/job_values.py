"""The values of every job of a grid, key by key: what many jobs share is composed once, Hydra's own node not at all."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from initlab.config.fast_compose import Composer
from initlab.config.schema import GROUPS

PlainValues = dict[str, Any]


@dataclass
class JobValues:
    """Gives the values of jobs as nested plain dictionaries, equal to those of a whole composition.

    A job is the option of every group and some values. An option whose file concerns its own group alone is read from
    that file; every other choice (an experiment, model=resnet) is composed by Hydra once. A value is set by Hydra's
    own function, once for each key and text. Whatever is out of the ordinary is left to a whole composition.
    """

    composer: Composer
    options: dict[str, PlainValues | None] = field(
        default_factory=dict
    )  # "init=zeros" -> its file, None: not so simple
    bases: dict[tuple[str, ...], PlainValues | None] = field(default_factory=dict)  # choices -> values, None: not plain
    set_: dict[tuple[str, ...], Any] = field(default_factory=dict)  # choices, key and texts -> value
    composed: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)  # job -> choices left to Hydra
    defaults: dict[tuple[str, ...], set[str]] = field(default_factory=dict)  # choices -> groups that are their file

    def of(self, overrides: Sequence[str]) -> PlainValues | None:
        """Return the values of a job, or None where it has to be composed as a whole."""
        if self.composer.tools is None or any("${" in text for text in overrides):
            return None
        try:
            parsed = [self.composer.parse(text) for text in overrides]
            if any(o.is_sweep_override() or o.is_hydra_override() or o.package is not None for o in parsed):
                return None
            return self.assembled(overrides, parsed)
        except (HydraException, OmegaConfBaseException):
            # The whole composition meets the same problem and says it in Hydra's words.
            return None

    def assembled(self, overrides: Sequence[str], parsed: Sequence[Override]) -> PlainValues | None:
        """Put a job together from its choices and values."""
        chosen = [self.composer.chooses(o) for o in parsed]
        choices = [text for text, choice in zip(overrides, chosen, strict=True) if choice]
        texts: dict[str, list[str]] = {}
        for text, one, choice in zip(overrides, parsed, chosen, strict=True):
            if not choice:
                texts.setdefault(one.key_or_group.partition(".")[0], []).append(text)
        simple = self.simple(choices, texts)
        rest = tuple(text for text in choices if text not in simple.values())
        self.composed[tuple(overrides)] = rest
        base = self.base(rest)
        if base is None:
            return None
        plain = {key: copy_plain(value) for key, value in base.items()}
        for group, text in simple.items():
            plain[group] = copy_plain(self.option(text))
        for key, own in texts.items():
            place = (*rest, "", key, *own)
            if place not in self.set_:
                self.set_[place] = self.set_value(rest, key, own)
            if self.set_[place] is None:
                return None
            found, there = self.set_[place]
            if there:
                plain[key] = copy_plain(found)
            else:
                plain.pop(key, None)
        return plain

    def by_hydra(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the choices of a job that Hydra composes, for those that `of` has put together."""
        return self.composed[tuple(overrides)]

    def simple(self, choices: Sequence[str], texts: Iterable[str]) -> dict[str, str]:
        """Return the choices, by group, whose file is all that there is to them; not those whose keys are set, too."""
        found: dict[str, str] = {}
        for text in choices:
            group = text.partition("=")[0]
            if group in GROUPS and group not in texts and group not in found and self.option(text) is not None:
                found[group] = text
        rest = [text for text in choices if text not in found.values()]
        concerned = {group for text in rest for group in self.concerns(text)}
        if any(text.partition("=")[0].lstrip("+~") not in GROUPS for text in rest) or concerned & {*found}:
            return {}
        alone = self.own_files(tuple(rest))
        return {group: text for group, text in found.items() if group in alone}

    def own_files(self, choices: tuple[str, ...]) -> set[str]:
        """Return the groups whose values are those of their option's file where nothing but these is chosen."""
        if choices not in self.defaults:
            base, composed = self.base(choices), self.composer.base(choices)
            named = dict(composed.hydra.runtime.choices)
            self.defaults[choices] = {
                group
                for group in GROUPS
                if base is not None and group in named and self.option(f"{group}={named[group]}") == base.get(group)
            }
        return self.defaults[choices]

    def concerns(self, text: str) -> list[str]:
        """Return the groups whose values a choice changes beside those of its own."""
        group, _, name = text.partition("=")
        read = self.composer.file(f"{group}/{name}")
        keys = list(read.config) if read is not None and OmegaConf.is_dict(read.config) else []
        return [key for key in keys if key in GROUPS and key != group]

    def option(self, text: str) -> PlainValues | None:
        """Return the values of an option's file, or None where they are not the whole of the option."""
        if text not in self.options:
            self.options[text] = self.read_option(*text.partition("=")[::2])
        return self.options[text]

    def read_option(self, group: str, name: str) -> PlainValues | None:
        """Read an option's file; None where it has a package or defaults of its own, or refers to other keys."""
        read = self.composer.file(f"{group}/{name}") if group in GROUPS else None
        if read is None or read.header.get("package") not in (None, group) or not OmegaConf.is_dict(read.config):
            return None
        plain: Any = OmegaConf.to_container(read.config, resolve=False)
        own = [d for d in read.defaults_list or () if not d.is_self()]
        return None if own or not isinstance(plain, dict) or has_references(plain) or "name" not in plain else plain

    def base(self, choices: tuple[str, ...]) -> PlainValues | None:
        """Return the values that Hydra composes from these choices; None where any refers to another."""
        if choices not in self.bases:
            found: Any = OmegaConf.to_container(self.without_hydra(choices), resolve=False)
            self.bases[choices] = None if has_references(found) else found
        return self.bases[choices]

    def without_hydra(self, choices: tuple[str, ...]) -> DictConfig:
        """Return a fresh copy of what Hydra composes from these choices, its own node left out."""
        composed = self.composer.base(choices)
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        OmegaConf.set_struct(composed, True)
        return composed

    def set_value(self, choices: tuple[str, ...], key: str, texts: Sequence[str]) -> tuple[Any, bool] | None:
        """Return what a key is, and whether it is there, after its values have been set; None where it is not plain."""
        composed = self.without_hydra(choices)
        self.composer.tools[0]([self.composer.parse(text) for text in texts], composed)
        if key not in composed:
            return None, False
        value = composed[key]
        plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
        return None if has_references(plain) else (plain, True)


def has_references(value: Any) -> bool:
    """Is there a value that is missing or refers to another key?"""
    text = json.dumps(value, default=str)
    return "${" in text or '"???"' in text


def copy_plain(value: Any) -> Any:
    """Return a copy of nested plain values.

    >>> copy_plain({"a": [1, {"b": 2}]})
    {'a': [1, {'b': 2}]}
    """
    if isinstance(value, dict):
        return {key: copy_plain(member) for key, member in value.items()}
    return [copy_plain(member) for member in value] if isinstance(value, list) else value
