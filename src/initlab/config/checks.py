"""The rules of every key; each refusal names the key, the value and the remedy."""

import math
from collections.abc import Callable
from pathlib import PureWindowsPath
from typing import Any

from initlab.config.aliases import KEY_ALIASES
from initlab.config.option_files import option_choices, option_names
from initlab.config.schema import Config
from initlab.errors import UserError, did_you_mean
from initlab.system.numbers import MAX_SEED, describe_float32_limit, fits_float32

PRECISIONS = ("fp32", "bf16", "fp64")
# The records in `models` say the same, but load torch; the option files stand for them here, and a test compares them.
MODEL_NORMS = {name: norms for name in option_names("model") if (norms := option_choices("model", name, "norm"))}
NORM_NAMES = tuple(dict.fromkeys(norm for own in MODEL_NORMS.values() for norm in own))
OWN_SHAPE_MODELS = ("torchvision", "custom")  # models whose depth and width may be their own


def is_finite_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def is_positive(value: Any) -> bool:
    """Return whether a value is a finite number above 0."""
    return is_finite_number(value) and value > 0


def is_not_negative(value: Any) -> bool:
    """Return whether a value is a finite number of at least 0."""
    return is_finite_number(value) and value >= 0


def is_positive_int(value: Any) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and is_positive(value)


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of at least 0."""
    return isinstance(value, int) and is_not_negative(value)


def is_fraction(value: Any) -> bool:
    """Return whether a value is a number in [0, 1), in float32 too."""
    return is_not_negative(value) and value < 1 - 2**-24


def or_none(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test that None passes as well."""
    return lambda value: value is None or test(value)


def one_of(*choices: Any) -> Callable[[Any], bool]:
    """Return a test that these values pass."""
    return lambda value: value in choices


BOOLEAN_RULE = (lambda value: isinstance(value, bool), "true or false")


def is_relative_path(value: Any) -> bool:
    """Return whether a value names a directory inside another one, with / between parts.

    >>> [is_relative_path(name) for name in ("depths", "mine/depths", "../depths", "/depths", "a\x1b")]
    [True, True, False, False, False]
    """
    try:
        # Where the system's encoding lacks ë, Python holds its bytes as halves of surrogate pairs.
        value = value.encode("utf-8", "surrogateescape").decode()
    except (AttributeError, UnicodeError):
        return False
    if not value.isprintable() or "\\" in value or PureWindowsPath(value).anchor:
        return False
    return all(part.strip() and part.strip(". ") and len(part.encode()) < 256 for part in value.split("/"))


STEPS_TEXT = "a whole number of steps"

# Larger counts are refused as typing errors: no machine could run them.
MAX_COUNTS = {"depth": 10**5, "train.steps": 10**9, "log.histograms": 10**5, "threads": 4096, "tune.seeds": 1000}
MAX_WIDTH = 10**8

# key -> (test, what it must be, an example that works)
RULES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "depth": (or_none(is_positive_int), "a whole number of at least 1 hidden layer", "depth=3"),
    "seed": (lambda v: is_count(v) and v <= MAX_SEED, "a whole number from 0 to 2^63 − 1", "seed=0"),
    "train.epochs": (is_positive, "a positive number of passes", "train.epochs=5"),
    "train.steps": (or_none(is_positive_int), "a whole number of at least 1 update, or null", "train.steps=500"),
    "train.batch_size": (is_positive_int, "a whole number of at least 1 sample", "train.batch_size=128"),
    "train.target_loss": (or_none(is_positive), "a positive loss, or null", "train.target_loss=0.3"),
    "train.trained_above": (
        or_none(lambda v: is_finite_number(v) and 0 < v <= 1),
        "an accuracy in (0, 1], or null",
        "train.trained_above=0.8",
    ),
    "train.save": (*BOOLEAN_RULE, "train.save=true"),
    "log.every": (is_positive_int, f"{STEPS_TEXT}, at least 1", "log.every=10"),
    "log.histograms": (is_count, "a whole number of records, 0 for none", "log.histograms=10"),
    "log.eval_every": (or_none(is_positive_int), f"{STEPS_TEXT}, at least 1, or null", "log.eval_every=100"),
    "log.jacobian": (*BOOLEAN_RULE, "log.jacobian=true"),
    "log.tensorboard": (*BOOLEAN_RULE, "log.tensorboard=false"),
    "precision": (one_of(*PRECISIONS), f"one of {', '.join(PRECISIONS)}", "precision=fp32"),
    "threads": (lambda v: v == "auto" or is_positive_int(v), "auto or a whole number of at least 1", "threads=1"),
    "model.norm": (one_of(*NORM_NAMES), f"one of {', '.join(NORM_NAMES)}", "model.norm=batch"),
    "model.dropout": (is_fraction, "a probability in [0, 1)", "model.dropout=0.2"),
    "optim.lr": (is_not_negative, "a finite number of at least 0", "optim.lr=0.01"),
    "optim.momentum": (is_fraction, "a number in [0, 1)", "optim.momentum=0.9"),
    "optim.nesterov": (*BOOLEAN_RULE, "optim.nesterov=true"),
    "optim.beta1": (is_fraction, "a number in [0, 1)", "optim.beta1=0.9"),
    "optim.beta2": (is_fraction, "a number in [0, 1)", "optim.beta2=0.999"),
    "optim.alpha": (is_fraction, "a number in [0, 1)", "optim.alpha=0.99"),
    "optim.eps": (is_not_negative, "a finite number of at least 0", "optim.eps=1e-8"),
    "optim.weight_decay": (is_not_negative, "a finite number of at least 0", "optim.weight_decay=1e-4"),
    "optim.clip_norm": (or_none(is_positive), "a positive norm, or null", "optim.clip_norm=1"),
    "optim.warmup": (is_count, f"{STEPS_TEXT}, at least 0", "optim.warmup=100"),
    "optim.schedule": (one_of("constant", "cosine"), "constant or cosine", "optim.schedule=cosine"),
    "init.sigma_b": (or_none(is_not_negative), "a standard deviation of at least 0, or null", "init.sigma_b=0.1"),
    "init.q_star": (or_none(is_positive), "a positive second moment, or null", "init.q_star=0.01"),
    "sweep.root": (lambda v: isinstance(v, str) and bool(v.strip()), "a directory", "sweep.root=outputs/sweeps"),
    "sweep.name": (
        or_none(lambda v: v == "" or is_relative_path(v)),
        "the name of a directory inside sweep.root, of letters, digits and signs that can be shown, without ..",
        "sweep.name=depths",
    ),
    "sweep.exclude": (lambda v: isinstance(v, list), "a list", "'sweep.exclude=[{init:zeros,act:relu}]'"),
    "sweep.grids": (lambda v: isinstance(v, list), "a list", "'sweep.grids=[{init:he_normal},{init:siren,act:sin}]'"),
    "sweep.order": (one_of("grid", "shuffle"), "grid or shuffle", "sweep.order=shuffle"),
    "sweep.impossible": (one_of("skip", "error"), "skip or error", "sweep.impossible=skip"),
    "sweep.max_group": (or_none(is_positive_int), "a whole number of networks, or null", "sweep.max_group=64"),
    "sweep.memory": (
        or_none(lambda v: is_positive(v) and v < 1e9),
        "a positive number of GiB (less than 10^9), or null",
        "sweep.memory=4",
    ),
    "sweep.checkpoint_every": (is_positive, "a positive number of seconds", "sweep.checkpoint_every=60"),
    "race": (*BOOLEAN_RULE, "race=true"),
    "tune.rates": (
        or_none(lambda v: isinstance(v, list) and len(v) > 1 and all(map(is_positive, v)) and len(set(v)) == len(v)),
        "at least two different positive rates, or null",
        "'tune.rates=[0.01,0.03,0.1]'",
    ),
    "tune.seeds": (is_positive_int, "a whole number of at least 1 seed", "tune.seeds=3"),
    "dry_run": (*BOOLEAN_RULE, "dry_run=true"),
}
MISSING = object()


def value_of_key(config: Config, dotted: str) -> Any:
    """Return the value of a key such as `optim.lr`; MISSING where the chosen option has no such key."""
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else getattr(value, part, MISSING)
        if value is MISSING:
            return MISSING
    return value


def check_config(config: Config) -> Config:
    """Return the configuration if every value can be.

    Raises:
        UserError: one cannot; the message names the key, the value and the remedy.
    """
    for dotted, (test, _, example) in RULES.items():
        value = value_of_key(config, dotted)
        if value is not MISSING and not test(value):
            raise UserError(refusal_text(dotted, value, config.model["name"]))
        if dotted in MAX_COUNTS and isinstance(value, int) and value > MAX_COUNTS[dotted]:
            raise UserError(f"{dotted}={value} is more than {MAX_COUNTS[dotted]:,}: say for example {example}.")
    check_float32_range(config)
    check_shape(config.model["name"], config.depth, config.width)
    return config


def check_float32_range(config: Config) -> None:
    """Check that no number vanishes or overflows in float32; keys of the user's own functions are not checked.

    Raises:
        UserError: one does.
    """
    for group, values in config.plain().items():
        if not isinstance(values, dict) or values.get("name") == "custom":
            continue
        for key, value in values.items():
            if isinstance(value, float) and not fits_float32(value):
                raise UserError(f"{group}.{key}={value} cannot be: {describe_float32_limit(value)}.")
            if isinstance(value, int) and abs(value) > MAX_SEED:
                raise UserError(f"{group}.{key} has {len(str(abs(value)))} digits: give a number below 2^63.")


def refusal_text(dotted: str, value: Any, model: str = "") -> str:
    """Return the sentence that a value cannot be, with what it must be, for the chosen model, and an example."""
    if dotted not in RULES:
        return f"{dotted}={command_line_text(value)} has a value of the wrong kind."
    test, must, example = RULES[dotted]
    if isinstance(value, list) and value and all(map(test, value)):
        each = ",".join(map(command_line_text, value))
        return (
            f"{dotted}={command_line_text(value)} is a list, and must be {must}: "
            f"several values are written {dotted}={each}, in train.py with -m."
        )
    if dotted == "model.norm" and model in MODEL_NORMS:
        must, example = (
            f"one of {', '.join(MODEL_NORMS[model])} for model={model}",
            f"model.norm={MODEL_NORMS[model][1]}",
        )
    text = repr(value) if isinstance(value, float) and "whole number" in must else command_line_text(value)
    return f"{dotted}={text} must be {must}: say for example {example}."


def command_line_text(value: Any) -> str:
    """Return a value as it is typed on the command line.

    >>> [command_line_text(value) for value in (None, True, [256, 128], 0.0, "abc", 0.9999999999)]
    ['null', 'true', '[256, 128]', '0', 'abc', '0.9999999999']
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value or value != value else repr(value)


def check_shape(model: str, depth: int | None, width: Any) -> None:
    """Check depth and width: a width is a positive whole number, or a list of `depth` of them.

    Raises:
        UserError: they cannot be, or one is null though the model needs it.
    """
    for key, value, example in (("depth", depth, 3), ("width", width, 128)):
        if value is None and model not in OWN_SHAPE_MODELS:
            raise UserError(
                f"{key}=null cannot be for model={model}, which needs one: say for example {key}={example}."
            )
    widths = width if isinstance(width, (list, tuple)) else [] if width is None else [width]
    bad = [each for each in widths if not is_positive_int(each) or each > MAX_WIDTH]
    if isinstance(width, (list, tuple)):
        if not width:
            raise UserError(
                "width=[] lists no layer: give a number, or one for each hidden layer: say for example width=128."
            )
        if depth is not None and len(width) != depth:
            raise UserError(
                f"width={list(width)} lists {len(width)} layers but depth={depth}: "
                f"say depth={len(width)}, or give a single number."
            )
        if bad:
            raise UserError(
                f"width={list(width)} holds {command_line_text(bad[0])}: every width is a whole number of at least "
                "1 unit, for example 'width=[256,128]'."
            )
    elif bad and is_positive_int(width):
        raise UserError(f"width={width} is more than {MAX_WIDTH:,}: say for example width=128.")
    elif bad:
        raise UserError(
            f"width={command_line_text(width)} must be a whole number of at least 1 unit, or a list of them: "
            "say for example width=128."
        )


def nearest_key(name: str, keys: list[str]) -> str:
    """Return `" Did you mean 'train.epochs'?"`: by the whole key, its last part, or another word for it.

    >>> nearest_key("trian.epochs", ["train.epochs", "seed"]), nearest_key("lr", ["optim.lr", "depth"])
    (" Did you mean 'train.epochs'?", " Did you mean 'optim.lr'?")
    >>> nearest_key("scheme", ["init", "act"])
    " Did you mean 'init'?"
    """
    if (key := KEY_ALIASES.get(name.lower())) in keys:
        return f" Did you mean {key!r}?"
    leaf = name.rpartition(".")[2]
    same_leaf = [key for key in keys if key != name and key.rpartition(".")[2] == leaf]
    return did_you_mean(same_leaf[0], same_leaf) if same_leaf else did_you_mean(name, keys)
