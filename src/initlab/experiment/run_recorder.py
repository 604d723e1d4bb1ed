"""One network's records while it trains: what goes into its run directory, and when."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.config import Config
from initlab.config.naming import config_hash, is_incidental
from initlab.diagnostics import HistogramKey
from initlab.experiment.predictions import Forecast, LayerRow
from initlab.initialize import fingerprint
from initlab.records import RunWriter, flatten
from initlab.statistics.comparisons import loss_still_falls
from initlab.statistics.histograms import Histogram
from initlab.training import Stopped

AVERAGED_STEPS = 50  # training steps; the mean of what is logged of them is the final training loss and accuracy
# The hyperparameters that TensorBoard shows without being asked where nothing was swept; it ticks five.
DEFAULT_HPARAMS = ("init", "act", "depth", "seed", "optim.lr")


@dataclass
class RunRecorder:
    """One network's records while it trains.

    `lean`: it is one of a sweep, which may have thousands: what its tables say is not logged as well, remarks go into
    its summary, and there is a `run.log` only where there is more to say.
    """

    config: Config
    directory: Path
    classes: int | None
    stopped: Stopped | None = None
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    recent: dict[str, deque[tuple[int, float]]] = field(
        default_factory=lambda: {name: deque() for name in ("loss", "accuracy")}
    )  # what was logged of the last steps, each with its step
    summary: dict[str, Any] = field(default_factory=dict)
    expected: Sequence[LayerRow] = ()
    trainable_depth: float | None = None
    lean: bool = False
    remarks: list[str] = field(default_factory=list)

    def begin(self, module: nn.Module, rows: Any, device: torch.device, swept: Sequence[str] = ()) -> None:
        """Open the run directory and write what is known at step 0; `rows` describe the module's parameters."""
        self.started = time.monotonic()
        plain = self.config.plain()
        shown, tensorboard = shown_hparams(plain), self.config.log.tensorboard
        self.writer = RunWriter(
            self.directory, plain, hparams=shown, first=swept or DEFAULT_HPARAMS, tensorboard=tensorboard
        )
        self.writer.write_parameters(rows)
        self.tell(f"{len(rows)} parameters initialized by {self.config.init['name']} on {device}")
        self.fingerprint = fingerprint(module)
        if self.config.train.save:
            self.keep_weights("weights-0.safetensors", module.state_dict())

    def tell(self, text: str) -> None:
        """Log what is said elsewhere, too, unless files are saved."""
        if not self.lean:
            self.writer.log(text)

    def kept(self) -> dict[str, Any]:
        """Return, in plain values, what a checkpoint keeps of this member beside tensors; its files are on the disk."""
        return {
            "step": self.step,
            "latest": dict(self.latest),
            "recent": {name: list(values) for name, values in self.recent.items()},
            "seconds": time.monotonic() - self.started,
            "fingerprint": self.fingerprint,
            "trainable_depth": self.trainable_depth,
            "remarks": list(self.remarks),
            "position": self.writer.position(),
        }

    def resume(self, kept: dict[str, Any], stopped: Stopped | None) -> None:
        """Go on from a checkpoint: the files are cut back to it, and the configuration is written again.

        Raises UserError when a table is not what the checkpoint knows.
        """
        plain, view = self.config.plain(), self.config.log.tensorboard
        self.writer = RunWriter.resume(
            self.directory, kept["position"], plain, may_differ=is_incidental, tensorboard=view
        )
        self.started = time.monotonic() - kept["seconds"]
        self.step, self.latest, self.fingerprint = kept["step"], dict(kept["latest"]), kept["fingerprint"]
        self.trainable_depth = kept.get("trainable_depth")
        self.remarks = list(kept.get("remarks", []))
        for name, values in kept["recent"].items():
            self.recent[name].extend(values)
        self.stopped = stopped
        self.writer.log(f"resumed at step {self.step}")

    def expects(self, forecast: Forecast) -> None:
        """Keep what theory says of step 0, to be written beside what is measured there."""
        self.expected, self.trainable_depth = forecast.rows, forecast.trainable_depth
        if forecast.remark and self.lean and "\n" not in forecast.remark:
            self.remarks.append(forecast.remark)
        elif forecast.remark:
            self.writer.log(forecast.remark)

    def measured(self, step: int, rows: Sequence[LayerRow], counted: Mapping[HistogramKey, Histogram]) -> None:
        """Record the layers of one step; those of step 0 together with their forecast, as TensorBoard lays them out."""
        self.writer.add_layers([*(self.expected if step == 0 else ()), *rows])
        self.writer.add_histograms(step, counted)

    def stepped(self, columns: Mapping[str, list]) -> None:
        """Record a block of steps."""
        steps = columns["step"]
        self.writer.add_scalars_block(steps, {k: v for k, v in columns.items() if k != "step"})
        for name, recent in self.recent.items():
            recent.extend(zip(steps, columns[name], strict=True) if name in columns else ())
            while recent and recent[0][0] <= steps[-1] - AVERAGED_STEPS:
                recent.popleft()
        self.step = steps[-1] + 1

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Record an evaluation."""
        if values:
            self.latest.update(values)
            self.writer.add_scalars(step, values)
            self.tell(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def keep_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Write weights and buffers as safetensors, whole or not at all."""
        from safetensors.torch import save

        # Copies: tied weights share memory, which the format does not know.
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
        self.writer.write_record(name, save(copies))

    def finish(self, steps: int) -> None:
        """Write the summary: the run is over."""
        bad = self.stopped if self.stopped is not None and self.stopped.reason == "diverged" else None
        facts: dict[str, Any] = {
            "steps": steps if self.stopped is None else self.stopped.updates,
            "seconds": time.monotonic() - self.started,
            **{k: sum(value for _, value in v) / len(v) for k, v in self.recent.items() if v},
            # What was evaluated before a divergence says nothing of the network it ended as.
            **(self.latest if bad is None else dict.fromkeys(self.latest, math.nan)),
            "first_bad_step": bad.step if bad else None,
            "first_bad_layer": bad.layer if bad else None,
            "trained": None if bad else self.trained(),
        }
        # One that has not passed the bar is stuck, or needs more steps.
        facts["learning"] = loss_still_falls(self.writer.read_losses()) if facts["trained"] is False else None
        if self.trainable_depth is not None:
            facts["trainable_depth"] = self.trainable_depth
        if self.remarks:
            facts["remarks"] = self.remarks
        if bad:
            self.tell(f"diverged at step {bad.step}, first in {bad.layer}")
        self.close("diverged" if bad else "completed", facts)

    def fail(self, trace: str) -> None:
        """Record a bug."""
        self.writer.log(trace)
        self.close("failed", {"error": trace.strip().splitlines()[-1], "seconds": time.monotonic() - self.started})

    def close(self, status: str, facts: dict[str, Any]) -> None:
        """Write `summary.json`, last."""
        facts |= {"hash": config_hash(self.config), "fingerprint": self.fingerprint}
        self.writer.finish(status, **facts)
        self.summary = {"status": status, "path": str(self.directory), **facts}

    def trained(self) -> bool | None:
        """Did accuracy pass the bar? Validation decides; None for regression."""
        accuracy = self.latest.get("val_accuracy", self.latest.get("test_accuracy"))
        if accuracy is None or self.classes is None:
            return None
        bar = self.config.train.trained_above
        return accuracy > ((1 + 1 / self.classes) / 2 if bar is None else bar)


def record_failure(config: Config, directory: Path, trace: str) -> dict[str, Any]:
    """Record a network that never began, or whose process was lost, as failed; return its summary."""
    writer = RunWriter(directory, config.plain(), tensorboard=False)
    writer.log(trace)
    facts = {"error": trace.strip().splitlines()[-1], "steps": 0, "seconds": 0.0, "hash": config_hash(config)}
    writer.finish("failed", **facts)
    return {"status": "failed", "path": str(directory), **facts}


def shown_hparams(plain: dict[str, Any]) -> dict[str, Any]:
    """Return what TensorBoard's HParams page compares: every key that has a say in the result.

    A grid may grow by a key that earlier runs did not sweep, and the page knows only the keys of one of its runs.
    """
    return {key: value for key, value in flatten(plain).items() if key in DEFAULT_HPARAMS or not is_incidental(key)}
