"""Is this configuration one that can run? Every refusal names the key, the value and the remedy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from initlab.config.schema import Config
from initlab.errors import UserError, nearest

PRECISIONS = ("fp32", "bf16", "fp64")


def positive_int(value: Any) -> bool:
    """Is it a whole number of at least 1?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def positive(value: Any) -> bool:
    """Is it a finite number above 0?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def not_negative(value: Any) -> bool:
    """Is it a finite number of at least 0?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Let null pass as well."""
    return lambda value: value is None or test(value)


def among(*choices: Any) -> Callable[[Any], bool]:
    """Is it one of these?"""
    return lambda value: value in choices


# key -> (test, what it must be, an example that works)
RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "depth": (optional(positive_int), "a whole number of at least 1 hidden layer", "depth=3"),
    "train.epochs": (positive, "a positive number of passes", "train.epochs=5"),
    "train.steps": (optional(positive_int), "a whole number of at least 1 update", "train.steps=500"),
    "train.batch_size": (positive_int, "a whole number of at least 1 sample", "train.batch_size=128"),
    "train.target_loss": (optional(positive), "a positive loss or null", "train.target_loss=0.3"),
    "log.every": (positive_int, "a whole number of at least 1 step", "log.every=10"),
    "log.histograms": (
        lambda v: v == 0 or positive_int(v),
        "a whole number of records, 0 for none",
        "log.histograms=10",
    ),
    "log.eval_every": (optional(positive_int), "a whole number of steps or null", "log.eval_every=100"),
    "precision": (among(*PRECISIONS), f"one of {', '.join(PRECISIONS)}", "precision=fp32"),
    "threads": (lambda v: v == "auto" or positive_int(v), "auto or a whole number of at least 1", "threads=1"),
    "optim.lr": (not_negative, "a finite number of at least 0", "optim.lr=0.01"),
    "optim.weight_decay": (not_negative, "a finite number of at least 0", "optim.weight_decay=1e-4"),
    "optim.clip_norm": (optional(positive), "a positive norm or null", "optim.clip_norm=1"),
    "optim.warmup": (lambda v: v == 0 or positive_int(v), "a whole number of steps", "optim.warmup=100"),
    "optim.schedule": (among("constant", "cosine"), "constant or cosine", "optim.schedule=cosine"),
    "init.sigma_b": (optional(not_negative), "a standard deviation of at least 0", "init.sigma_b=0.1"),
    "sweep.order": (among("grid", "shuffle"), "grid or shuffle", "sweep.order=shuffle"),
    "sweep.impossible": (among("skip", "error"), "skip or error", "sweep.impossible=skip"),
    "sweep.checkpoint_every": (positive, "a positive number of seconds", "sweep.checkpoint_every=60"),
}
MISSING = object()


def lookup(config: Config, dotted: str) -> Any:
    """Find `optim.lr` in dataclasses and dictionaries alike; MISSING where an option has no such key."""
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else getattr(value, part, MISSING)
        if value is MISSING:
            return MISSING
    return value


def check(config: Config) -> Config:
    """Return the configuration if it can run; raises UserError, one sentence with the remedy, if it cannot."""
    for dotted, (test, must, example) in RULES.items():
        value = lookup(config, dotted)
        if value is not MISSING and not test(value):
            raise UserError(f"{dotted}={value!r} must be {must}: say for example {example}.")
    check_width(config.width, config.depth)
    return config


def check_width(width: Any, depth: int | None) -> None:
    """Accept a positive whole number, a list of them of length `depth`, or null where the model has its own."""
    if width is None or positive_int(width):
        return
    if not isinstance(width, (list, tuple)):
        raise UserError(f"width={width!r} must be a whole number of at least 1 unit, or a list: say width=128.")
    if depth is not None and len(width) != depth:
        raise UserError(
            f"width={list(width)} lists {len(width)} layers but depth={depth}: "
            f"say depth={len(width)}, or give a single number."
        )
    if bad := [w for w in width if not positive_int(w)]:
        raise UserError(f"width={list(width)} holds {bad[0]!r}: every width is a whole number of at least 1 unit.")


def known_keys() -> list[str]:
    """List every dotted key of the schema (the options of groups aside)."""

    def walk(cls: Any, prefix: str) -> list[str]:
        found = []
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.type):
                found += walk(f.type, f"{prefix}{f.name}.")
            else:
                found.append(prefix + f.name)
        return found

    return walk(Config, "")


def unknown_key(name: str, extra: list[str]) -> str:
    """Say which key was probably meant, among the schema's and the chosen options' own."""
    return nearest(name, [*known_keys(), *extra])
