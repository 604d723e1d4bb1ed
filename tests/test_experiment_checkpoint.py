"""Checkpoints that are damaged, configurations that were edited, and power cuts: what a launch goes on from."""

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

import initlab
from initlab.config.compose import compose_config
from initlab.errors import Interrupted
from initlab.experiment import Checkpointing, checkpoint, run
from initlab.experiment.checkpoint import UnusableCheckpoint
from initlab.experiment.run import Computation
from initlab.records import load
from initlab.sweep.plan_file import PlanFile
from initlab.system.files import map_in_threads
from initlab.training import loop

TINY = ["depth=2", "width=6", "train.batch_size=50", "data=gaussian", "data.train_size=300", "data.test_size=60"]
TINY += ["train.steps=12", "log.eval_every=5", "log.histograms=4", "train.save=true"]
RECORDS = ("config.yaml", "parameters.csv", "metrics.csv", "layers.csv", "histograms.csv")
RECORDS += ("weights-0.safetensors", "weights-end.safetensors")
EVENTS = "events.out.tfevents.initlab"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Let the loop pause before every step, and a checkpoint be kept at each pause when one is due."""
    monkeypatch.setattr(loop, "YIELD_EVERY", -1.0)
    monkeypatch.setattr(sys.modules["initlab.experiment.run"], "CHECKPOINT_COST_FACTOR", 0)


def configs(*others):
    return [compose_config([*TINY, *others, f"seed={s}"]) for s in (0, 1)]


def stopped(place: Path, at: int = 8, *others: str) -> None:
    """Train two networks up to a step, with a checkpoint at each."""
    count = [0]

    def stop():
        count[0] += 1
        return signal.SIGTERM if count[0] == at else 0

    with pytest.raises(Interrupted):
        run(configs(*others), [place / "0", place / "1"], checkpointing=Checkpointing(place / "c.pt", 0.0, stop))


def go_on(place: Path, *others: str) -> list[str]:
    """Train them to their end and return the remarks; a checkpoint that is no use is left behind, as a sweep does."""
    keeping = Checkpointing(place / "c.pt", 1e9)
    try:
        run(configs(*others), [place / "0", place / "1"], checkpointing=keeping)
    except UnusableCheckpoint as reason:
        keeping.remarks.append(f"again: {reason}")
        checkpoint.remove_checkpoints(place / "c.pt")
        run(configs(*others), [place / "0", place / "1"], checkpointing=keeping)
    return keeping.remarks


def contents(place: Path) -> dict[str, bytes]:
    return {f"{k}/{name}": (place / k / name).read_bytes() for k in "01" for name in RECORDS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the two networks record when nothing happens."""
    place = tmp_path_factory.mktemp("whole")
    run(configs(), [place / "0", place / "1"])
    return contents(place)


# --- checkpoints


def test_every_flip_of_a_bit_is_seen(tmp_path):
    stopped(tmp_path)
    path, rng = tmp_path / "c.pt", random.Random(0)
    intact = path.read_bytes()
    checkpoint.load_checkpoint(path, configs())
    size = 8 * len(intact)
    ends = [*range(256), *range(size - 8 * checkpoint.CHECKSUM_LENGTH - 2048, size)]  # headers, directory, seal
    unseen = 0
    for number in [*rng.sample(ends, 100), *(rng.randrange(size) for _ in range(100))]:
        data = bytearray(intact)
        data[number // 8] ^= 1 << number % 8
        path.write_bytes(data)
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            unseen += 1
        with pytest.raises(UnusableCheckpoint, match="changed or cut short"):
            checkpoint.load_checkpoint(path, configs())
    assert unseen > 100  # what torch itself sees is no protection


DAMAGES = {
    "flipped": lambda data: data[:5000] + bytes([data[5000] ^ 4]) + data[5001:],
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\n",
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "zeros at the end": lambda data: data[:-4096] + bytes(4096),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(tmp_path, whole, damage):
    stopped(tmp_path)
    newest = tmp_path / "c.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    remarks = go_on(tmp_path)
    assert contents(tmp_path) == whole
    assert len(remarks) == 1
    assert "the newest checkpoint is not used: it was changed or cut short" in remarks[0]
    for k in "01":
        log = (tmp_path / k / "run.log").read_text()
        assert remarks[0] in log
        assert "resumed at step 6" in log  # the newest was of step 7


def test_a_damaged_checkpoint_never_becomes_the_one_before(tmp_path, whole):
    stopped(tmp_path)
    (tmp_path / "c.pt").write_bytes(b"")
    good = checkpoint.previous_checkpoint(tmp_path / "c.pt").read_bytes()
    with pytest.raises(Interrupted):
        run(
            configs(), [tmp_path / "0", tmp_path / "1"], checkpointing=Checkpointing(tmp_path / "c.pt", 1e9, lambda: 15)
        )
    assert checkpoint.previous_checkpoint(tmp_path / "c.pt").read_bytes() == good
    assert go_on(tmp_path) == []
    assert contents(tmp_path) == whole


def test_with_both_damaged_it_begins_again(tmp_path, whole):
    stopped(tmp_path)
    for path in checkpoint.existing_checkpoints(tmp_path / "c.pt"):
        path.write_bytes(path.read_bytes()[:-9])
    remarks = go_on(tmp_path)
    assert remarks == ["again: it was changed or cut short after it was written"]
    assert contents(tmp_path) == whole
    assert remarks[0] in (tmp_path / "1" / "run.log").read_text()


def test_a_launch_that_died_between_two_renames_left_the_one_before(tmp_path, whole):
    stopped(tmp_path)
    (tmp_path / "c.pt").unlink()
    assert go_on(tmp_path) == []
    assert contents(tmp_path) == whole
    assert "resumed at step 6" in (tmp_path / "0" / "run.log").read_text()


# --- tables


def zeroed(path: Path, count: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-count] + bytes(count))


@pytest.mark.parametrize("name", ["metrics.csv", "layers.csv", "histograms.csv"])
def test_no_table_is_gone_on_from_whose_end_is_zeros(tmp_path, whole, name):
    stopped(tmp_path)
    zeroed(tmp_path / "1" / name, 10)
    remarks = go_on(tmp_path)
    assert contents(tmp_path) == whole
    assert len(remarks) == 1
    assert f"in 1, {name} was changed after it was written" in remarks[0]
    # Only metrics.csv grew since the checkpoint before.
    assert ("goes on at step 6" in remarks[0]) == (name == "metrics.csv")


@pytest.mark.parametrize("place", [0, 30, 90])
def test_a_digit_that_was_changed_is_seen(tmp_path, whole, place):
    stopped(tmp_path)
    path = tmp_path / "0" / "metrics.csv"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    remarks = go_on(tmp_path)
    assert contents(tmp_path) == whole
    assert "metrics.csv was changed after it was written" in remarks[0]


def test_initial_weights_that_were_damaged_are_not_kept(tmp_path, whole):
    stopped(tmp_path)
    zeroed(tmp_path / "0" / "weights-0.safetensors", 4)
    assert "weights-0.safetensors was changed" in go_on(tmp_path)[0]
    assert contents(tmp_path) == whole


# --- what a run directory records of its own configuration and parameters


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: edited(path, "\ndepth: 2\n", "\ndepth: 7\n"), "was changed (depth: 7 for 2)"),
        (lambda path: edited(path, "\ndepth: 2\n", "\n"), "was changed (depth: nothing for 2)"),
        (lambda path: edited(path, "\ndepth: 2\n", "\ndepth: 2\nmine: 1\n"), "was changed (mine: 1 for nothing)"),
        (lambda path: edited(path, "\ndepth: 2\n", "\ndepth: 2  # \n"), "was changed (its text)"),
        (lambda path: edited(path, "\ndepth: 2\n", "\ndepth: '2'\n"), "was changed (depth: '2' for 2)"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "was changed ("),
        (lambda path: path.write_text("{"), "could not be read"),
        (lambda path: path.write_text(""), "could not be read"),
        (lambda path: path.write_bytes(b"\xff\0"), "could not be read"),
        (lambda path: path.unlink(), "was missing"),
    ],
)
def test_the_configuration_of_a_resumed_run_is_that_of_its_launch(tmp_path, whole, change, says):
    stopped(tmp_path)
    change(tmp_path / "0" / "config.yaml")
    remarks = go_on(tmp_path)
    assert contents(tmp_path) == whole
    row = load(tmp_path).iloc[0]
    assert (row["depth"], row["status"], row["problem"]) == (2, "completed", "")
    assert len(remarks) == 1
    assert f"0/config.yaml {says}" in remarks[0]
    assert remarks[0] in (tmp_path / "0" / "run.log").read_text()
    assert says not in (tmp_path / "1" / "run.log").read_text()


def test_what_has_no_say_in_a_result_may_be_recorded_otherwise(tmp_path):
    stopped(tmp_path, 8, "sweep.name=a")
    assert go_on(tmp_path, "sweep.name=b") == []
    assert load(tmp_path)["sweep.name"].tolist() == ["b", "b"]


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("name\n")])
def test_parameters_are_written_again(tmp_path, whole, change):
    stopped(tmp_path)
    change(tmp_path / "0" / "parameters.csv")
    assert "parameters.csv was changed or missing" in go_on(tmp_path)[0]
    assert contents(tmp_path) == whole


def test_views_that_are_damaged_cost_no_training(tmp_path, whole):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    stopped(tmp_path, 4)
    assert not (tmp_path / "0" / "run.log").exists()
    stopped(tmp_path, 5)  # it goes on, and says so in its log
    events, log = tmp_path / "0" / EVENTS, tmp_path / "0" / "run.log"
    assert "resumed at step 3" in log.read_text()
    data = bytearray(events.read_bytes())
    data[len(data) // 2] ^= 1
    events.write_bytes(data[:-20] + bytes(20))
    log.write_bytes(log.read_bytes()[:-5] + bytes(5))
    remarks = go_on(tmp_path)
    assert contents(tmp_path) == whole
    assert [remark.partition(" ")[0] for remark in remarks] == ["run.log", EVENTS]
    assert all("bytes were kept" in remark for remark in remarks)
    assert "resumed at step 7" in log.read_text()
    assert b"\0" not in log.read_bytes()
    assert max(event.step for event in EventFileLoader(str(events)).Load()) == 12


def test_where_no_thread_can_be_started_files_wait_one_after_another(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert map_in_threads(lambda k: k * k, range(50)) == [k * k for k in range(50)]


def test_the_first_exception_ends_what_waits():
    def call(k):
        if k == 3:
            raise OSError(5, "no")
        return k

    with pytest.raises(OSError, match="no"):
        map_in_threads(call, range(1000))
    assert threading.active_count() == len(threading.enumerate())


# --- plans


def plan(place: Path) -> PlanFile:
    file = PlanFile(place / "plan.json", {"g0001": ["aa", "bb"], "g0002": ["cc"]})
    file.write()
    return file


def test_no_flip_of_a_bit_changes_a_plan(tmp_path):
    groups, rng = plan(tmp_path).groups, random.Random(0)
    intact = (tmp_path / "plan.json").read_bytes()
    for _ in range(200):
        data = bytearray(intact)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "plan.json").write_bytes(data)
        found = PlanFile.read(tmp_path / "plan.json")
        assert (found.groups, found.lost) == (groups, False)
        assert "its copy .plan.json is used" in found.damage


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"format": 2, "groups": {}}')])
def test_a_plan_is_lost_only_with_its_copy(tmp_path, damage):
    groups = plan(tmp_path).groups
    damage(tmp_path / "plan.json")
    found = PlanFile.read(tmp_path / "plan.json")
    assert (found.groups, found.lost) == (groups, False)
    (tmp_path / ".plan.json").write_bytes(b"")
    found = PlanFile.read(tmp_path / "plan.json")
    assert (found.groups, found.lost) == ({}, True)
    assert "planned again" in found.damage
    assert PlanFile.read(tmp_path / "none.json") == PlanFile(tmp_path / "none.json")


# --- power cuts


class Disk:
    """What is on the disk: the bytes of every file and the entries of every directory when they were last synced."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, end: int = -1):
        self.root, self.end, self.count = root, end, 0
        self.bytes: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, int]] = {}
        self.keep(root)
        fsync = os.fsync

        def heard(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_relative_to(root):
                self.keep(path)
                self.count += 1
                if self.count == self.end:
                    raise PowerCut

        patch.setattr(os, "fsync", heard)
        patch.setattr("initlab.system.files.MAX_THREADS", 1)

    def keep(self, path: Path) -> None:
        if path.is_dir():
            self.entries[path.stat().st_ino] = {child.name: child.stat().st_ino for child in path.iterdir()}
        else:
            self.bytes[path.stat().st_ino] = path.read_bytes()

    def after_the_cut(self, zeros: bool) -> None:
        """Put the disk in place of the directory: without what was not synced, or with zeros for it."""
        left = self.root.with_name("left")
        self.build(self.root, left, zeros)
        shutil.rmtree(self.root)
        left.rename(self.root)

    def build(self, path: Path, left: Path, zeros: bool) -> None:
        left.mkdir()
        found = self.entries.get(path.stat().st_ino, {})
        if zeros:
            found = {child.name: child.stat().st_ino for child in path.iterdir()} | found
        for name, number in found.items():
            child = path / name
            if child.is_dir():
                self.build(child, left / name, zeros)
            elif number in self.bytes or not zeros:
                (left / name).write_bytes(self.bytes.get(number, b""))
            else:
                (left / name).write_bytes(bytes(child.stat().st_size) if child.exists() else b"")


class PowerCut(BaseException):
    """The process is gone, without a last word."""


def sweep(root: Path) -> None:
    initlab.sweep(
        {"init": ["he_normal", "zeros"], "act": ["tanh", "relu"], "depth": 1, "width": 3, "train.steps": 6},
        data="gaussian", data__train_size=60, data__test_size=20, train__batch_size=20, log__histograms=3,
        train__save=True, sweep__root=str(root), sweep__name="s", sweep__checkpoint_every=1e-9, quiet=True,
        executor="inline",
    )  # fmt: skip


def recorded(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.name in RECORDS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Where a sweep lies, what it records there, and how often it waits for the disk."""
    root = tmp_path_factory.mktemp("power") / "root"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "YIELD_EVERY", -1.0)
        patch.setattr(sys.modules["initlab.experiment.run"], "CHECKPOINT_COST_FACTOR", 0)
        disk = Disk(root, patch)
        sweep(root)
    return root, recorded(root), disk


def test_a_sweep_that_has_ended_survives_a_power_cut(undisturbed):
    root, expected, disk = undisturbed
    for name, zeros in (("nothing", False), ("zeros", True)):
        left = root.with_name(name)
        disk.build(root, left, zeros)
        assert recorded(left) == expected
        assert load(left)["status"].tolist() == ["completed"] * 4
        assert not load(left)["problem"].any()


@pytest.mark.parametrize("zeros", [False, True], ids=["nothing", "zeros"])
@pytest.mark.parametrize(
    "share", [0.02, 0.4, 0.7, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.2, 0.45, 0.95))]
)
def test_a_power_cut_costs_at_most_what_came_after_the_last_checkpoint(undisturbed, zeros, share, monkeypatch):
    root, expected, whole = undisturbed
    shutil.rmtree(root)
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch, end=max(int(share * whole.count), 1))
        with pytest.raises(PowerCut):
            sweep(root)
    disk.after_the_cut(zeros)
    told = []
    begin = Computation.begin
    monkeypatch.setattr(Computation, "begin", lambda self: told.append(self.directories) or begin(self))
    kept = {path.stem.split(".")[0] for path in root.rglob("*.pt") if path.stat().st_size}
    sweep(root)
    assert recorded(root) == expected
    assert not load(root)["problem"].any()
    if kept:
        assert len(told) <= 1, "a group began again although it had a checkpoint"
