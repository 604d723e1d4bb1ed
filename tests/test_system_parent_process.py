"""A process notices its parent's death by the pipe, whatever stands between the two, and ends whatever it does."""

import os
import pickle
import subprocess
import sys

import pytest

from initlab.system import parent_process
from initlab.system.parent_process import is_running, process_start_time

WORKER = """
import sys, time
from initlab.system import parent_process as parent
parent.CHECKPOINT_SECONDS = 0.3
inward, out = parent.claim_standard_pipes()
heard = parent.read_messages(inward)
out.write(b"here\\n")
out.flush()
"""
# As `python.exe` of a virtual environment on Windows: the process that is started is not the one that works.
BETWEEN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def start(code, between=False):
    command = [sys.executable, "-c", BETWEEN, WORKER + code] if between else [sys.executable, "-c", WORKER + code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    return process


def ended(process, seconds=60):
    try:
        return process.wait(seconds)
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(
    "code",
    ["time.sleep(600)", "with parent.delay_exit(): time.sleep(600)", "next(heard)", "while True: pass"],
    ids=["loading", "training", "waiting", "computing"],
)
def test_a_worker_ends_with_its_parents_pipe(code, between):
    worker = start(code, between)
    assert worker.poll() is None
    worker.stdin.close()
    assert ended(worker) in (0, 1)  # 1: `next` of an iterator that has ended


def test_a_worker_that_has_something_to_keep_may_keep_it():
    worker = start("""
parent.CHECKPOINT_SECONDS = 600
with parent.delay_exit():
    out.write(b"training ")
    out.flush()
    parent.stop_requested.wait()
    out.write(b"kept")
    out.flush()
    sys.exit(7)
""")
    assert worker.stdout.read(len(b"training ")) == b"training "
    worker.stdin.close()
    assert worker.stdout.read() == b"kept"
    assert ended(worker) == 7


def test_a_worker_that_is_asked_to_leave_has_all_the_time_it_needs():
    worker = start("""
parent.CHECKPOINT_SECONDS = 0.0
out.write(next(heard))
with parent.delay_exit():
    parent.stop_requested.wait()
    time.sleep(1)
    out.write(b" kept")
    out.flush()
sys.exit(len(list(heard)))
""")
    for message in (b"a task", parent_process.STOP_MESSAGE):
        pickle.dump(message, worker.stdin)
    worker.stdin.flush()
    assert worker.stdout.read() == b"a task kept"
    assert ended(worker) == 0
    worker.stdin.close()


def test_a_process_is_told_from_a_later_one_of_its_number():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid, None)
        if born := process_start_time(process.pid):
            assert is_running(process.pid, born)
            assert not is_running(process.pid, "0")
        process.stdin.close()
    assert not is_running(process.pid, None)
    assert not is_running(process.pid, born)


MODULE = """
import sys, time, random
print(sys.argv[1:], flush=True)
time.sleep(600 * len(sys.argv[2:]))
"""


@pytest.mark.parametrize("died_before", [False, True])
def test_a_module_runs_while_its_launch_does_and_imports_nothing_from_here(tmp_path, died_before):
    """submitit starts its jobs by such a command."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "job.py").write_text(MODULE)
    for name in ("random", "runpy", "pickle", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as launch:
        command = [
            sys.executable,
            "-c",
            "import sys; sys.path.remove(''); from initlab.system.parent_process import run_module; run_module()",
        ]
        born = process_start_time(launch.pid) or "-"
        if died_before:
            launch.kill()
            launch.wait()
        words = [*command, str(launch.pid), born, "-u", "-m", "job", "a", "b"]
        job = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
        if not died_before:
            assert job.stdout.readline() == b"['a', 'b']\n"
            assert job.poll() is None
        launch.kill()
    assert ended(job) == 0


def test_a_job_of_a_cluster_needs_no_launch(tmp_path):
    (tmp_path / "job.py").write_text(MODULE)
    words = [
        sys.executable,
        "-c",
        "from initlab.system.parent_process import run_module; run_module()",
        "0",
        "-",
        "-u",
        "-m",
        "job",
        "a",
    ]
    done = subprocess.run(words, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.stdout, done.returncode) == (b"['a']\n", 0)
