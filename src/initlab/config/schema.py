"""The configuration as dataclasses: keys, types and defaults. No Hydra here.

Every field's `help` is one row of the table of keys in the README and of `python train.py --help`.
"""

import copy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any


def config_key(default: Any, text: str) -> Any:
    """Return a dataclass field of this default whose help text stands in the table of keys."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """How long and with what batches."""

    epochs: float = config_key(5, "passes over the training set")
    steps: int | None = config_key(None, "number of updates; wins over epochs")
    batch_size: int = config_key(128, "samples per update; the last incomplete batch of an epoch is left out")
    target_loss: float | None = config_key(None, "stop once the training loss (mean of 10 steps) is at or below this")
    trained_above: float | None = config_key(
        None, "accuracy that counts as trained; null: halfway between chance and 1"
    )
    save: bool = config_key(False, "keep the weights of step 0 and of the end as safetensors")


@dataclass
class LogConfig:
    """What is recorded, and how often."""

    every: int = config_key(1, "steps between rows of scalars")
    histograms: int = config_key(10, "log-spaced records of layers and histograms per run, step 0 included; 0: none")
    eval_every: int | None = config_key(None, "steps between evaluations; null: once per epoch")
    jacobian: bool = config_key(False, "singular values of the Jacobians ∂h/∂input at step 0: predicted and measured")
    tensorboard: bool = config_key(True, "write TensorBoard event files beside the CSV files")


@dataclass
class SweepConfig:
    """Keys of a grid as a whole."""

    name: str | None = config_key(
        None, "directory of the sweep under sweep.root; the same name resumes; null: the time"
    )
    root: str = config_key("outputs/sweeps", "directory of all sweeps")
    exclude: list[Any] = config_key([], "cells to leave out, e.g. [{init: [zeros, ones], act: relu}]")
    grids: list[Any] = config_key(
        [], "sub-grids, concatenated, e.g. [{init: he_normal, act: relu}, {init: siren, act: sin}]"
    )
    order: str = config_key("grid", "grid, or shuffle for an early look")
    impossible: str = config_key("skip", "cells that cannot exist: skip, or error")
    max_group: int | None = config_key(None, "most networks that train together; null: as many as fit the memory")
    memory: float | None = config_key(None, "GiB for the networks that train together; null: half of what is free")
    checkpoint_every: float = config_key(60.0, "seconds between checkpoints of networks that train together")


@dataclass
class TuneConfig:
    """How a race tunes the learning rate of every cell."""

    rates: list[Any] | None = config_key(
        None, "rates that a race tries; null: half a decade apart around optim.lr, further where the best is at the end"
    )
    seeds: int = config_key(3, "number of seeds (1000, 1001, …) that choose a rate; those of `seed` compare")


@dataclass
class Config:
    """One run: a network, its initialization, its data, its training."""

    init: dict[str, Any] = config_key({"name": "glorot_uniform"}, "init scheme")
    act: dict[str, Any] = config_key({"name": "tanh"}, "activation, with keys of its own such as act.negative_slope")
    model: dict[str, Any] = config_key({"name": "mlp"}, "family of networks")
    data: dict[str, Any] = config_key({"name": "fashion_mini"}, "data set")
    optim: dict[str, Any] = config_key({"name": "sgd"}, "optimizer")
    depth: int | None = config_key(5, "hidden layers; blocks, or blocks per stage, of a network that is made of them")
    width: Any = config_key(128, "units per hidden layer (channels for convolutions), or a list of length depth")
    seed: int = config_key(0, "init seed; data.seed orders the batches")
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    device: str = config_key("auto", "auto (cuda, else mps, else cpu) or a torch device")
    precision: str = config_key("fp32", "fp32, bf16 (autocast) or fp64")
    threads: Any = config_key(
        "auto",
        "torch threads; auto: one for a small network that trains alone, else torch's own choice",
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    race: Any = config_key(False, "tune the rate of every cell of a sweep, then compare on fresh seeds")
    tune: TuneConfig = field(default_factory=TuneConfig)
    dry_run: bool = config_key(False, "print the plan of a sweep and exit")
    verdict: dict[str, Any] = config_key(
        {}, "of an experiment file: question, claim and criteria for `initlab reproduce`"
    )

    def plain(self) -> dict[str, Any]:
        """Return nested plain dictionaries, as written to `config.yaml`, without `verdict`."""
        return {f.name: copy_plain(getattr(self, f.name)) for f in fields(self) if f.name != "verdict"}


def copy_plain(value: Any) -> Any:
    """Return a copy of nested plain values, dataclasses as dictionaries, in a tenth of the time of `asdict`."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {key: copy_plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_plain(member) for member in value)
    if is_dataclass(value):
        return {f.name: copy_plain(getattr(value, f.name)) for f in fields(value)}
    return copy.deepcopy(value)


GROUPS = ("data", "model", "optim", "act", "init")

# Keys that options of a group share: the default of the group's default option, and a help text.
# An option's other keys are in its file, conf/<group>/<option>.yaml.
OPTION_KEYS: dict[str, tuple[str, str]] = {
    "init.gain": ("paper", "factor on the std: paper (the scheme's own), forward, backward, critical, or a number"),
    "init.sigma_b": ("0.0", "std of the biases, for every scheme that does not set its own"),
    "init.distribution": ("uniform", "normal, uniform or truncated_normal, for the rules by fan"),
    "model.norm": ("none", "none, batch or layer; vit and gpt: none, pre or post"),
    "model.dropout": ("0.0", "probability of dropping a unit after each activation"),
    "data.root": ("null", "directory that holds or receives the files; null: the per-user cache"),
    "data.normalize": ("true", "mean 0 and variance 1 per channel of the training set"),
    "data.validation": ("0.1", "fraction of each class of the training set that is held out"),
    "data.seed": ("0", "orders the batches"),
    "optim.lr": ("0.01", "learning rate; the default is the optimizer's own (conf/optim)"),
    "optim.momentum": ("0.9", "of sgd and rmsprop (there 0)"),
    "optim.schedule": ("constant", "constant or cosine"),
    "optim.warmup": ("0", "steps of linear warm-up"),
    "optim.weight_decay": ("0.0", "L2 penalty; decoupled in adamw"),
    "optim.clip_norm": ("null", "largest norm of the gradient of all weights"),
}

# Keys of the launcher, in Hydra's own node.
LAUNCHER_KEYS: dict[str, tuple[str, str]] = {
    "hydra.launcher.executor": ("auto", "what runs a sweep: auto, inline, process, submitit or ray"),
    "hydra.launcher.workers": ("auto", "how many groups of networks train at a time"),
}

# One example for every axis, shown by --help and in the README.
EXAMPLES = {
    "init": "init=he_normal init.gain=1.2",
    "act": "act=leaky_relu act.negative_slope=0.2",
    "model": "model=mlp model.norm=layer model.dropout=0.1",
    "data": "data=fashion_mnist data.normalize=false",
    "optim": "optim=adam optim.lr=1e-3 optim.schedule=cosine",
    "depth": "depth=3, or -m depth=3,10,30",
    "width": "width=256, or depth=2 'width=[256,128]'",
    "seed": "seed=1, or -m 'seed=range(5)'",
    "train": "train.epochs=10, or train.steps=500",
    "log": "log.every=10 log.histograms=0",
    "device": "device=cpu precision=fp64 threads=1",
    "race": "race=true, or -m race=true init=he_normal,orthogonal 'seed=range(5)'",
    "experiment": "experiment=wandb_five_methods",
}
