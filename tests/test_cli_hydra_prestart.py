"""What starts before a grid is composed: the same table as without, one refusal, and no process left after a signal."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")

LAUNCH = """
import sys
from initlab.sweep.executors import process
start = process.start_process
def start_and_print(environment):
    print("worker started", flush=True)
    return start(environment)
process.start_process = start_and_print
from initlab.cli.hydra import launch
compose = launch.compose_jobs
def compose_and_print(*given):
    print("composing", flush=True)
    {before_composing}
    return compose(*given)
launch.compose_jobs = compose_and_print
from initlab.cli.train import run_train
sys.exit(run_train(sys.argv[1:]))
"""
GRID = ["-m", "data=gaussian", "data.train_size=96", "data.test_size=32", "data.validation=0", "depth=2", "width=8",
        "train.batch_size=16", "train.steps=6", "log.tensorboard=false", "device=cpu", "sweep.root=.",
        "hydra.launcher.executor=process", "hydra.launcher.workers=2"]  # fmt: skip


def command(*words, before_composing="pass"):
    return [sys.executable, "-c", LAUNCH.format(before_composing=before_composing), *GRID, *words]


def run(directory, *words):
    return subprocess.run(command(*words), cwd=directory, capture_output=True, text=True, timeout=600)


def test_workers_start_before_the_grid_is_composed_and_the_table_is_that_of_one_process(tmp_path):
    grid = ["init=he_normal,zeros,orthogonal", "seed=0,1", "act=tanh,relu"]
    tables = []
    for executor, first in (("process", ["worker started"] * 2 + ["composing"]), ("inline", ["composing"])):
        done = run(tmp_path, *grid, f"sweep.name={executor}", f"hydra.launcher.executor={executor}")
        remarks = [line for line in done.stderr.splitlines() if not line.startswith("sweep: ")]  # progress
        assert (done.returncode, remarks) == (0, [])
        assert [line for line in done.stdout.splitlines() if line in ("worker started", "composing")] == first
        table = (tmp_path / executor / "sweep.csv").read_text().splitlines()
        head = table[0].split(",")
        kept = [head.index(name) for name in ("init", "act", "seed", "status", "loss", "accuracy", "test_loss")]
        tables.append(sorted([line.split(",")[k] for k in kept] for line in table[1:]))
    assert len(tables[0]) == 12
    assert tables[0] == tables[1]


def test_a_grid_that_cannot_be_is_refused_once(tmp_path):
    done = run(tmp_path, "init=zeros,nonsense")
    assert done.returncode == 2
    assert done.stderr.count("nonsense") == 1
    assert "Traceback" not in done.stderr


def alive_in(session):
    """Return the processes of a session, when all have had a moment to end."""
    for _ in range(200):
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has just ended
                stats.append(path.read_text().rpartition(")")[2].split())
        alive = [stat for stat in stats if str(session) in (stat[2], stat[3]) and stat[0] not in "ZX"]
        if not alive:
            break
        time.sleep(0.05)
    return alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_that_is_stopped_while_it_composes_leaves_no_process(tmp_path, number):
    launch = subprocess.Popen(
        command("init=zeros,he_normal", before_composing="import time; time.sleep(600)"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while "composing" not in launch.stdout.readline():
        assert launch.poll() is None
    workers = children_of(launch.pid)
    assert len(workers) == 2
    time.sleep(0.5)
    os.killpg(launch.pid, number)  # as a terminal does
    _, complaints = launch.communicate(timeout=60)
    assert launch.returncode in ((130,) if number == signal.SIGINT else (143, -signal.SIGTERM))
    assert "Traceback" not in complaints
    assert not alive_in(launch.pid)
    assert not any(map(alive_in, workers))  # each has a session of its own


def children_of(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
