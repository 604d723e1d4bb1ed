"""A directory may hold files of any name: what is run there imports none of them that was not asked for."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from initlab.errors import UserError
from initlab.system.imports import change_to_root, load_target

OWN = """
import torch

def half_he(weight, fans, generator):
    weight.copy_(torch.randn(weight.shape, generator=generator) / fans.fan_in ** 0.5)
"""
CONSOLE = "import sys; sys.path.remove(''); from initlab.cli.main import main; sys.argv[0] = 'initlab'; main()"
TINY = ["data=gaussian", "data.train_size=96", "data.test_size=32", "depth=1", "width=8", "train.steps=3",
        "train.batch_size=16", "init=custom", "init.target=mine:half_he", "log.tensorboard=false"]  # fmt: skip


def names():
    """Return every module that Python or an installed package brings: any of them may be imported at any time."""
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    return sorted(set(sys.stdlib_module_names) | installed | {"initlab", "sitecustomize", "usercustomize"})


@pytest.fixture
def hostile(tmp_path):
    """A directory with a file of the name of every module, which says that it was run, beside the user's own."""
    room = tmp_path / "here"
    room.mkdir()
    for name in names():
        (room / f"{name}.py").write_text(f"open({str(tmp_path / f'ran-{name}')!r}, 'w').close()\nraise SystemExit(9)\n")
    (room / "mine.py").write_text(OWN)
    (room / "hydra_plugins").mkdir()
    (room / "hydra_plugins" / "theirs.py").write_text(f"open({str(tmp_path / 'ran-plugin')!r}, 'w').close()\n")
    return room


def ran(room):
    return sorted(path.name for path in room.parent.glob("ran-*"))


KINDS = {
    "alone": [],
    "process": ["-m", "seed=0,1", "hydra.launcher.executor=process", "hydra.launcher.workers=1"],
    "submitit": ["-m", "seed=0,1", "hydra.launcher.executor=submitit", "+hydra.launcher.options.cluster=local"],
    "ray": ["-m", "seed=0,1", "hydra.launcher.executor=ray", "hydra.launcher.workers=1"],
}


@pytest.mark.parametrize("kind", [*list(KINDS)[:-1], pytest.param("ray", marks=pytest.mark.slow)])
def test_nothing_of_the_current_directory_is_imported_but_what_was_asked_for(hostile, kind):
    if kind in ("submitit", "ray"):
        pytest.importorskip(kind)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", CONSOLE, "train", *TINY, *KINDS[kind]]
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, timeout=1500)
    assert ran(hostile) == []
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_imported_is_seen(hostile):
    subprocess.run([sys.executable, "-m", "colorsys"], cwd=hostile, capture_output=True, check=False)
    assert ran(hostile)


def test_an_installed_target_takes_nothing_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(name for name in ("sched", "colorsys", "tabnanny", "filecmp") if name not in sys.modules)
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('not asked for')\ndef mine(): ...\n")
    with pytest.raises(UserError, match=rf"{name}\.py in the current directory is hidden by the installed"):
        load_target(f"{name}:mine")


def test_the_users_own_module_and_what_lies_beside_it_are_found(tmp_path, monkeypatch):
    (tmp_path / "initlab_test_own.py").write_text("from initlab_test_beside import f\n")
    (tmp_path / "initlab_test_beside.py").write_text("def f(): return 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_target("initlab_test_own:f")() == 7
    assert str(tmp_path) not in sys.path


def test_the_current_directory_is_the_root_for_a_while_also_where_it_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with change_to_root():
        assert Path.cwd() == Path(os.sep)
    assert Path.cwd() == tmp_path / "gone"
    (tmp_path / "gone").rmdir()
    with change_to_root():
        assert Path.cwd() == Path(os.sep)


def test_every_program_that_is_started_is_named_here():
    """A new one has to be looked at: where does it import from, what may a directory or a variable make it run?"""
    source = Path(__file__).parents[1] / "src"
    found = set()
    for path in source.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("subprocess.run(", "subprocess.Popen(", "subprocess.check_output(", "os.system(", "os.exec",
                     "os.popen(", "os.spawn", "os.posix_spawn", "runpy.", "os.fork()", "multiprocessing"):  # fmt: skip
            if word in text:
                found.add((str(path.relative_to(source / "initlab")), word))
    assert found == {
        ("system/parent_process.py", "runpy."),
        ("records/commit.py", "subprocess.check_output("),
        ("sweep/executors/process.py", "subprocess.Popen("),
    }
