"""Train networks together and leave a run directory for each: the one place where all rooms meet."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from initlab.config import Config
from initlab.ensemble import Ensemble, stack
from initlab.errors import Interrupted, UserError
from initlab.experiment import checkpoint
from initlab.experiment.build import build_activation, build_module, build_network, load_data, make_plan
from initlab.experiment.initialization import rate_factors
from initlab.experiment.predictions import predict_first_steps
from initlab.experiment.run_recorder import RunRecorder, record_failure
from initlab.records import describe_environment
from initlab.records.repair import find_resume_problem
from initlab.system.device import pick_device
from initlab.system.files import map_in_threads
from initlab.training import Evaluation, Event, Pause, Snapshot, State, Steps, Stopped, TrainingPlan, train

OnProgress = Callable[[dict[str, Any]], None]
CHECKPOINT_COST_FACTOR = 20  # a checkpoint that took a second is followed by at least this many seconds of training


@dataclass
class Checkpointing:
    """Where and how often a computation writes its checkpoint, and when it stops.

    Attributes:
        path: of the checkpoint.
        every: seconds between checkpoints.
        stop: returns a signal's number once one was received, else 0.
        remarks: about damage. Those that are there at the beginning are written into the log of every run; others are
            added.
    """

    path: Path
    every: float = 60.0
    stop: Callable[[], int] = lambda: 0
    remarks: list[str] = field(default_factory=list)


def run(
    configs: Sequence[Config],
    directories: Sequence[Path],
    watch: OnProgress | None = None,
    checkpointing: Checkpointing | None = None,
    swept: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Train networks of one architecture together and leave a run directory for each; return their summaries.

    What fails in a single network, once its configuration is found to be right, is recorded: `status` `failed` with its
    traceback in the run's log. Of several together it is not known which is to blame, so the exception is raised and
    they are left `unfinished`.

    Args:
        configs: of the networks; they agree in architecture, data and schedule.
        directories: one for each network.
        watch: called with progress a few times a second.
        checkpointing: go on from a checkpoint if there is one, and write some; Interrupted is raised after a checkpoint
            was written, when its `stop` asked for it.
        swept: the keys that differ from those of other runs, which TensorBoard shows first.

    Raises:
        UserError: a configuration cannot run, before anything is written; or the disk is full.
        UnusableCheckpoint: the run cannot go on from the checkpoint.
    """
    first = configs[0]
    if first.threads != "auto":
        torch.set_num_threads(int(first.threads))
    computation = Computation(configs, directories, watch, checkpointing, swept)
    recorders = computation.recorders
    try:
        computation.run()
    except Exception as error:
        if len(configs) > 1 or isinstance(error, (UserError, checkpoint.UnusableCheckpoint)):
            raise
        # A bug is not a result: the network is marked failed, with the traceback in its log. Without a recorder its
        # directory is not open yet.
        if not recorders:
            return [record_failure(first, directories[0], traceback.format_exc())]
        recorders[0].fail(traceback.format_exc())
    return [recorder.summary for recorder in recorders]


@dataclass
class Computation:
    """Networks that train together; the arguments are those of `run`.

    Attributes:
        device: where they train.
        data: their data set.
        act: their activation.
        plan: of the training loop.
        recorders: of the networks, as soon as their directories are open.
    """

    configs: Sequence[Config]
    directories: Sequence[Path]
    watch: OnProgress | None
    checkpointing: Checkpointing | None
    swept: Sequence[str]
    recorders: list[RunRecorder] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = self.configs[0]
        self.device = pick_device(first.device)
        self.data = load_data(first, self.device)
        self.act = build_activation(first)
        self.plan = make_plan(self.configs, self.data, self.act)

    def run(self) -> None:
        """Begin or resume the networks, train them and write their summaries."""
        settings, state = self.checkpointing, State()
        if settings is not None and checkpoint.existing_checkpoints(settings.path):
            ensemble, state = self.resume(settings)
        else:
            ensemble = self.begin()
        if settings is not None:
            for recorder in self.recorders:
                for remark in settings.remarks:
                    recorder.writer.log(remark)
            settings.remarks += [sentence for recorder in self.recorders for sentence in recorder.writer.repairs]
        factors = tuple(rate_factors(c, net) for c, net in zip(self.configs, ensemble.networks, strict=True))
        self.plan = replace(self.plan, factors=factors if any(factors) else ())
        if state.step == 0:
            forecasts = predict_first_steps(self.configs, ensemble.networks, self.data, self.act, self.plan)
            for recorder, forecast in zip(self.recorders, forecasts, strict=True):
                recorder.set_forecast(forecast)
        self.train(ensemble, state)

    def begin(self) -> Ensemble:
        """Build and initialize all networks, and open their run directories."""
        built = [build_network(config, self.data, self.act, self.device) for config in self.configs]
        ensemble = stack([module for module, _ in built])
        for config, directory, (module, rows) in zip(self.configs, self.directories, built, strict=True):
            recorder = RunRecorder(config, directory, self.data.classes, lean=self.checkpointing is not None)
            recorder.begin(module, rows, self.device, self.swept)
            self.recorders.append(recorder)
        return ensemble

    def resume(self, checkpointing: Checkpointing) -> tuple[Ensemble, State]:
        """Read a checkpoint: networks, the loop's state and every recorder as they were, files cut back to it."""
        saved = newest_checkpoint(checkpointing, self.configs, self.directories)
        modules = []
        for config, network in zip(self.configs, saved.networks, strict=True):
            module = build_module(config, self.data, self.act)
            module = module.to(dtype=torch.float64) if config.precision == "fp64" else module
            module.load_state_dict(network["weights"])
            modules.append(module.to(self.device))
        ensemble = stack(modules)
        state = saved.state_for(ensemble)
        for k, (config, directory) in enumerate(zip(self.configs, self.directories, strict=True)):
            recorder = RunRecorder(config, directory, self.data.classes, lean=True)
            recorder.resume(saved.members[k], saved.stopped.get(k))
            self.recorders.append(recorder)
        return ensemble, state

    def train(self, ensemble: Ensemble, state: State) -> None:
        """Train, record every event, write checkpoints on the way and the summaries at the end.

        Raises:
            Interrupted: `checkpointing.stop` asked for it, and a checkpoint was written.
        """
        settings, plan = self.checkpointing, self.plan
        due = time.monotonic() + (settings.every if settings else 0.0)
        resumed_at = state.step
        for event in train(ensemble, self.data, plan, state):
            record_event(event, self.recorders)
            if settings is not None and isinstance(event, Pause):
                signal = settings.stop()
                if signal or time.monotonic() >= due:
                    started = time.monotonic()
                    write_checkpoint(settings.path, ensemble, state, self.recorders)
                    if signal:
                        raise Interrupted(signal)
                    seconds = time.monotonic() - started
                    due = time.monotonic() + max(settings.every, CHECKPOINT_COST_FACTOR * seconds)
            if self.watch is not None:
                self.watch({**progress_facts(plan, self.recorders), "resumed_at": resumed_at})
        if settings is not None and checkpoint.existing_checkpoints(settings.path):
            # Summaries are written one after another: a launch that is killed between two of them goes on from here.
            write_checkpoint(settings.path, ensemble, state, self.recorders)
        for recorder, network in zip(self.recorders, ensemble.networks, strict=True):
            if recorder.config.train.save:
                recorder.write_weights("weights-end.safetensors", network.state_dict())
        describe_environment()  # cached from now on, so that the threads do not all ask for it
        map_in_threads(lambda recorder: recorder.finish(plan.steps), self.recorders)


def newest_checkpoint(
    checkpointing: Checkpointing, configs: Sequence[Config], directories: Sequence[Path]
) -> checkpoint.Checkpoint:
    """Return the newest checkpoint that is undamaged and whose runs still have the tables that it records.

    Raises:
        UnusableCheckpoint: there is none.
    """
    reasons: list[str] = []
    for path in checkpoint.existing_checkpoints(checkpointing.path):
        try:
            saved = checkpoint.load_checkpoint(path, configs)
            for directory, member in zip(directories, saved.members, strict=True):
                if problem := find_resume_problem(directory, member["position"]):
                    raise checkpoint.UnusableCheckpoint(f"in {directory.name}, {problem}")
        except checkpoint.UnusableCheckpoint as reason:
            reasons.append(str(reason))
            continue
        if reasons:
            # The next checkpoint must not keep the damaged one as the one before.
            checkpointing.path.unlink()
            instead = f"the one before goes on at step {saved.state['step']}"
            checkpointing.remarks.append(f"the newest checkpoint is not used: {reasons[0]}; {instead}")
        return saved
    raise checkpoint.UnusableCheckpoint("; ".join(dict.fromkeys(reasons)))


def write_checkpoint(path: Path, ensemble: Ensemble, state: State, recorders: list[RunRecorder]) -> None:
    """Write a checkpoint; the runs' files are on the disk before, so that none is shorter than it records."""
    members = map_in_threads(lambda recorder: recorder.state(), recorders)
    checkpoint.save_checkpoint(path, ensemble, state, [recorder.config for recorder in recorders], members)


def record_event(event: Event, recorders: list[RunRecorder]) -> None:
    """Give an event to the recorders of the networks that it is about."""
    if isinstance(event, Evaluation):
        for i, recorder in enumerate(recorders):
            recorder.record_evaluation(event.step, {k: v[i] for k, v in event.values.items() if i in v})
    elif isinstance(event, Steps):
        record_steps(event, recorders)
    elif isinstance(event, Snapshot):
        for i, rows in event.rows.items():
            recorders[i].record_layers(event.step, rows, event.histograms[i])
    elif isinstance(event, Stopped):
        recorders[event.member].stopped = event


def record_steps(event: Steps, recorders: list[RunRecorder]) -> None:
    """Give each recorder its rows of a block."""
    values = {"loss": event.loss, "grad_norm": event.grad_norm, "lr": event.lr}
    if event.accuracy is not None:
        values["accuracy"] = event.accuracy
    by_member: dict[int, dict[str, list]] = {}
    for row, step in enumerate(event.steps):
        for position, i in enumerate(event.members[row]):
            columns = by_member.setdefault(i, {name: [] for name in ("step", *values)})
            columns["step"].append(step)
            for name, rows in values.items():
                columns[name].append(rows[row][position])
    for i, columns in by_member.items():
        recorders[i].record_steps(columns)


def progress_facts(plan: TrainingPlan, recorders: list[RunRecorder]) -> dict[str, Any]:
    """Return how far an ensemble is, for a progress line; loss and accuracy are those of one network that trains."""
    shown = next((recorder for recorder in recorders if recorder.stopped is None), recorders[0])
    return {
        "step": max(recorder.step for recorder in recorders),
        "steps": plan.steps,
        "members": len(recorders),
        "diverged": sum(r.stopped is not None and r.stopped.reason == "diverged" for r in recorders),
        "loss": shown.recent["loss"][-1][1] if shown.recent["loss"] else None,
        "val_accuracy": shown.latest.get("val_accuracy"),
    }
