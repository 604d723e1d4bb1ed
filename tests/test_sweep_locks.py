"""Where a sweep writes: only inside its own directory, whatever it is called and whatever lies there already."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import initlab
from initlab.config.checks import is_relative_path
from initlab.config.compose import compose_config
from initlab.errors import UserError
from initlab.records import RunWriter, load
from initlab.records.checksums import append_checksum
from initlab.report import write_sweep_run
from initlab.sweep.locks import sweep_lock
from initlab.sweep.plan_file import PlanFile

ROOT = Path(__file__).parents[1]
TINY = {
    "depth": 1,
    "width": 4,
    "data": "gaussian",
    "data.train_size": 60,
    "data.test_size": 20,
    "train.batch_size": 20,
    "train.steps": 2,
    "log.tensorboard": False,
    "log.histograms": 0,
}


def sweep(root, **more):
    config = {**TINY, "init": ["zeros", "ones"], "sweep.root": str(root), "sweep.name": "s", **more}
    return initlab.sweep(config, quiet=True)


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


OUTSIDE = (
    "..", ".", "../x", "a/../../x", "a/..", "/absolute", "//x", "a//b", "a/", "/", " ", "a/ /b", "...", "a\\b", "..\\x",
    "C:x", "C:/x", "\\\\host\\share", "a\x1bb", "a\nb", "a\0b", "a\u202eb", "\udcff", "x" * 256, "é" * 200, "",
)  # fmt: skip
INSIDE = (
    "s",
    "depths",
    "mine/depths",
    "é",
    "zoë 2",
    "漢字",
    "a.b",
    ".hidden",
    "..a",
    "a..",
    "2026-01-01_12-00-00",
    "x" * 255,
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_refused(name):
    assert not is_relative_path(name)


@pytest.mark.parametrize("name", INSIDE)
def test_a_name_that_stays_inside_is_taken(tmp_path, name):
    assert is_relative_path(name)
    assert tmp_path in (tmp_path / name).resolve().parents


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x"])
def test_a_sweep_that_would_leave_its_root_writes_nothing(tmp_path, name):
    root = tmp_path / "deep" / "root"
    with pytest.raises(UserError, match=r"sweep\.name=.*inside sweep\.root.*sweep\.name=depths"):
        sweep(root, **{"sweep.name": name})
    with pytest.raises(UserError, match=r"sweep\.name"):
        compose_config([f"sweep.name='{name}'"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_it_too(tmp_path):
    command = [sys.executable, "train.py", "-m", "init=zeros,ones", f"sweep.root={tmp_path}/a/b", "sweep.name=../../x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "sweep.name" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.json", ".groups", "multirun.yaml", "cell", ".hydra", "metrics.csv"])
def test_links_inside_a_sweep_lead_to_no_writing_elsewhere(tmp_path, name):
    sweep(tmp_path / "root")
    run = Path(load(tmp_path / "root" / "s")["path"].iloc[0])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for kept in ("g0001.pt", "metrics.csv", "summary.json", "run.log", "plan.json"):
        (elsewhere / kept).write_text("kept\n")
    before = files(elsewhere)
    (run / "summary.json").unlink()  # so that it is run again
    if name == "metrics.csv":
        (run / name).unlink()
        (run / name).symlink_to(elsewhere / name)
        sweep(tmp_path / "root")  # which removes the link
        assert not (run / name).is_symlink()
    else:
        place = {"cell": run, ".hydra": run / name}.get(name, tmp_path / "root" / "s" / name)
        if place.exists():
            place.rename(tmp_path / "aside")
        place.symlink_to(elsewhere / "plan.json" if "." in name[1:] else elsewhere)
        with pytest.raises(UserError, match=r"symbolic link.*remove it"):
            sweep(tmp_path / "root")
    assert files(elsewhere) == before


def test_a_root_that_is_a_link_is_the_users_own_word(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert sweep(tmp_path / "root")["status"].tolist() == ["completed"] * 2
    assert len(load(tmp_path / "real")) == 2


def test_a_resumed_run_and_the_sweeps_own_run_follow_no_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept\n" * 100)
    run = RunWriter(tmp_path / "run", {"depth": 1}, tensorboard=False)
    run.add_scalars(0, {"loss": 1.0})
    position = run.position()
    (tmp_path / "run" / "metrics.csv").unlink()
    (tmp_path / "run" / "metrics.csv").symlink_to(tmp_path / "elsewhere" / "file")
    with pytest.raises(UserError, match="not a regular file"):
        RunWriter.resume(tmp_path / "run", position, {"depth": 1})
    sweep(tmp_path / "root")
    (tmp_path / "root" / "s" / "sweep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="symbolic link"):
        write_sweep_run(tmp_path / "root" / "s")
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept\n" * 100
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.parametrize("group", ["../../x", "/x", "g1/../../x", "g" + "9" * 5000, "g0001" + "a" * 300, "", "g٣٣٣٣"])
def test_a_plan_names_no_file_elsewhere(tmp_path, group):
    plan = tmp_path / "plan.json"
    plan.write_bytes(append_checksum(json.dumps({"format": 2, "groups": {group: ["0"]}}, indent=0).encode()))
    found = PlanFile.read(plan)
    assert "its groups are planned again" in found.damage
    assert found.groups == {}
    plan.write_bytes(append_checksum(json.dumps({"format": 2, "groups": {"g0001ab": ["0"]}}, indent=0).encode()))
    assert PlanFile.read(plan) == PlanFile(plan, {"g0001ab": ["0"]})


def test_strange_things_among_the_groups_are_cleared_away(tmp_path):
    sweep(tmp_path)
    room = tmp_path / "s" / ".groups"
    (room / "directory").mkdir(parents=True)
    os.mkfifo(room / "g0001.pt")
    (room / "link.pt").symlink_to("/dev/zero")
    assert sweep(tmp_path, init=["zeros", "ones", "he_normal"])["status"].tolist() == ["completed"] * 3
    assert not room.exists()


# ---- what holds the directory


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_another_launch(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        assert sweep(tmp_path)["status"].tolist() == ["completed"] * 2
        told = capsys.readouterr().err
        assert told.count("has no locks") == 1
        assert os.strerror(number) in told
    with sweep_lock(tmp_path / "s"), sweep_lock(tmp_path / "s"):
        told = capsys.readouterr().err
    assert f"process {os.getpid()} on" in told.splitlines()[1]  # what a second launch would want to know


def test_a_file_system_with_locks_says_nothing_and_holds(tmp_path, capsys):
    held = pytest.raises(UserError, match=f"is being run by process {os.getpid()}")
    with sweep_lock(tmp_path / "s"), held, sweep_lock(tmp_path / "s"):
        pytest.fail("both hold it")
    assert capsys.readouterr().err == ""


def test_a_directory_in_the_place_of_the_plan_is_one_sentence(tmp_path):
    (tmp_path / "s" / "plan.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"plan\.json is a directory.*remove it"):
        sweep(tmp_path)
    (tmp_path / "s" / "plan.json").rmdir()
    os.mkfifo(tmp_path / "s" / "plan.json")
    assert sweep(tmp_path)["status"].tolist() == ["completed"] * 2
    assert (tmp_path / "s" / "plan.json").is_file()
