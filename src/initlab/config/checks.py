"""Is this configuration one that can run? Every refusal names the key, the value and the remedy."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import Any

from initlab.config.aliases import KEY_WORDS
from initlab.config.schema import OPTION_KEYS, Config
from initlab.errors import UserError, nearest
from initlab.system.numbers import in_single, outside
from initlab.system.random_streams import LARGEST_SEED

PRECISIONS = ("fp32", "bf16", "fp64")
PLACES = ("none", "pre", "post")  # of a transformer's norms
NORMS = dict.fromkeys(("mlp", "cnn", "resmlp", "resnet"), ("none", "batch", "layer")) | {
    "vit": PLACES,
    "gpt": PLACES,
}
ALL_NORMS = tuple(dict.fromkeys(norm for own in NORMS.values() for norm in own))
OWN_SHAPE = ("torchvision", "custom")  # models whose depth and width may be their own


def number(value: Any) -> bool:
    """Is it a finite number, and no truth value?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def positive_int(value: Any) -> bool:
    """Is it a whole number of at least 1?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def count(value: Any) -> bool:
    """Is it a whole number of at least 0?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def positive(value: Any) -> bool:
    """Is it a finite number above 0?"""
    return number(value) and value > 0


def not_negative(value: Any) -> bool:
    """Is it a finite number of at least 0?"""
    return number(value) and value >= 0


def fraction(value: Any) -> bool:
    """Is it a number in [0, 1), in float32 too?"""
    return number(value) and 0 <= value < 1 - 2**-24


def optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Let null pass as well."""
    return lambda value: value is None or test(value)


def among(*choices: Any) -> Callable[[Any], bool]:
    """Is it one of these?"""
    return lambda value: value in choices


TRUTH = (lambda value: isinstance(value, bool), "true or false")


def inside(value: Any) -> bool:
    """Is it a name of a directory inside another one, with / between parts?

    >>> inside("depths"), inside("mine/depths"), inside("../depths"), inside("/depths"), inside("a\x1b")
    (True, True, False, False, False)
    """
    try:
        # Where the system's encoding knows no ë, Python holds the bytes of it as halves of surrogate pairs.
        value = value.encode("utf-8", "surrogateescape").decode()
    except (AttributeError, UnicodeError):
        return False
    if not value.isprintable() or "\\" in value or PureWindowsPath(value).anchor:
        return False
    return all(part.strip() and part.strip(". ") and len(part.encode()) < 256 for part in value.split("/"))


STEPS = "a whole number of steps"

# Counts beyond which a slip is likelier than the wish; what they would take is never given.
MOST = {"depth": 10**5, "train.steps": 10**9, "log.histograms": 10**5, "threads": 4096, "tune.seeds": 1000}
MOST_UNITS = 10**8

# key -> (test, what it must be, an example that works)
RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "depth": (optional(positive_int), "a whole number of at least 1 hidden layer", "depth=3"),
    "seed": (lambda v: count(v) and v <= LARGEST_SEED, "a whole number from 0 to 2^63 − 1", "seed=0"),
    "train.epochs": (positive, "a positive number of passes", "train.epochs=5"),
    "train.steps": (optional(positive_int), "a whole number of at least 1 update, or null", "train.steps=500"),
    "train.batch_size": (positive_int, "a whole number of at least 1 sample", "train.batch_size=128"),
    "train.target_loss": (optional(positive), "a positive loss, or null", "train.target_loss=0.3"),
    "train.trained_above": (
        optional(lambda v: number(v) and 0 < v <= 1),
        "an accuracy in (0, 1], or null",
        "train.trained_above=0.8",
    ),
    "train.save": (*TRUTH, "train.save=true"),
    "log.every": (positive_int, f"{STEPS}, at least 1", "log.every=10"),
    "log.histograms": (count, "a whole number of records, 0 for none", "log.histograms=10"),
    "log.eval_every": (optional(positive_int), f"{STEPS}, at least 1, or null", "log.eval_every=100"),
    "log.jacobian": (*TRUTH, "log.jacobian=true"),
    "log.tensorboard": (*TRUTH, "log.tensorboard=false"),
    "precision": (among(*PRECISIONS), f"one of {', '.join(PRECISIONS)}", "precision=fp32"),
    "threads": (lambda v: v == "auto" or positive_int(v), "auto or a whole number of at least 1", "threads=1"),
    "model.norm": (among(*ALL_NORMS), f"one of {', '.join(ALL_NORMS)}", "model.norm=batch"),
    "model.dropout": (fraction, "a probability in [0, 1)", "model.dropout=0.2"),
    "optim.lr": (not_negative, "a finite number of at least 0", "optim.lr=0.01"),
    "optim.momentum": (fraction, "a number in [0, 1)", "optim.momentum=0.9"),
    "optim.nesterov": (*TRUTH, "optim.nesterov=true"),
    "optim.beta1": (fraction, "a number in [0, 1)", "optim.beta1=0.9"),
    "optim.beta2": (fraction, "a number in [0, 1)", "optim.beta2=0.999"),
    "optim.alpha": (fraction, "a number in [0, 1)", "optim.alpha=0.99"),
    "optim.eps": (not_negative, "a finite number of at least 0", "optim.eps=1e-8"),
    "optim.weight_decay": (not_negative, "a finite number of at least 0", "optim.weight_decay=1e-4"),
    "optim.clip_norm": (optional(positive), "a positive norm, or null", "optim.clip_norm=1"),
    "optim.warmup": (count, f"{STEPS}, at least 0", "optim.warmup=100"),
    "optim.schedule": (among("constant", "cosine"), "constant or cosine", "optim.schedule=cosine"),
    "init.sigma_b": (optional(not_negative), "a standard deviation of at least 0, or null", "init.sigma_b=0.1"),
    "init.q_star": (optional(positive), "a positive second moment, or null", "init.q_star=0.01"),
    "sweep.root": (lambda v: isinstance(v, str) and bool(v.strip()), "a directory", "sweep.root=outputs/sweeps"),
    "sweep.name": (
        optional(lambda v: v == "" or inside(v)),
        "the name of a directory inside sweep.root, of letters, digits and signs that can be shown, without ..",
        "sweep.name=depths",
    ),
    "sweep.exclude": (lambda v: isinstance(v, list), "a list", "'sweep.exclude=[{init:zeros,act:relu}]'"),
    "sweep.grids": (lambda v: isinstance(v, list), "a list", "'sweep.grids=[{init:he_normal},{init:siren,act:sin}]'"),
    "sweep.order": (among("grid", "shuffle"), "grid or shuffle", "sweep.order=shuffle"),
    "sweep.impossible": (among("skip", "error"), "skip or error", "sweep.impossible=skip"),
    "sweep.max_group": (optional(positive_int), "a whole number of networks, or null", "sweep.max_group=64"),
    "sweep.memory": (
        optional(lambda v: positive(v) and v < 1e9),
        "a positive number of GiB (less than 10^9), or null",
        "sweep.memory=4",
    ),
    "sweep.checkpoint_every": (positive, "a positive number of seconds", "sweep.checkpoint_every=60"),
    "race": (*TRUTH, "race=true"),
    "tune.rates": (
        optional(lambda v: isinstance(v, list) and len(v) > 1 and all(map(positive, v)) and len(set(v)) == len(v)),
        "at least two different positive rates, or null",
        "'tune.rates=[0.01,0.03,0.1]'",
    ),
    "tune.seeds": (positive_int, "a whole number of at least 1 seed", "tune.seeds=3"),
    "dry_run": (*TRUTH, "dry_run=true"),
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
    for dotted, (test, _, example) in RULES.items():
        value = lookup(config, dotted)
        if value is not MISSING and not test(value):
            raise UserError(refusal(dotted, value, config.model["name"]))
        if dotted in MOST and isinstance(value, int) and value > MOST[dotted]:
            raise UserError(f"{dotted}={value} is more than {MOST[dotted]:,}: say for example {example}.")
    refuse_unheld(config)
    check_shape(config.model["name"], config.depth, config.width)
    return config


def refuse_unheld(config: Config) -> None:
    """Refuse numbers that vanish or overflow in float32, under any key but those of the user's own functions."""
    for group, values in config.plain().items():
        if not isinstance(values, dict) or values.get("name") == "custom":
            continue
        for key, value in values.items():
            if isinstance(value, float) and not in_single(value):
                raise UserError(f"{group}.{key}={value} cannot be: {outside(value)}.")
            if isinstance(value, int) and abs(value) > LARGEST_SEED:
                raise UserError(f"{group}.{key} has {len(str(abs(value)))} digits: give a number below 2^63.")


def refusal(dotted: str, value: Any, model: str = "") -> str:
    """Say that a value cannot be, what it must be (for the chosen model), and an example that works."""
    if dotted not in RULES:
        return f"{dotted}={typed(value)} has a value of the wrong kind."
    test, must, example = RULES[dotted]
    if isinstance(value, list) and value and all(map(test, value)):
        each = ",".join(map(typed, value))
        several = f"several values are written {dotted}={each}, in train.py with -m"
        return f"{dotted}={typed(value)} is a list, and must be {must}: {several}."
    if dotted == "model.norm" and model in NORMS:
        must, example = f"one of {', '.join(NORMS[model])} for model={model}", f"model.norm={NORMS[model][1]}"
    shown = repr(value) if isinstance(value, float) and "whole number" in must else typed(value)
    return f"{dotted}={shown} must be {must}: say for example {example}."


def typed(value: Any) -> str:
    """Write a value as it is typed on the command line.

    >>> typed(None), typed(True), typed([256, 128]), typed(0.0), typed("abc")
    ('null', 'true', '[256, 128]', '0', 'abc')
    >>> typed(0.9999999999)
    '0.9999999999'
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value or value != value else repr(value)


def check_shape(model: str, depth: int | None, width: Any) -> None:
    """Accept a width that fits the depth: a positive whole number, or a list of `depth` of them; null where it may."""
    for key, value, example in (("depth", depth, 3), ("width", width, 128)):
        if value is None and model not in OWN_SHAPE:
            raise UserError(
                f"{key}=null cannot be for model={model}, which needs one: say for example {key}={example}."
            )
    if width is None or (positive_int(width) and width <= MOST_UNITS):
        return
    if positive_int(width):
        raise UserError(f"width={width} is more than {MOST_UNITS:,}: say for example width=128.")
    if not isinstance(width, (list, tuple)):
        raise UserError(
            f"width={typed(width)} must be a whole number of at least 1 unit, or a list of them: "
            "say for example width=128."
        )
    if not len(width):
        raise UserError(
            "width=[] lists no layer: give a number, or one for each hidden layer: say for example width=128."
        )
    if depth is not None and len(width) != depth:
        raise UserError(
            f"width={list(width)} lists {len(width)} layers but depth={depth}: "
            f"say depth={len(width)}, or give a single number."
        )
    if bad := [w for w in width if not (positive_int(w) and w <= MOST_UNITS)]:
        raise UserError(
            f"width={list(width)} holds {typed(bad[0])}: every width is a whole number of at least 1 unit, "
            "for example 'width=[256,128]'."
        )


def known_keys() -> list[str]:
    """List every dotted key of the schema and the common ones of its groups."""

    def walk(cls: Any, prefix: str) -> list[str]:
        found = []
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.type):
                found += walk(f.type, f"{prefix}{f.name}.")
            else:
                found.append(prefix + f.name)
        return found

    return [*walk(Config, ""), *OPTION_KEYS]


def nearest_key(name: str, keys: list[str]) -> str:
    """Return `" Did you mean 'train.epochs'?"`: by the whole key, its last part, or another word for it.

    >>> nearest_key("trian.epochs", ["train.epochs", "seed"]), nearest_key("lr", ["optim.lr", "depth"])
    (" Did you mean 'train.epochs'?", " Did you mean 'optim.lr'?")
    >>> nearest_key("scheme", ["init", "act"])
    " Did you mean 'init'?"
    """
    if (word := KEY_WORDS.get(name.lower())) in keys:
        return f" Did you mean {word!r}?"
    leaf = name.rpartition(".")[2]
    same_leaf = [key for key in keys if key != name and key.rpartition(".")[2] == leaf]
    return nearest(same_leaf[0], same_leaf) if same_leaf else nearest(name, keys)
