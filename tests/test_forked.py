"""Copies of a process: what they do and say, how they end, and what the process does where they fail."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from initlab.system.fork import can_fork, is_single_threaded
from initlab.system.parent_process import process_start_time

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system does not copy processes")


def run(script, **options):
    """Run a script in a process with one thread; return the lines that it printed, and its complaints."""
    command = [
        sys.executable,
        "-c",
        f"import os, pickle, signal, sys, time\nfrom initlab.system.fork import *\n{script}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    return done.stdout.splitlines(), done.stderr


def test_a_process_with_threads_is_not_alone():
    assert run("print(alone())") == (["True"], "")
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    try:
        assert not is_single_threaded()
    finally:
        waiting.set()
        thread.join()


def test_numpy_has_threads_of_its_own_unless_told(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert run("import numpy, torch, pandas\nprint(alone())") == (["True"], "")


def test_a_child_says_how_it_ended_and_nothing_twice():
    said, complaints = run("""
print("before")
ends = [Child(lambda: print("within")), Child(lambda: 1 / 0), Child(lambda: 1 / 0, quiet=True), Child(time.sleep)]
ends.append(Child(lambda: signal.raise_signal(signal.SIGINT)))
print([child.wait(30) for child in ends])
sleeper = Child(lambda: time.sleep(600))
print(sleeper.poll())
try:
    sleeper.wait(0.02)
except Exception as error:
    print(type(error).__name__)
sleeper.kill(); print(sleeper.wait(30)); sleeper.kill(); print(sleeper.poll())
""")
    assert said == ["before", "within", "[0, 1, 1, 1, 130]", "None", "TimeoutExpired", "-9", "-9"]
    assert complaints.count("ZeroDivisionError") == 1
    assert complaints.count("TypeError") == 1
    assert "KeyboardInterrupt" not in complaints


def test_what_is_done_aside_comes_back_whole():
    said, complaints = run("""
before = os.getpid()
def work():
    print("working")
    return os.getpid(), bytes(10**7)
with aside(work) as result:
    pid, much = result()
print(pid != before, len(much))
""")
    assert (said, complaints) == (["working", "True 10000000"], "")


@pytest.mark.parametrize("ending", ["raise KeyError('of the work')", "os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_where_the_copy_fails_the_work_is_done_here(ending):
    said, complaints = run(f"""
before = os.getpid()
def work():
    if os.getpid() != before:
        {ending}
    return "done here"
with aside(work) as result:
    print(result())
""")
    assert (said, complaints) == (["done here"], "")


def test_where_no_further_process_can_be_the_work_is_done_here():
    said, complaints = run("""
def fork():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = fork
with aside(lambda: "done here") as result:
    print(result())
""")
    assert (said, complaints) == (["done here"], "")


def test_what_is_wrong_with_the_work_is_raised_here():
    said, complaints = run("""
def work():
    raise ValueError("of the work")
try:
    with aside(work) as result:
        result()
except ValueError as error:
    print(error, error.__traceback__ is not None)
""")
    assert (said, complaints) == (["of the work True"], "")


def test_the_copy_is_ended_where_nobody_waits_for_it():
    said, complaints = run("""
import initlab.system.fork as forked
made = []
init = forked.Child.__init__
forked.Child.__init__ = lambda self, *given, **more: (init(self, *given, **more), made.append(self))[0]
try:
    with aside(lambda: time.sleep(600)):
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print(made[0].returncode)
""")
    assert (said, complaints) == (["-9"], "")


@pytest.mark.parametrize(
    ("line_of_defence", "work"),
    [("forked.end_with = lambda parent: None", "bytes(10**7)"), ("", "time.sleep(600)")],
    ids=["its pipe", "the system"],
)
def test_a_copy_ends_when_who_waits_for_it_is_killed(line_of_defence, work):
    """Its result is larger than the pipe takes at once: with a reading end of its own it would wait for ever."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"""
import os, time
from initlab import forked
{line_of_defence}
def work():
    print(os.getpid(), flush=True)
    return {work}
with forked.aside(work):
    time.sleep(600)
"""],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    limit = time.monotonic() + 60
    while process_start_time(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not process_start_time(pid)


LAUNCH = """
import sys
from initlab import forked, nursery
if sys.argv[1] == "apart":
    forked.alone = lambda: False
start = nursery.Nursery.__init__
def noted(self, entry, here=False):
    start(self, entry, here)
    print("here", here)
    if here:
        from initlab.sweep.placement import Placement
        early = Placement.early
        Placement.early = lambda *given: print("looks for cards") or early(*given)
nursery.Nursery.__init__ = noted
from initlab.cli.train import run_train
sys.exit(run_train(sys.argv[2:]))
"""
GRID = ["-m", "data=gaussian", "data.train_size=96", "data.test_size=32", "data.validation=0", "depth=2", "width=8",
        "train.batch_size=16", "train.steps=6", "log.tensorboard=false", "device=cpu", "sweep.root=.",
        "hydra.launcher.executor=process", "hydra.launcher.workers=2"]  # fmt: skip
needs_cores = pytest.mark.skipif(
    can_fork() and len(os.sched_getaffinity(0)) < 2, reason="nothing is done aside where there is one core"
)


def command(*given, place="alone", start=LAUNCH):
    return [sys.executable, "-c", start, place, *GRID, *given]


@needs_cores
def test_a_launch_that_is_alone_loads_torch_once_and_its_table_is_the_same(tmp_path):
    grid = ["init=he_normal,zeros,orthogonal", "seed=0,1", "act=tanh,relu"]
    tables = {}
    for place in ("alone", "apart"):
        done = subprocess.run(
            command(*grid, f"sweep.name={place}", place=place),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        # What a card was told does not survive copying.
        first = ["here True", "looks for cards"] if place == "alone" else ["here False"]
        assert done.stdout.splitlines()[: len(first)] == first
        table = (tmp_path / place / "sweep.csv").read_text().splitlines()
        head = table[0].split(",")
        kept = [head.index(name) for name in ("init", "act", "seed", "status", "loss", "accuracy", "test_loss")]
        tables[place] = sorted([line.split(",")[k] for k in kept] for line in table[1:])
    assert len(tables["alone"]) == 12
    assert tables["alone"] == tables["apart"]


@needs_cores
def test_a_grid_that_cannot_be_is_told_once(tmp_path):
    done = subprocess.run(command("init=zeros,nonsense"), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("nonsense") == 1
    assert "Traceback" not in done.stderr


def alive_in(group):
    """Return who runs in a group of processes, when all have had a moment to end."""
    for _ in range(200):
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                stats.append(path.read_text().rpartition(")")[2].split())
        found = [stat for stat in stats if stat[2] == str(group) and stat[0] not in "ZX"]
        if not found:
            break
        time.sleep(0.05)
    return found


SLOW = LAUNCH.replace(
    "from initlab.cli.train", "import initlab.cli.hydra, time\nlaunch = sys.modules['initlab.cli.hydra.launch']\n"
    "launch.compose_jobs = lambda *given: print('composing', flush=True) or time.sleep(600)\nfrom initlab.cli.train"
)  # fmt: skip


@needs_cores
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_that_is_stopped_while_it_composes_leaves_nobody(tmp_path, sent):
    launch = subprocess.Popen(
        command("init=zeros,he_normal", start=SLOW), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    while "composing" not in launch.stdout.readline():
        assert launch.poll() is None
    time.sleep(0.5)
    os.killpg(launch.pid, sent)  # as a terminal does
    _, complaints = launch.communicate(timeout=60)
    assert launch.returncode in ((130,) if sent == signal.SIGINT else (143, -signal.SIGTERM))
    assert "Traceback" not in complaints
    assert not alive_in(launch.pid)
