"""Expand a grid into jobs: products of lists, ranges and globs, for each sub-grid; and compose them."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.types import RunMode
from omegaconf import OmegaConf

from initlab.config.compose import checked_config, isolated_hydra, register_config, to_config
from initlab.config.fast_compose import Composer
from initlab.config.hydra_errors import interval_sentence, translate_hydra_errors
from initlab.config.overrides import LIST_KEYS, canonical_overrides, defer_option_keys, refuse_malformed
from initlab.config.schema import Config
from initlab.config.typing_slips import refuse_slips
from initlab.errors import UserError
from initlab.system.imports import CONTRACTS, is_target, option_name, target_of

LAYER_WIDTH_MODELS = ("mlp", "cnn", "custom")  # models that accept a list of widths, one for each layer
GRID_KEYS = ("sweep", "dry_run", "hydra", "race")  # keys of the grid as a whole


def expand_grid(
    loader: ConfigLoader,
    arguments: Sequence[str],
    params: Mapping[str, str],
    grids: Sequence[Any],
    shape: Mapping[str, Any] = MappingProxyType({}),
) -> list[list[str]]:
    """Return the overrides of every job: the product of all that is swept, for each sub-grid.

    Args:
        loader: Hydra's, for globs.
        arguments: overrides of the command line; they win over the next two, key by key.
        params: `hydra.sweeper.params`, of an experiment's file.
        grids: `sweep.grids`.
        shape: depth and model of a job that does not set them.

    Raises:
        UserError: a sub-grid is no mapping, a list in it may be one value or several, or there is no job.
    """
    if not isinstance(params, Mapping) or not all(isinstance(value, str) for value in params.values()):
        raise UserError(f"hydra.sweeper.params={params} must map keys to texts, as in seed: 0,1 in an experiment.")
    parser = OverridesParser.create(config_loader=loader)
    defaults = [f"{key}={value}" for key, value in params.items()]
    jobs: list[list[str]] = []
    for grid in grids or [{}]:
        if not isinstance(grid, Mapping) or not (grid or not grids):
            raise UserError(
                f"sweep.grids holds {grid!r}, which is no sub-grid: each is a mapping of keys to values or lists, "
                "for example 'sweep.grids=[{init:he_normal,act:relu},{init:siren,act:sin}]'."
            )
        for key in map(str, grid):
            if key.lstrip("+~").partition(".")[0] in GRID_KEYS:
                raise UserError(
                    f"sweep.grids holds {key} in a sub-grid, but it is of the whole grid: set it outside sweep.grids."
                )
        own = canonical_overrides(override_text(str(key), value) for key, value in grid.items())
        refuse_malformed(own)
        choices: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*defaults, *own, *arguments]):
            key = override.get_key_element()
            choices[key] = [f"{key}={value}" for value in swept_values(override)]
        for job in map(list, itertools.product(*choices.values())):
            refuse_ambiguous_widths(
                grid.get("width"), {**shape, **dict(o.lstrip("+").partition("=")[::2] for o in job)}
            )
            jobs.append(job)
    if not jobs:
        raise UserError("the grid is empty: a glob, a range or a list matched nothing.")
    return jobs


def refuse_ambiguous_widths(widths: Any, cell: Mapping[str, Any]) -> None:
    """Refuse a list of numbers that may be the widths of one network's layers, or of several networks.

    Args:
        widths: value of `width` in a sub-grid.
        cell: depth and model of one of its cells.

    Raises:
        UserError: the list has as many numbers as the network layers.

    >>> refuse_ambiguous_widths([16, 8], {"depth": 3, "model": "mlp"})
    """
    flat = (
        isinstance(widths, (list, tuple)) and len(widths) > 1 and not any(isinstance(w, (list, tuple)) for w in widths)
    )
    model = str(cell.get("model"))
    if flat and (model in LAYER_WIDTH_MODELS or is_target(model)) and str(cell.get("depth")) == str(len(widths)):
        several = ",".join(map(str, widths))
        raise UserError(
            f"width={list(widths)} may be one network of depth {len(widths)} or a network of each width: "
            f"write [{list(widths)}] for the one, 'choice({several})' for the others."
        )


def default_shape(master: Any) -> dict[str, Any]:
    """Return depth and model of a composed configuration."""
    return {"depth": master.depth, "model": option_name(master.model)}


def compose_grid(overrides: Sequence[str]) -> tuple[list[Config], Path]:
    """Compose and check every job of a grid as `train.py -m` does; return them and the directory of the sweep.

    >>> configs, directory = compose_grid(["init=glob(he_*)", "seed=0,1", "sweep.name=two"])
    >>> [(config.init["name"], config.seed) for config in configs], directory.name
    ([('he_normal', 0), ('he_normal', 1), ('he_uniform', 0), ('he_uniform', 1)], 'two')
    """
    register_config()
    refuse_slips(overrides)
    rewritten = canonical_overrides(overrides)
    refuse_malformed(rewritten)
    rewritten = defer_option_keys(rewritten)
    with translate_hydra_errors(), isolated_hydra():
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", rewritten, RunMode.MULTIRUN, from_shell=False)
        grids = OmegaConf.to_container(master.sweep.grids, resolve=True)
        assert isinstance(grids, list)
        jobs = expand_grid(
            loader, master.hydra.overrides.task, master.hydra.sweeper.params or {}, grids, default_shape(master)
        )
        composer, configs = Composer(loader, master), []
        for job in jobs:
            values = composer.values(job)
            configs.append(to_config(composer.job(job, 0), job) if values is None else checked_config(values[0], job))
    return configs, Path(composer.directory).absolute()


def swept_values(override: Override) -> list[str]:
    """Return the values of an override, one where it is not swept; `custom`, the user's own, matches no glob.

    Raises:
        UserError: a glob matches nothing, or it is an interval, whose values cannot be listed.
    """
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.value_type is ValueType.INTERVAL_SWEEP:
        raise UserError(interval_sentence(str(override.input_line)))
    values = list(override.sweep_string_iterator())
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        values = [name for name in values if name != "custom"]
    if not values:
        raise UserError(
            f"{override.input_line} matches no option: write for example {override.key_or_group}='glob(*)'."
        )
    return values


def override_text(key: str, value: Any) -> str:
    """Return `key=value` for Hydra: a list or range is swept; a text is left as typed, so that it may sweep as well.

    >>> override_text("depth", [3, 10]), override_text("seed", range(3)), override_text("init", "glob(*)")
    ('depth=3,10', 'seed=0,1,2', 'init=glob(*)')
    >>> override_text("width", [[256, 128], 64]), override_text("optim.clip_norm", None)
    ('width=[256,128],64', 'optim.clip_norm=null')
    >>> override_text("init", ["he_normal", hydra_literal])
    'init=he_normal,initlab.config.grid:hydra_literal'
    >>> override_text("sweep.exclude", [{"init": "zeros"}])
    'sweep.exclude=[{init:zeros}]'

    Args:
        key: with dots.
        value: of any type that the key has, or several.

    Raises:
        UserError: it is a mapping or an empty list.
    """
    if isinstance(value, Mapping):
        raise UserError(f"{key}={dict(value)!r} cannot be one value of a grid: write its keys with dots, {key}.name=….")
    if isinstance(value, str):
        return f"{key}={value}"
    if key in LIST_KEYS:  # the list itself is the value
        return f"{key}={hydra_literal(list(value))}"
    values = list(value) if isinstance(value, Iterable) and not callable(value) else [value]
    if not values:
        raise UserError(f"{key} is given an empty list: there is nothing to sweep.")
    if key in CONTRACTS:  # the user's own may be given as the function itself
        values = [target_of(each, key) if callable(each) else each for each in values]
    return f"{key}={','.join(map(hydra_literal, values))}"


def hydra_literal(value: Any) -> str:
    """Return one value in Hydra's grammar.

    >>> hydra_literal(True), hydra_literal(0.1), hydra_literal("he_normal"), hydra_literal({"init": ["zeros", "it's"]})
    ('true', '0.1', 'he_normal', "{init:[zeros,'it\\\\'s']}")
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{hydra_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return (
            value
            if value.translate(dict.fromkeys(map(ord, "_.-/:"))).isalnum()
            else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_literal, value)) + "]"
    return str(value.item() if hasattr(value, "item") else value)
