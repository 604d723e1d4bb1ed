"""run(configs, directories): the one place where all rooms meet."""

import math
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab import data as datasets
from initlab import models
from initlab.activations import Activation, activation
from initlab.config import Config
from initlab.config.naming import digest
from initlab.data import Dataset
from initlab.ensemble import Ensemble, stack
from initlab.errors import Impossible, UserError
from initlab.initialize import fingerprint, initialize_
from initlab.initialize import impossible as find_impossible
from initlab.records import RunWriter
from initlab.training import Evaluation, Plan, Snapshot, Steps, Stopped, log_spaced, train

LAST = 50  # training steps whose mean is the final training loss and accuracy
HPARAMS = ("init", "act", "model", "depth", "seed", "optim.lr")
Watch = Callable[[dict[str, Any]], None]


def run(configs: Sequence[Config], directories: Sequence[Path], watch: Watch | None = None) -> list[dict[str, Any]]:
    """Train networks of one architecture together and leave a run directory for each; return their summaries.

    Arguments: `configs` that agree in architecture, data and schedule; one directory for each; `watch`, called with
    progress a few times a second.

    Raises UserError before anything is written when a configuration cannot run. What fails later is recorded: `status`
    `failed` with its traceback in the run's log.
    """
    first = configs[0]
    if first.threads != "auto":
        torch.set_num_threads(int(first.threads))
    device = pick_device(first.device)
    data = load_data(first, device)
    act = pick_activation(first)
    built = [make_network(config, data, act, device) for config in configs]
    ensemble = stack([module for module, _ in built])
    plan = make_plan(configs, data, act)
    with_members = list(zip(configs, directories, built, strict=True))
    members = [Member(config, directory, module, rows) for config, directory, (module, rows) in with_members]
    for member in members:
        member.begin(device)
    try:
        follow(ensemble, data, plan, members, watch)
    except Exception:
        # A bug is not a result: every network of this computation is marked failed, with the traceback in its log.
        for member in members:
            member.fail(traceback.format_exc())
    return [member.summary for member in members]


def follow(ensemble: Ensemble, data: Dataset, plan: Plan, members: list["Member"], watch: Watch | None) -> None:
    """Train, and hand every event to the members it is about."""
    for event in train(ensemble, data, plan):
        if isinstance(event, Evaluation):
            for i, member in enumerate(members):
                member.evaluated(event.step, {k: v[i] for k, v in event.values.items() if i in v})
        elif isinstance(event, Steps):
            deal(event, members)
        elif isinstance(event, Snapshot):
            for i, rows in event.rows.items():
                members[i].writer.layers(rows)
                members[i].writer.histograms(event.step, event.histograms[i])
        elif isinstance(event, Stopped):
            members[event.member].stopped = event
        if watch is not None:
            watch(progress(plan, members))
    for member in members:
        member.finish(plan.steps)


def deal(event: Steps, members: list["Member"]) -> None:
    """Give each member its rows of a block."""
    columns: dict[int, dict[str, list]] = {}
    for row, step in enumerate(event.steps):
        for position, i in enumerate(event.members[row]):
            own = columns.setdefault(i, {"step": [], "loss": [], "grad_norm": [], "lr": []})
            own["step"].append(step)
            for name in ("loss", "grad_norm", "lr"):
                own[name].append(getattr(event, name)[row][position])
            if event.accuracy is not None:
                own.setdefault("accuracy", []).append(event.accuracy[row][position])
    for i, own in columns.items():
        members[i].stepped(own)


@dataclass
class Member:
    """One network's records while it trains."""

    config: Config
    directory: Path
    module: nn.Module
    rows: Any
    stopped: Stopped | None = None
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    recent: dict[str, deque] = field(default_factory=lambda: {k: deque(maxlen=LAST) for k in ("loss", "accuracy")})
    summary: dict[str, Any] = field(default_factory=dict)

    def begin(self, device: torch.device) -> None:
        """Open the run directory and write what is known at step 0."""
        self.started = time.monotonic()
        plain = self.config.plain()
        self.writer = RunWriter(self.directory, plain, hparams=hparams(plain), tensorboard=self.config.log.tensorboard)
        self.writer.parameters(self.rows)
        self.writer.log(f"{len(self.rows)} parameters initialized by {self.config.init['name']} on {device}")
        self.fingerprint = fingerprint(self.module)
        if self.config.train.save:
            save_weights(self.module, self.directory / "weights-0.safetensors")

    def stepped(self, columns: Mapping[str, list]) -> None:
        """Record a block of steps."""
        steps = columns["step"]
        self.writer.scalars_block(steps, {k: v for k, v in columns.items() if k != "step"})
        for name, recent in self.recent.items():
            recent.extend(columns.get(name, ()))
        self.step = steps[-1] + 1

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Record an evaluation."""
        if values:
            self.latest.update(values)
            self.writer.scalars(step, values)
            self.writer.log(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def finish(self, steps: int) -> None:
        """Write the summary: the run is over."""
        diverged = self.stopped is not None and self.stopped.reason == "diverged"
        facts = {
            "steps": self.stopped.step if self.stopped else steps,
            "seconds": time.monotonic() - self.started,
            **{k: sum(v) / len(v) for k, v in self.recent.items() if v},
            **self.latest,
            "first_bad_step": self.stopped.step if diverged else None,
            "first_bad_layer": self.stopped.layer if diverged else None,
            "trained": None if diverged else self.trained(),
        }
        if diverged:
            self.writer.log(f"diverged at step {self.stopped.step}, first in {self.stopped.layer}")
        if self.config.train.save:
            save_weights(self.module, self.directory / "weights-end.safetensors")
        self.close("diverged" if diverged else "completed", facts)

    def fail(self, trace: str) -> None:
        """Record a bug."""
        self.writer.log(trace)
        self.close("failed", {"error": trace.strip().splitlines()[-1], "seconds": time.monotonic() - self.started})

    def close(self, status: str, facts: dict[str, Any]) -> None:
        """Write `summary.json`, last."""
        facts |= {"hash": digest(self.config), "fingerprint": self.fingerprint}
        self.writer.finish(status, **facts)
        self.summary = {"status": status, "path": str(self.directory), **facts}

    def trained(self) -> bool | None:
        """Did accuracy pass the bar? Validation decides; None for regression."""
        accuracy = self.latest.get("val_accuracy", self.latest.get("test_accuracy"))
        if accuracy is None:
            return None
        bar = self.config.train.trained_above
        chance = self.chance if hasattr(self, "chance") else 0.1
        return accuracy > ((1 + chance) / 2 if bar is None else bar)


def hparams(plain: dict[str, Any]) -> dict[str, Any]:
    """Pick the few names that TensorBoard's HParams page compares."""

    def value(key: str) -> Any:
        group, _, leaf = key.partition(".")
        found = plain[group][leaf] if leaf else plain[group]
        return found["name"] if isinstance(found, dict) else found

    return {key: value(key) for key in HPARAMS}


def pick_device(name: str) -> torch.device:
    """Turn `auto` into cuda, else mps, else cpu; raises UserError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name} is not available here ({str(error).splitlines()[0]}): say device=cpu."
        ) from error
    return device


def pick_activation(config: Config) -> Activation | None:
    """Resolve `act=` with its own keys; None where the model brings its own."""
    if config.model["name"] == "torchvision":
        return None
    parameters = {k: v for k, v in config.act.items() if k != "name"}
    return activation((config.act["name"], parameters))


def load_data(config: Config, device: torch.device) -> Dataset:
    """Load the data set named in the configuration."""
    options = {k: v for k, v in config.data.items() if k != "name"}
    return datasets.load(config.data["name"], device=device, **options)


def build_module(config: Config, data: Dataset, act: Activation | None) -> nn.Module:
    """Build the network that a configuration asks for, not yet initialized."""
    return models.build(
        config.model["name"],
        depth=config.depth,
        width=config.width,
        act=act,
        input_shape=data.input_shape,
        classes=data.outputs,
        **{k: v for k, v in config.model.items() if k != "name"},
    )


def scheme_arguments(config: Config, act: Activation | None) -> dict[str, Any]:
    """Translate the keys `init.*` into the arguments of `initialize_`, the seed aside."""
    own = ("name", "gain", "sigma_b")
    return {
        "scheme": config.init["name"],
        "act": act or "linear",
        "gain": config.init.get("gain", "paper"),
        "sigma_b": config.init.get("sigma_b") or 0.0,
        "parameters": {k: v for k, v in config.init.items() if k not in own},
    }


def impossible(config: Config) -> str | None:
    """Return why a configuration cannot exist (dirac on an mlp), or None; it writes and allocates nothing.

    Raises UserError for what is wrong rather than impossible: an unknown name, a bad value, data that is not there.
    """
    data = load_data(config, torch.device("cpu"))
    act = pick_activation(config)
    make_plan([config], data, act)
    try:
        with torch.device("meta"):
            module = build_module(config, data, act)
        return find_impossible(module, **scheme_arguments(config, act))
    except Impossible as reason:
        return str(reason)


def make_network(config: Config, data: Dataset, act: Activation | None, device: torch.device) -> tuple[nn.Module, Any]:
    """Build one network and initialize it; return it with one row per parameter."""
    module = build_module(config, data, act)
    module = module.to(dtype=torch.float64) if config.precision == "fp64" else module
    rows = initialize_(module, seed=config.seed, **scheme_arguments(config, act))
    return module.to(device), rows


def make_plan(configs: Sequence[Config], data: Dataset, act: Activation | None) -> Plan:
    """Translate what the members share into the loop's plan."""
    first = configs[0]
    batch = min(first.train.batch_size, len(data.train_x))
    per_epoch = max(len(data.train_x) // batch, 1)
    steps = first.train.steps or max(math.ceil(first.train.epochs * per_epoch), 1)
    loop_keys = ("name", "schedule", "warmup")
    return Plan(
        steps=steps,
        batch_size=batch,
        optimizer=first.optim["name"],
        hyper=tuple({k: v for k, v in c.optim.items() if k not in loop_keys} for c in configs),
        data_seed=first.data.get("seed", 0),
        schedule=first.optim.get("schedule", "constant"),
        warmup=first.optim.get("warmup", 0),
        log_every=first.log.every,
        eval_every=first.log.eval_every or per_epoch,
        records=tuple(log_spaced(steps, first.log.histograms)),
        target_loss=first.train.target_loss,
        autocast=first.precision == "bf16",
        dtype=torch.float64 if first.precision == "fp64" else torch.float32,
        saturation=act.saturation if act is not None else None,
    )


def progress(plan: Plan, members: list[Member]) -> dict[str, Any]:
    """Say how far an ensemble is, for a progress line."""
    running = [m for m in members if m.stopped is None]
    lead = running[0] if running else members[0]
    return {
        "step": max(m.step for m in members),
        "steps": plan.steps,
        "members": len(members),
        "diverged": sum(m.stopped is not None and m.stopped.reason == "diverged" for m in members),
        "loss": lead.recent["loss"][-1] if lead.recent["loss"] else None,
        "val_accuracy": lead.latest.get("val_accuracy"),
    }


def save_weights(module: nn.Module, path: Path) -> None:
    """Write weights and buffers as safetensors, beside and then renamed."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    beside = path.with_suffix(".tmp")
    save_file(tensors, str(beside))
    os.replace(beside, path)
