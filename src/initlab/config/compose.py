"""Compose with Hydra, and turn its DictConfig into a checked `Config`."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from initlab.config.checks import check_config, nearest_key
from initlab.config.help import examples_text, keys_text, known_keys, program_name
from initlab.config.hydra_errors import translate_hydra_errors, unknown_option_key_sentence
from initlab.config.naming import cell_name, run_name
from initlab.config.option_files import conf_dir, option_keys
from initlab.config.overrides import canonical_overrides, refuse_malformed
from initlab.config.own_options import own_options_text, register_own_options
from initlab.config.schema import GROUPS, Config
from initlab.errors import UserError

HYDRA_LOCK = threading.RLock()  # Hydra has one state for all threads


def register_config() -> None:
    """Register the schema, the user's own options and the resolvers with Hydra."""
    ConfigStore.instance().store(name="initlab_schema", node=Config, provider="initlab")
    register_own_options()
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(f"initlab.{name}", resolver, replace=True)


def plain_tree(composed: DictConfig) -> dict[str, Any]:
    """Return nested plain dictionaries of everything but Hydra's own node, with references resolved."""
    values = {str(key): composed[key] for key in composed if key != "hydra"}
    return {
        key: OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
        for key, value in values.items()
    }


def name_resolver(name: Callable[[Config], str]) -> Callable[..., str]:
    """Return a resolver that applies a naming function to the whole configuration of a job."""

    def resolver(*, _root_: DictConfig) -> str:
        return name(config_from_plain(plain_tree(_root_)))

    return resolver


def sweep_directory(root: str, name: str | None, now: str) -> str:
    """Return `<sweep.root>/<sweep.name or the time>`; Hydra resolves `now` to one time for all jobs."""
    return f"{root}/{name or now}"


RESOLVERS: dict[str, Callable[..., str]] = {
    "run_name": name_resolver(run_name),
    "cell_name": name_resolver(cell_name),
    "sweep_dir": sweep_directory,
    "keys": keys_text,
    "examples": examples_text,
    "own": own_options_text,
    "program": program_name,
}


def to_config(composed: DictConfig, overrides: Iterable[str] = ()) -> Config:
    """Return what Hydra composed as a checked `Config`; `overrides` are those that the user typed for this job.

    Errors are those of `checked_config`.
    """
    with translate_hydra_errors():
        plain = plain_tree(composed)
    return checked_config(plain, overrides)


def checked_config(plain: dict[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Return nested plain values as a checked `Config`.

    Args:
        plain: one value for every key of the schema.
        overrides: those that the user typed.

    Raises:
        UserError: a key or a value cannot be; the message names the key, the value and the remedy.
    """
    refuse_unknown_keys(plain)
    refuse_shape_keys(plain, overrides)
    return check_config(config_from_plain(plain))


def config_from_plain(plain: dict[str, Any]) -> Config:
    """Return the `Config` of nested dictionaries such as `Config.plain()` returns; extra keys are dropped."""

    def build(cls: Any, values: dict[str, Any]) -> Any:
        known = {f.name: f.type for f in fields(cls)}
        return cls(**{k: build(known[k], v) if is_dataclass(known[k]) else v for k, v in values.items() if k in known})

    return build(Config, plain)


def refuse_unknown_keys(plain: dict[str, Any]) -> None:
    """Refuse keys that `+key=…` added, and keys that `~key` took out: Hydra accepts both.

    Raises:
        UserError: there is such a key.
    """
    refuse_unknown_fields(plain, Config, "")
    for group in GROUPS:
        chosen = plain[group].get("name")
        expected = option_keys(group, chosen)
        if expected is None:
            continue
        extra = [key for key in plain[group] if key not in (*expected, "name")]
        if extra and chosen != "custom":
            own = [f"{group}.{key}" for key in expected]
            raise UserError(unknown_option_key_sentence(f"{group}.{extra[0]}", f"{group}={chosen}", own))
        if missing := [key for key in expected if key not in plain[group]]:
            raise UserError(
                f"{group}.{missing[0]} is missing for {group}={chosen}: "
                f"choose it by {group}={chosen}, and take none of its keys out with ~."
            )


def refuse_unknown_fields(values: dict[str, Any], cls: Any, prefix: str) -> None:
    """Refuse keys that the schema does not have.

    Raises:
        UserError: there is such a key.
    """
    known = {f.name: f.type for f in fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{prefix}{key} is not a key.{nearest_key(prefix + key, known_keys())} Leave it out.")
        if is_dataclass(known[key]):
            refuse_unknown_fields(value, known[key], f"{prefix}{key}.")


def refuse_shape_keys(plain: dict[str, Any], overrides: Iterable[str]) -> None:
    """Refuse depth, width or act for torchvision's models, which have their own.

    Raises:
        UserError: one is set.
    """
    if plain["model"]["name"] != "torchvision":
        return
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] in ("depth", "width", "act"):
            raise UserError(f"{key} cannot be set for model=torchvision, which has its own: leave {override} out.")


def compose_config(overrides: Sequence[str] = ()) -> Config:
    """Compose one configuration as the command line does, for Python and notebooks.

    >>> compose_config(["init=he_normal", "act=relu", "depth=3"]).init["name"]
    'he_normal'
    """
    register_config()
    rewritten = canonical_overrides(overrides)
    refuse_malformed(rewritten)
    with translate_hydra_errors(), isolated_hydra():
        composed = compose("config", overrides=rewritten)
    return to_config(composed, rewritten)


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Initialize Hydra with initlab's own files, and restore the state of a Hydra application around it."""
    with HYDRA_LOCK:
        outer = GlobalHydra.instance().hydra
        GlobalHydra.instance().hydra = None
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
                yield
        finally:
            GlobalHydra.instance().hydra = outer
