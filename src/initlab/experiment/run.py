"""run(configs, directories): the one place where all rooms meet."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from initlab.config import Config
from initlab.data import Dataset
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
CHECKPOINT_COST_FACTOR = 20  # a checkpoint that took a second is followed by at least so many seconds of training


@dataclass
class Checkpointing:
    """Where a computation keeps its checkpoint, how often in seconds, and how it hears that it should stop.

    `stop()` returns the number of the signal once there was one, else 0. `remarks` are about what was damaged: those
    that are there when the computation begins are written into the log of every run, and what it finds is added.
    """

    path: Path
    every: float = 60.0
    stop: Callable[[], int] = lambda: 0
    remarks: list[str] = field(default_factory=list)


def run(
    configs: Sequence[Config],
    directories: Sequence[Path],
    watch: OnProgress | None = None,
    keeping: Checkpointing | None = None,
    swept: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Train networks of one architecture together and leave a run directory for each; return their summaries.

    Arguments: `configs` that agree in architecture, data and schedule; one directory for each; `watch`, called with
    progress a few times a second; `keeping`, to go on from a checkpoint if there is one, and to write some; `swept`,
    the keys that tell these runs from others, which TensorBoard shows first.

    Raises UserError before anything is written when a configuration cannot run, and when the disk is full. What fails
    later in a single network is recorded: `status` `failed` with its traceback in the run's log; of several together
    nothing is known of which is to blame, so the exception is raised and they are left `unfinished`. Interrupted after
    a checkpoint was written, when `keeping.stop` asked for it; Unusable when the checkpoint cannot be gone on from.
    """
    first = configs[0]
    if first.threads != "auto":
        torch.set_num_threads(int(first.threads))
    device = pick_device(first.device)
    data = load_data(first, device)
    act = build_activation(first)
    plan = make_plan(configs, data, act)
    members: list[RunRecorder] = []
    try:
        if keeping is not None and checkpoint.existing_checkpoints(keeping.path):
            ensemble, state = resume_members(configs, directories, members, keeping, data, device)
        else:
            ensemble, state = begin_members(
                configs, directories, members, data, device, swept, lean=keeping is not None
            )
        if keeping is not None:
            log_remarks(keeping.remarks, members)
        factors = tuple(rate_factors(c, net) for c, net in zip(configs, ensemble.networks, strict=True))
        plan = replace(plan, factors=factors if any(factors) else ())
        if state.step == 0:
            for member, found in zip(
                members, predict_first_steps(configs, ensemble.networks, data, act, plan), strict=True
            ):
                member.expects(found)
        run_training(ensemble, data, plan, state, members, watch, keeping)
    except Exception as error:
        if len(configs) > 1 or isinstance(error, (UserError, checkpoint.UnusableCheckpoint)):
            raise
        # A bug is not a result: the network is marked failed, with the traceback in its log. A member that is not in
        # the list has no directory to write into yet.
        if not members:
            return [record_failure(first, directories[0], traceback.format_exc())]
        members[0].fail(traceback.format_exc())
    return [member.summary for member in members]


def log_remarks(remarks: list[str], members: list[RunRecorder]) -> None:
    """Write remarks about damage into the logs, and add what the runs themselves had to write again."""
    for member in members:
        for remark in remarks:
            member.writer.log(remark)
    remarks += [sentence for member in members for sentence in member.writer.mended]


def begin_members(
    configs: Sequence[Config],
    directories: Sequence[Path],
    members: list[RunRecorder],
    data: Dataset,
    device: torch.device,
    swept: Sequence[str],
    lean: bool = False,
) -> tuple[Ensemble, State]:
    """Build and initialize all networks, open their run directories, and add their members to the list."""
    act = build_activation(configs[0])
    built = [build_network(config, data, act, device) for config in configs]
    ensemble = stack([module for module, _ in built])
    for config, directory, (module, rows) in zip(configs, directories, built, strict=True):
        member = RunRecorder(config, directory, data.classes, lean=lean)
        member.begin(module, rows, device, swept)
        members.append(member)
    return ensemble, State()


def resume_members(
    configs: Sequence[Config],
    directories: Sequence[Path],
    members: list[RunRecorder],
    keeping: Checkpointing,
    data: Dataset,
    device: torch.device,
) -> tuple[Ensemble, State]:
    """Read a checkpoint: networks, the loop's state and every member as they were, files cut back to it."""
    saved = newest_checkpoint(keeping, configs, directories)
    act = build_activation(configs[0])
    modules = []
    for k, config in enumerate(configs):
        module = build_module(config, data, act)
        module = module.to(dtype=torch.float64) if config.precision == "fp64" else module
        modules.append(saved.fill_(module, k).to(device))
    ensemble = stack(modules)
    state = saved.state_for(ensemble)
    for k, (config, directory) in enumerate(zip(configs, directories, strict=True)):
        member = RunRecorder(config, directory, data.classes, lean=True)
        member.resume(saved.members[k], saved.stopped.get(k))
        members.append(member)
    return ensemble, state


def newest_checkpoint(
    keeping: Checkpointing, configs: Sequence[Config], directories: Sequence[Path]
) -> checkpoint.Checkpoint:
    """Return the newest checkpoint that is undamaged and whose runs still have the tables that it knows.

    Raises Unusable when there is none.
    """
    reasons: list[str] = []
    for path in checkpoint.existing_checkpoints(keeping.path):
        try:
            saved = checkpoint.load_checkpoint(path, configs)
            for directory, member in zip(directories, saved.members, strict=True):
                if found := find_resume_problem(directory, member["position"]):
                    raise checkpoint.UnusableCheckpoint(f"in {directory.name}, {found}")
        except checkpoint.UnusableCheckpoint as reason:
            reasons.append(str(reason))
            continue
        if reasons:
            # The next checkpoint must not keep the damaged one as the one before.
            keeping.path.unlink()
            instead = f"the one before goes on at step {saved.state['step']}"
            keeping.remarks.append(f"the newest checkpoint is not used: {reasons[0]}; {instead}")
        return saved
    raise checkpoint.UnusableCheckpoint("; ".join(dict.fromkeys(reasons)))


def run_training(
    ensemble: Ensemble,
    data: Dataset,
    plan: TrainingPlan,
    state: State,
    members: list[RunRecorder],
    watch: OnProgress | None,
    keeping: Checkpointing | None,
) -> None:
    """Train, and hand every event to the members it is about; keep checkpoints on the way."""
    due = time.monotonic() + (keeping.every if keeping else 0.0)
    kept = keeping is not None and bool(checkpoint.existing_checkpoints(keeping.path))
    begun_at = state.step
    for event in train(ensemble, data, plan, state):
        dispatch_event(event, members)
        if keeping is not None and isinstance(event, Pause):
            signal = keeping.stop()
            if signal or time.monotonic() >= due:
                started = time.monotonic()
                write_checkpoint(keeping, ensemble, state, members)
                kept = True
                if signal:
                    raise Interrupted(signal)
                due = time.monotonic() + max(keeping.every, CHECKPOINT_COST_FACTOR * (time.monotonic() - started))
        if watch is not None:
            watch({**progress_facts(plan, members), "resumed_at": begun_at})
    if keeping is not None and kept:
        # Summaries are written one after another: a launch that dies between two of them goes on from the very end.
        write_checkpoint(keeping, ensemble, state, members)
    for member, network in zip(members, ensemble.networks, strict=True):
        if member.config.train.save:
            member.keep_weights("weights-end.safetensors", network.state_dict())
    describe_environment()  # cached from now on: the threads must not all ask for it
    map_in_threads(lambda member: member.finish(plan.steps), members)


def write_checkpoint(keeping: Checkpointing, ensemble: Ensemble, state: State, members: list[RunRecorder]) -> None:
    """Write a checkpoint; the files are on the disk before, so that none is shorter than it says."""
    kept = map_in_threads(lambda member: member.kept(), members)
    checkpoint.save_checkpoint(keeping.path, ensemble, state, [m.config for m in members], kept)


def dispatch_event(event: Event, members: list[RunRecorder]) -> None:
    """Tell the members what happened to them."""
    if isinstance(event, Evaluation):
        for i, member in enumerate(members):
            member.evaluated(event.step, {k: v[i] for k, v in event.values.items() if i in v})
    elif isinstance(event, Steps):
        dispatch_steps(event, members)
    elif isinstance(event, Snapshot):
        for i, rows in event.rows.items():
            members[i].measured(event.step, rows, event.histograms[i])
    elif isinstance(event, Stopped):
        members[event.member].stopped = event


def dispatch_steps(event: Steps, members: list[RunRecorder]) -> None:
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


def progress_facts(plan: TrainingPlan, members: list[RunRecorder]) -> dict[str, Any]:
    """Say how far an ensemble is, for a progress line."""
    running = [m for m in members if m.stopped is None]
    lead = running[0] if running else members[0]
    return {
        "step": max(m.step for m in members),
        "steps": plan.steps,
        "members": len(members),
        "diverged": sum(m.stopped is not None and m.stopped.reason == "diverged" for m in members),
        "loss": lead.recent["loss"][-1][1] if lead.recent["loss"] else None,
        "val_accuracy": lead.latest.get("val_accuracy"),
    }
