"""run(configs, directories): the one place where all rooms meet."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from initlab.config import Config
from initlab.data import Dataset
from initlab.ensemble import Ensemble, stack
from initlab.experiment.build import load_data, make_network, make_plan, pick_activation, pick_device
from initlab.experiment.member import Member
from initlab.training import Evaluation, Plan, Snapshot, Steps, Stopped, train

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
    members = [Member(c, directory, module, rows, data.classes) for c, directory, (module, rows) in with_members]
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
