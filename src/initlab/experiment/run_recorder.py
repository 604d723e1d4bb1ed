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
from initlab.experiment.predictions import Forecast
from initlab.initialize import fingerprint
from initlab.records import LayerRow, RunWriter, flatten
from initlab.statistics.comparisons import loss_still_falls
from initlab.statistics.histograms import Histogram
from initlab.training import Stopped

AVERAGED_STEPS = 50  # the last training steps, whose mean is the final training loss and accuracy
# The hyperparameters that TensorBoard shows without being asked where nothing was swept; it ticks five.
DEFAULT_HPARAMS = ("init", "act", "depth", "seed", "optim.lr")


@dataclass
class RunRecorder:
    """One network's records while it trains.

    Attributes:
        config: of the run.
        directory: of the run.
        classes: how many there are, None for regression.
        lean: it is one of a sweep, which may have thousands: what its tables hold is not logged as well, remarks go
            into its summary, and there is a `run.log` only where there is more to report.
        stopped: how it ended before the others.
        step: updates done.
        latest: the last evaluation.
        recent: loss and accuracy logged of the last `AVERAGED_STEPS`, each with its step.
        summary: what `summary.json` holds at the end.
        forecast: what theory predicts of step 0.
        remarks: for the summary.
    """

    config: Config
    directory: Path
    classes: int | None
    lean: bool = False
    stopped: Stopped | None = None
    step: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    recent: dict[str, deque[tuple[int, float]]] = field(
        default_factory=lambda: {name: deque() for name in ("loss", "accuracy")}
    )
    summary: dict[str, Any] = field(default_factory=dict)
    forecast: Forecast = field(default_factory=Forecast)
    remarks: list[str] = field(default_factory=list)

    def begin(self, module: nn.Module, rows: Any, device: torch.device, swept: Sequence[str] = ()) -> None:
        """Open the run directory and write what is known at step 0.

        Args:
            module: the initialized network.
            rows: one per parameter, as `initialize_` returns them.
            device: where it trains.
            swept: the keys that TensorBoard shows first.
        """
        self.started = time.monotonic()
        plain = self.config.plain()
        hparams, tensorboard = shown_hparams(plain), self.config.log.tensorboard
        self.writer = RunWriter(
            self.directory, plain, hparams=hparams, first=swept or DEFAULT_HPARAMS, tensorboard=tensorboard
        )
        self.writer.write_parameters(rows)
        self.log_detail(f"{len(rows)} parameters initialized by {self.config.init['name']} on {device}")
        self.fingerprint = fingerprint(module)
        if self.config.train.save:
            self.write_weights("weights-0.safetensors", module.state_dict())

    def log_detail(self, text: str) -> None:
        """Log what other records hold as well, unless files are saved."""
        if not self.lean:
            self.writer.log(text)

    def state(self) -> dict[str, Any]:
        """Return, in plain values, what a checkpoint keeps beside tensors; the run's files are on the disk then."""
        return {
            "step": self.step,
            "latest": dict(self.latest),
            "recent": {name: list(values) for name, values in self.recent.items()},
            "seconds": time.monotonic() - self.started,
            "fingerprint": self.fingerprint,
            "trainable_depth": self.forecast.trainable_depth,
            "remarks": list(self.remarks),
            "position": self.writer.position(),
        }

    def resume(self, state: dict[str, Any], stopped: Stopped | None) -> None:
        """Go on from a checkpoint: the files are cut back to it, and the configuration is written again.

        Args:
            state: what `state()` returned; a table that is not what it records is a UserError.
            stopped: how the network ended before the checkpoint, None while it trains.
        """
        plain, tensorboard = self.config.plain(), self.config.log.tensorboard
        self.writer = RunWriter.resume(
            self.directory, state["position"], plain, may_differ=is_incidental, tensorboard=tensorboard
        )
        self.started = time.monotonic() - state["seconds"]
        self.step, self.latest, self.fingerprint = state["step"], dict(state["latest"]), state["fingerprint"]
        self.forecast = Forecast(trainable_depth=state["trainable_depth"])
        self.remarks = list(state["remarks"])
        for name, values in state["recent"].items():
            self.recent[name].extend(values)
        self.stopped = stopped
        self.writer.log(f"resumed at step {self.step}")

    def set_forecast(self, forecast: Forecast) -> None:
        """Keep what theory predicts of step 0, to write it beside what is measured there."""
        self.forecast = forecast
        if forecast.remark and self.lean and "\n" not in forecast.remark:
            self.remarks.append(forecast.remark)
        elif forecast.remark:
            self.writer.log(forecast.remark)

    def record_layers(self, step: int, rows: Sequence[LayerRow], histograms: Mapping[HistogramKey, Histogram]) -> None:
        """Record the layers of one step; those of step 0 together with their forecast, as TensorBoard lays them out."""
        self.writer.add_layers([*(self.forecast.rows if step == 0 else ()), *rows])
        self.writer.add_histograms(step, histograms)

    def record_steps(self, columns: Mapping[str, list]) -> None:
        """Record a block of steps: `step`, `loss` and the other metrics as columns."""
        steps = columns["step"]
        self.writer.add_scalars_block(steps, {k: v for k, v in columns.items() if k != "step"})
        for name, recent in self.recent.items():
            recent.extend(zip(steps, columns[name], strict=True) if name in columns else ())
            while recent and recent[0][0] <= steps[-1] - AVERAGED_STEPS:
                recent.popleft()
        self.step = steps[-1] + 1

    def record_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Record an evaluation."""
        if values:
            self.latest.update(values)
            self.writer.add_scalars(step, values)
            self.log_detail(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def write_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Write weights and buffers as safetensors, whole or not at all."""
        from safetensors.torch import save

        # Copies: the format has no tied weights, which share memory.
        copies = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
        self.writer.write_record(name, save(copies))

    def finish(self, steps: int) -> None:
        """Write the summary of a run that is over; `steps` is how many it was to take."""
        diverged = self.stopped if self.stopped is not None and self.stopped.reason == "diverged" else None
        facts: dict[str, Any] = {
            "steps": steps if self.stopped is None else self.stopped.updates,
            "seconds": time.monotonic() - self.started,
            **{k: sum(value for _, value in v) / len(v) for k, v in self.recent.items() if v},
            # An evaluation before a divergence does not describe the network at the end.
            **(self.latest if diverged is None else dict.fromkeys(self.latest, math.nan)),
            "first_bad_step": diverged.step if diverged else None,
            "first_bad_layer": diverged.layer if diverged else None,
            "trained": None if diverged else self.trained(),
        }
        # A network below the bar is stuck, or needs more steps.
        facts["learning"] = loss_still_falls(self.writer.read_losses()) if facts["trained"] is False else None
        if self.forecast.trainable_depth is not None:
            facts["trainable_depth"] = self.forecast.trainable_depth
        if self.remarks:
            facts["remarks"] = self.remarks
        if diverged:
            self.log_detail(f"diverged at step {diverged.step}, first in {diverged.layer}")
        self.write_summary("diverged" if diverged else "completed", facts)

    def fail(self, trace: str) -> None:
        """Record a bug by its traceback."""
        self.writer.log(trace)
        facts = {"error": trace.strip().splitlines()[-1], "seconds": time.monotonic() - self.started}
        self.write_summary("failed", facts)

    def write_summary(self, status: str, facts: dict[str, Any]) -> None:
        """Write `summary.json`, the last file of a run."""
        facts |= {"hash": config_hash(self.config), "fingerprint": self.fingerprint}
        self.writer.finish(status, **facts)
        self.summary = {"status": status, "path": str(self.directory), **facts}

    def trained(self) -> bool | None:
        """Return whether accuracy passed the bar; validation decides; None for regression."""
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
    """Return what TensorBoard's HParams page compares: every key that decides the result.

    A grid may grow by a key that earlier runs did not sweep, and the page has only the keys of one of its runs.
    """
    return {key: value for key, value in flatten(plain).items() if key in DEFAULT_HPARAMS or not is_incidental(key)}
