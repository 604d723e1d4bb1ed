"""The cells of a grid: which ones are run, whether each can exist, and what identifies it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from initlab.config import Config
from initlab.config.checks import command_line_text
from initlab.config.grid import hydra_literal
from initlab.config.naming import cell_name, config_hash, determining_values, run_name
from initlab.config.option_files import option_names
from initlab.config.overrides import canonical_option
from initlab.config.schema import GROUPS
from initlab.errors import UserError, did_you_mean
from initlab.records import flatten
from initlab.system.imports import is_target
from initlab.system.streams import print_stderr

# Keys of `optim` whose values may differ between networks that train together; `init` and `seed` may as a whole.
PER_NETWORK_KEYS = ("lr", "weight_decay", "clip_norm")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: `number` is its position in the grid, `reason` why it cannot exist (None: it can)."""

    number: int
    config: Config
    directory: Path
    hash: str
    reason: str | None = None

    @cached_property
    def group_key(self) -> str:
        """The text that is equal for cells that may train together."""
        return group_key(self.config)


def select_cells(configs: Sequence[Config], repeats: bool = False) -> list[int]:
    """Return the positions of the cells that `sweep.exclude` leaves in the grid.

    Args:
        configs: the whole grid.
        repeats: keep the first of equal cells, which come where sub-grids overlap; otherwise equal cells are refused.

    Raises:
        UserError: cells disagree about the sweep, a rule names what no cell has, two cells are one run, or no cell is
            left.
    """
    first = configs[0]
    flat = [flatten(config.plain()) for config in configs]
    for key in (key for key in flat[0] if key.startswith("sweep.") or key == "dry_run"):
        for values in flat:
            if values[key] != flat[0][key]:
                raise UserError(
                    f"{key} is {command_line_text(flat[0][key])} in one cell and {command_line_text(values[key])} in "
                    "another, and concerns the grid as a whole: give it a single value."
                )
    rules = [parse_exclude_rule(rule, flat) for rule in first.sweep.exclude]
    for text, rule in zip(first.sweep.exclude, rules, strict=True):
        if not any(matches_rule(values, rule) for values in flat):
            print_stderr(f"initlab: sweep.exclude: no cell of the grid matches {hydra_literal(text)}.")
    kept = [k for k, values in enumerate(flat) if not any(matches_rule(values, rule) for rule in rules)]
    if not kept:
        raise UserError(f"sweep.exclude={first.sweep.exclude} leaves no cell to run: take a rule out.")
    by_hash: dict[str, int] = {}
    for k in kept:
        if by_hash.setdefault(config_hash(configs[k]), k) != k and not repeats:
            raise UserError(f"two cells of the grid are the same run ({run_name(configs[k])}): leave one out.")
    return sorted(by_hash.values())


def parse_exclude_rule(rule: Any, flat: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return a rule of `sweep.exclude` as key -> values.

    Args:
        rule: as the user wrote it.
        flat: the configurations of all cells, with dotted keys.

    Raises:
        UserError: the rule is not a mapping, or can never match.
    """
    if not isinstance(rule, Mapping) or not rule:
        raise UserError(
            f"sweep.exclude holds {rule!r}, which is no rule: each is a mapping of keys to values or lists, "
            "for example 'sweep.exclude=[{init:[zeros,ones],act:relu}]'."
        )
    known = {key for values in flat for key in values}
    parsed = {}
    for key, values in rule.items():
        if key not in known:
            raise UserError(f"sweep.exclude names {key}, which no cell of the grid has.{did_you_mean(str(key), known)}")
        several = isinstance(values, (list, tuple))
        parsed[key] = list(values) if several else [values]
        if several and parsed[key] and any(cell.get(key) == parsed[key] for cell in flat):
            each = " and ".join(f"{{{key}: {hydra_literal(value)}}}" for value in dict.fromkeys(parsed[key]))
            raise UserError(
                f"sweep.exclude names {key}: {hydra_literal(parsed[key])}, which may be one value or several: write "
                f"{{{key}: [{hydra_literal(parsed[key])}]}} for the one, the rules {each} for the others."
            )
        if key in GROUPS:
            parsed[key] = [canonical_option(key, str(value)) for value in parsed[key]]
            if "custom" in parsed[key]:  # all that is the user's own
                parsed[key] += sorted({v for values in flat if is_target(v := str(values[key]))})
            for value in parsed[key]:
                if value not in option_names(key) and not is_target(value):
                    raise UserError(
                        f"sweep.exclude names {key}={value}, which is unknown.{did_you_mean(value, option_names(key))}"
                    )
    return parsed


def matches_rule(values: Mapping[str, Any], rule: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether a cell has, for every key of a rule, one of the rule's values.

    >>> matches_rule({"init": "zeros", "optim.lr": 0.1}, {"init": ["zeros", "ones"], "optim.lr": [0.1]})
    True
    """
    return all(key in values and values[key] in allowed for key, allowed in rule.items())


def check_cells(configs: Sequence[Config], directories: Sequence[Path]) -> list[Cell]:
    """Return the cells of a grid, each with the reason why it cannot exist; write nothing.

    Args:
        configs: the grid.
        directories: one for each cell.

    Raises:
        UserError: two cells share a directory, no cell can exist, or with `sweep.impossible=error` some cannot.
    """
    if len({*directories}) < len(directories):
        raise UserError("two cells of the grid have the same directory: leave hydra.sweep.subdir as it is.")
    reasons: dict[str, str | None] = {}
    cells: list[Cell] = []
    for number, (config, directory) in enumerate(zip(configs, directories, strict=True)):
        key = network_key(config)
        if key not in reasons:
            reasons[key] = cell_refusal(config)
        cells.append(Cell(number, config, directory, config_hash(config), reasons[key]))
    refused = [cell.reason for cell in cells if cell.reason]
    if len(refused) == len(cells):
        raise UserError(refused[0])
    if refused and configs[0].sweep.impossible == "error":
        raise UserError(f"{refused[0]} With sweep.impossible=skip such cells are left out ({len(refused)} here).")
    return cells


def cell_refusal(config: Config) -> str | None:
    """Return why a cell cannot exist, or None.

    Raises:
        UserError: it is wrong rather than impossible.
    """
    from initlab.experiment.build import config_refusal

    try:
        return config_refusal(config)
    except UserError:
        raise
    except Exception:
        # A bug in the user's own code: the run meets it again and records it with its traceback.
        return None


def network_key(config: Config) -> str:
    """Return a text that is equal for cells whose networks are built alike and draw from the same scheme."""
    plain = determining_values(config)
    plain.pop("seed")
    plain["optim"] = {k: v for k, v in plain["optim"].items() if k not in PER_NETWORK_KEYS}
    return json.dumps([plain, config.device], sort_keys=True, default=str)


def group_key(config: Config) -> str:
    """Return a text that is equal for cells that may train together.

    >>> group_key(Config(seed=1, init={"name": "zeros"})) == group_key(Config()), group_key(Config(depth=3))[:12]
    (True, '{"act": {"na')
    """
    from initlab.experiment.initialization import procedure_of

    plain = {k: v for k, v in config.plain().items() if k not in ("init", "seed", "sweep", "dry_run")}
    plain["optim"] = {k: v for k, v in plain["optim"].items() if k not in PER_NETWORK_KEYS}
    procedure = procedure_of(config)
    if procedure is not None and "architecture" in procedure.needs:
        plain["init"] = config.init
    return json.dumps(plain, sort_keys=True, default=str)


def cell_directories(configs: Sequence[Config], directory: Path) -> list[Path]:
    """Return the directory of each cell of a sweep: its readable name and eight digits of its hash."""
    return [directory / cell_name(config) for config in configs]


def cells_by_key(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Collect cells that may train together, in the order of their first ones."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group_key, []).append(cell)
    return list(groups.values())
