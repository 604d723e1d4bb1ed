"""Damage to any file of a sweep: the next launch repairs it to the last bit or refuses it, and never ends otherwise."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2

from initlab import load, load_layers
from initlab.cli.train import run_train
from initlab.experiment import checkpoint
from initlab.records import load_histograms, load_metrics
from initlab.training import loop

EVENTS = "events.out.tfevents.initlab"
STEPS, STOPPED = 14, 9
GRID = ["-m", "init=he_normal,zeros", "act=tanh,relu", "depth=1", "width=3", "data=gaussian", "data.train_size=60"]
GRID += ["data.test_size=20", "train.batch_size=20", f"train.steps={STEPS}", "log.eval_every=4", "log.histograms=4"]
GRID += ["train.save=true", "sweep.name=s", "sweep.checkpoint_every=1e-9", "hydra.launcher.executor=inline"]
# What a launch writes for people and for TensorBoard, and never reads: it may stay damaged, or be written again.
VIEWS = {EVENTS, "run.log", "multirun.yaml", ".lock", ".lock.json"}
OF_THE_MACHINE = {"seconds", "environment", "crc32"}


def launch(root: Path) -> int:
    """Start the sweep, or go on with it, and return the exit code."""
    return run_train([*GRID, f"sweep.root={root}"])


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """A sweep that was stopped in the middle of its second group, and the same one when it is done."""
    root = tmp_path_factory.mktemp("sweeps")  # all that is compared lies at root/work: configurations know their place
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "YIELD_EVERY", -1.0)
        patch.setattr(sys.modules["initlab.experiment.run"], "CHECKPOINT_COST_FACTOR", 0)
        real, groups = checkpoint.save_checkpoint, set()

        def stop_in_the_second(path, ensemble, state, *others):
            real(path, ensemble, state, *others)
            groups.add(path)
            if len(groups) == 2 and state.step == STOPPED:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(checkpoint, "save_checkpoint", stop_in_the_second)
        assert launch(root / "work") == 143
    assert {path.name for path in (root / "work/s/.groups").glob("*.pt")} == {"g0002.pt", "g0002.before.pt"}
    shutil.copytree(root / "work", root / "stopped")
    assert launch(root / "work") == 0
    shutil.copytree(root / "work", root / "done")
    return root


def records(root: Path) -> dict[str, object]:
    """Return all that a sweep has recorded, without what depends on the clock and on the place."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or path.name in VIEWS or ".hydra" in path.parts or path.name.endswith(".lock"):
            continue
        if path.name == "summary.json":
            found[name] = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in OF_THE_MACHINE}
        elif path.name == "sweep.csv":
            table = pd.read_csv(path)
            found[name] = table[[key for key in table if key not in OF_THE_MACHINE]].to_csv()
        else:
            found[name] = path.read_bytes()
    return found


def loaded(root: Path) -> dict[str, list[str]]:
    """Return what `load` and its sisters say of every run, by the run's name, with `problem` first."""
    runs = load(root)
    tables = [read(runs, keys=()) for read in (load_metrics, load_layers, load_histograms)]
    found = {}
    for _, row in runs.iterrows():
        own = [table[table["path"] == row["path"]].drop(columns="path").to_csv(index=False) for table in tables]
        told = json.loads(row.drop(["path", "problem"]).dropna().to_json())
        # A column of whole numbers is one of floats where another run, which cannot be read, has none.
        told = json.dumps({key: float(value) if type(value) is int else value for key, value in told.items()})
        found[Path(row["path"]).name] = [row["problem"] or "", row["status"], told, *own]
    return found


def flip(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    return data


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def zero(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    size = len(data) if rng.random() < 0.3 else rng.randint(1, 512)
    end = min(start + size, len(data))
    data[start:end] = bytes(end - start)
    return data


def edit(data: bytearray, rng: random.Random) -> bytearray:
    """Change a digit, double or take out a line, or put a few bytes in: what hands and editors do."""
    kind = rng.randrange(4)
    digits = [k for k, byte in enumerate(data) if 48 <= byte <= 57]
    if kind == 0 and digits:
        place = rng.choice(digits)
        data[place] = rng.choice([b for b in range(48, 58) if b != data[place]])
        return data
    lines = bytes(data).splitlines(keepends=True)
    if kind in (1, 2):
        place = rng.randrange(len(lines))
        lines[place : place + 1] = [lines[place]] * (2 if kind == 1 else 0)
        return bytearray(b"".join(lines))
    place = rng.randrange(len(data))
    data[place:place] = rng.choice([b"\n", b" ", b"#", b"7", b",", b"e5", b"depth: 7\n", bytes([rng.randrange(256)])])
    return data


DAMAGES = (flip, truncate, zero, edit)


def targets(sweep: Path) -> list[Path]:
    """Return all files that hold something."""
    return sorted(path for path in sweep.rglob("*") if path.is_file() and path.stat().st_size)


def readable_steps(path: Path) -> set[int]:
    """Return the steps whose training loss TensorBoard's own reader finds in an event file."""
    found = set()
    for data in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(data)
        found |= {event.step for value in event.summary.value if value.tag == "loss/train"}
    return found


def check(sweeps: Path, state: str, number: int, capfd) -> str:
    """Damage one file, say what becomes of it, and fail if it ends otherwise than it should."""
    rng = random.Random(f"{state} {number}")
    place = sweeps / "work"
    shutil.rmtree(place)
    shutil.copytree(sweeps / state, place)
    intact = loaded(place)
    files = targets(place)
    path = files[number % len(files)] if number < 2 * len(files) else rng.choice(files)
    damage = DAMAGES[(number + number // len(files)) % len(DAMAGES)]
    before = path.read_bytes()
    path.write_bytes(damage(bytearray(before), rng))
    what = f"{damage.__name__} of {path.relative_to(place)} in the {state} sweep (number {number})"
    if path.read_bytes() == before:
        return "the same"
    now, finished = loaded(place), [name for name, own in intact.items() if own[1] != "unfinished"]
    silent = [name for name in finished if now.get(name) != intact[name] and not now.get(name, [""])[0]]
    assert not silent, f"{what} is loaded without a word"
    capfd.readouterr()
    code = launch(place)
    said = capfd.readouterr().err
    if code:
        assert code == 2, f"{what}: exit code {code}, {said}"
        assert said.startswith("initlab: "), what
        assert said.count("\n") == 1, f"{what}: {said}"
        return "refused"
    expected, found = records(sweeps / "done"), records(place)
    differing = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
    assert not differing, f"{what} ends with other {sorted(differing)}: {said}"
    assert not load(place)["problem"].any(), what
    for run in (sweeps / state).glob("s/*/run.log"):
        # The event file of a run that was done already is a view that nothing will append to.
        if not run.with_name("summary.json").exists():
            run = place / run.relative_to(sweeps / state)
            assert {STEPS - 1, STEPS - 2} <= readable_steps(run.with_name(EVENTS)), f"{what}: the events"
    return "repaired"


@pytest.mark.parametrize("state", ["stopped", "done"])
def test_damage_is_repaired_to_the_last_bit_or_refused(sweeps, capfd, state):
    outcomes = [check(sweeps, state, k, capfd) for k in range(20)]
    assert outcomes.count("repaired") >= 15


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("state", ["stopped", "done"])
def test_150_damages(sweeps, capfd, state):
    outcomes = [check(sweeps, state, k, capfd) for k in range(150)]
    assert outcomes.count("repaired") >= 120
