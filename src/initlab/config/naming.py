"""What a run is called, and the hash of what determines its result."""

import hashlib
import json
import re
from typing import Any

from initlab.config.schema import Config

# What may change without changing the result: where it runs, what is written down, what it is called.
INCIDENTAL = ("device", "threads", "log", "sweep", "race", "tune", "dry_run", "verdict")
INCIDENTAL_INSIDE = {"train": ("save", "trained_above"), "data": ("root",)}


def determining(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that determines the result."""
    plain = {k: v for k, v in config.plain().items() if k not in INCIDENTAL}
    return {
        k: {name: value for name, value in v.items() if name not in INCIDENTAL_INSIDE.get(k, ())}
        if isinstance(v, dict)
        else v
        for k, v in plain.items()
    }


def digest(config: Config) -> str:
    """Return the hash of what determines the result: equal for equal results, whatever the device, logs or names.

    >>> digest(Config(device="cpu")) == digest(Config(device="cuda")), digest(Config(seed=1)) == digest(Config())
    (True, False)
    """
    text = json.dumps(determining(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(config: Config) -> str:
    """Return the readable part of a directory's name: `<init>-<act>-d<depth>-s<seed>`.

    >>> run_name(Config())
    'glorot_uniform-tanh-d5-s0'
    """
    if config.model["name"] == "torchvision":
        parts = [config.init["name"], config.model.get("arch", "torchvision")]
    else:
        parts = [config.init["name"], config.act["name"], f"d{config.depth}"]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(map(str, [*parts, f"s{config.seed}"])))


def cell_name(config: Config) -> str:
    """Return the directory of a sweep's cell: the readable name and eight digits of the hash; a grown grid keeps it."""
    return f"{run_name(config)}-{digest(config)[:8]}"
