"""The garbage collector rests while modules load, and works as before afterwards."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from initlab.system.startup import OPENMP_WAIT, USER_WAIT_VARIABLES, fast_imports

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_it_was():
    before = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("before", [True, False])
def test_it_rests_for_the_while_alone(before):
    (gc.enable if before else gc.disable)()
    with fast_imports():
        assert not gc.isenabled()
    assert gc.isenabled() == before


def test_a_module_that_cannot_be_loaded_leaves_it_at_work():
    gc.enable()
    with pytest.raises(ModuleNotFoundError), fast_imports():
        import nowhere_to_be_found  # noqa: F401
    assert gc.isenabled()


ENDING = """
import gc
from initlab.system.startup import fast_imports

class Node:
    def __init__(self, name):
        self.name, self.self = name, self

    def __del__(self, say=print):
        say(self.name)

with fast_imports():
    loaded = Node("loaded")
del loaded
gc.collect()
later = Node("later")
del later
gc.collect()
print("the end")
"""


def test_what_was_loaded_is_left_in_peace_to_the_end_and_what_comes_later_is_not():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert done.stdout.split() == ["later", "the", "end"], done.stdout + done.stderr


def test_where_somebody_counts_what_is_left_behind_nothing_is():
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['triton'] = None\n{ENDING}"], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:3] == ["later", "the end", "loaded"], done.stdout + done.stderr


def load_and_be_interrupted(then):
    """Load what takes Ctrl-C for a failure of its own."""
    with fast_imports():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if then is not None:
                raise then from None


@pytest.mark.parametrize("then", [None, ImportError("it cannot be loaded"), SystemError("no result")])
def test_ctrl_c_is_that_whatever_a_module_makes_of_it(then):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load_and_be_interrupted(then)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_module_fails_by_itself_is_its_own():
    with pytest.raises(ImportError, match="of its own"), fast_imports():
        raise ImportError("of its own")


def test_who_hears_ctrl_c_already_goes_on_hearing():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with fast_imports():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


# --- how threads wait

SAID = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


def waits(code, **given):
    """Return how OpenMP's threads are to wait after this code."""
    clean = {key: value for key, value in os.environ.items() if key not in (*OPENMP_WAIT, *USER_WAIT_VARIABLES)}
    command = [sys.executable, "-c", f"{code}\n{SAID}"]
    done = subprocess.run(command, env={**clean, **given}, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("code", "given", "found"),
    [
        ("import initlab", {}, "1000 1"),
        ("import initlab.cli.train", {}, "1000 1"),
        ("import initlab.cli", {}, "1000 1"),
        ("import train", {}, "1000 1"),
        ("import initlab.system.parent_process", {}, "1000 1"),
        ("import initlab", {"GOMP_SPINCOUNT": "7"}, "7 1"),
        ("import initlab", {"KMP_BLOCKTIME": "infinite"}, "1000 infinite"),
        ("import initlab", {"OMP_WAIT_POLICY": "active"}, "None None"),
        ("import initlab", {"KMP_LIBRARY": "turnaround"}, "None None"),
        ("import torch, initlab", {}, "None None"),
    ],
)
def test_threads_wait_for_a_short_time_unless_the_user_says_how(code, given, found):
    assert waits(code, **given)[0] == found


def test_no_room_of_the_package_loads_torch_before_it_is_said():
    """Every way into the package passes its `__init__`, and that says it in its first lines."""
    lines = (ROOT / "src" / "initlab" / "__init__.py").read_text().splitlines()
    imports = [
        line for line in lines[: lines.index("limit_openmp_spinning()  # before torch is loaded")] if "import" in line
    ]
    assert imports == [
        "from importlib import import_module",
        "from typing import Any",
        "from initlab.system.startup import limit_openmp_spinning",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another library for its threads there")
def test_the_library_that_torch_loads_heeds_it():
    said = waits("import initlab, torch", OMP_DISPLAY_ENV="VERBOSE")[1]
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this torch has another library for its threads")
    assert "GOMP_SPINCOUNT = '1000'" in said


LAUNCH = """
import os, torch
from initlab.sweep.executors.process import send_pickled, start_process
worker = start_process(dict(os.environ))
send_pickled((os.sched_getaffinity(0), 1, dict(os.environ)), worker.stdin)
send_pickled("no task", worker.stdin)  # ends the worker when it has imported torch
worker.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch has another library for its threads there")
def test_workers_wait_for_a_short_time_also_where_the_launch_loaded_torch_first():
    _, said = waits(LAUNCH, OMP_DISPLAY_ENV="VERBOSE")
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this torch has another library for its threads")
    spins = [line.partition("= ")[2] for line in said.splitlines() if "GOMP_SPINCOUNT" in line]
    assert len(spins) == 2
    assert spins[0] != "'1000'"
    assert spins[1] == "'1000'"
