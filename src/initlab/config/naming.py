"""What a run is called, and the hash of what determines its result."""

import hashlib
import json
import re
from typing import Any

from initlab.config.option_files import option_values
from initlab.config.schema import GROUPS, Config
from initlab.system.imports import option_name

# What may change without changing the result: where it runs, what is written down, what it is called.
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
    """Write a number of an option in one form, whether it was typed as 1 or 1.0: that of its default, else the shorter.

    >>> canonical_number(1, "optim", "sgd", "lr"), canonical_number(2.0, "init", "he_normal", "gain")
    (1.0, 2)
    """
    if group not in GROUPS or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if isinstance((option_values(group, option) or {}).get(key), float):
        return float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_incidental(key: str) -> bool:
    """Has a key, written with dots, no say in the result?

    >>> is_incidental("sweep.name"), is_incidental("train.save"), is_incidental("train.steps")
    (True, True, False)
    """
    group, _, leaf = key.partition(".")
    return group in INCIDENTAL or leaf in INCIDENTAL_INSIDE.get(group, ())


def config_hash(config: Config) -> str:
    """Return the hash of what determines the result: equal for equal results, whatever the device, logs or names.

    >>> config_hash(Config(device="cpu")) == config_hash(Config(device="cuda")), config_hash(Config(seed=1)) == config_hash(Config())
    (True, False)
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
    """Return the directory of a sweep's cell: the readable name and eight digits of the hash; a grown grid keeps it."""
    return f"{run_name(config)}-{config_hash(config)[:8]}"
