"""Names of runs, and the hash of what determines their result."""

import hashlib
import json
import re
from typing import Any

from initlab.config.option_files import option_values
from initlab.config.schema import GROUPS, Config
from initlab.system.imports import option_name

# Keys that do not change the result: where it runs, what is recorded, names.
INCIDENTAL = ("device", "threads", "log", "sweep", "race", "tune", "dry_run", "verdict")
INCIDENTAL_INSIDE = {"train": ("save", "trained_above"), "data": ("root",)}


def determining_values(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that determines the result."""
    plain = {k: v for k, v in config.plain().items() if k not in INCIDENTAL}
    return {
        k: {
            name: canonical_number(value, k, str(v.get("name")), name)
            for name, value in v.items()
            if name not in INCIDENTAL_INSIDE.get(k, ())
        }
        if isinstance(v, dict)
        else v
        for k, v in plain.items()
    }


def canonical_number(value: Any, group: str, option: str, key: str) -> Any:
    """Return a number of an option in one form, typed as 1 or as 1.0: a float where its default is one, else an int.

    >>> canonical_number(1, "optim", "sgd", "lr"), canonical_number(2.0, "init", "he_normal", "gain")
    (1.0, 2)
    """
    if group not in GROUPS or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance((option_values(group, option) or {}).get(key), float):
        return float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_incidental(key: str) -> bool:
    """Return whether a key, written with dots, does not change the result.

    >>> is_incidental("sweep.name"), is_incidental("train.save"), is_incidental("train.steps")
    (True, True, False)
    """
    group, _, leaf = key.partition(".")
    return group in INCIDENTAL or leaf in INCIDENTAL_INSIDE.get(group, ())


def config_hash(config: Config) -> str:
    """Return the hash of what determines the result; device, logs and names do not change it.

    >>> config_hash(Config(device="cpu")) == config_hash(Config(device="cuda"))
    True
    >>> config_hash(Config(seed=1)) == config_hash(Config())
    False
    """
    text = json.dumps(determining_values(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(config: Config) -> str:
    """Return the readable part of a directory's name: `<init>-<act>-d<depth>-s<seed>`.

    >>> run_name(Config())
    'glorot_uniform-tanh-d5-s0'
    >>> run_name(Config(init={"name": "custom", "target": "mine:half_he"}))
    'mine.half_he-tanh-d5-s0'
    """
    if config.model["name"] == "torchvision":
        parts = [option_name(config.init), config.model.get("arch", "torchvision")]
    else:
        parts = [option_name(config.init), option_name(config.act), f"d{config.depth}"]
    parts = [str(part).replace(":", ".") for part in parts]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(map(str, [*parts, f"s{config.seed}"])))


def cell_name(config: Config) -> str:
    """Return the name of a cell's directory: the readable name and eight digits of the hash."""
    return f"{run_name(config)}-{config_hash(config)[:8]}"
