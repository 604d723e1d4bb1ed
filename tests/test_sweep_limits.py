"""Where the system allows no further process or thread, or ends one for want of memory: said, and gone on."""

import os
import resource
import shutil
import subprocess
import sys

import pytest

import initlab
from initlab.sweep import worker_deaths
from initlab.system import resources, startup

SWEEP = ["-m", "data=gaussian", "data.train_size=200", "data.test_size=50", "depth=1", "width=8", "train.steps=5",
         "train.batch_size=16", "log.tensorboard=false", "sweep.max_group=1", "sweep.name=s", "seed=0,1",
         "hydra.launcher.executor=process", "hydra.launcher.workers=2"]  # fmt: skip


def limited(tasks, place, *words):
    """Run the door as a user who may have so many processes and threads."""
    place.chmod(0o777)
    for above in list(place.parents)[:3]:
        above.chmod(0o755)
    keep = "-all,+dac_override"  # to read what is installed, and nothing else
    user = ["setpriv", "--reuid", "54321", "--inh-caps", keep, "--ambient-caps", keep, "--bounding-set", keep]
    code = "import sys; from initlab.cli.train import run_train; sys.exit(run_train())"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    return subprocess.run(
        [*user, sys.executable, "-c", code, *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (tasks, tasks)),
        env={**environment, "HOME": str(place)},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="a user without other processes is needed, whom root alone can be",
)
@pytest.mark.parametrize("tasks", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_a_sweep_goes_on_where_no_further_process_can_be(tmp_path, tasks):
    done = limited(tasks, tmp_path, *SWEEP)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no further process can be started") == 1
    assert "Traceback" not in done.stderr
    assert initlab.load(tmp_path / "outputs" / "sweeps" / "s")["status"].tolist() == ["completed"] * 2


class TooMany:
    """Threads of a system that allows a number of them."""

    allowed = 0

    def __init__(self, **_):
        self.alive = False

    def start(self):
        if TooMany.allowed == 0:
            raise RuntimeError("can't start new thread")
        TooMany.allowed -= 1

    def join(self):
        TooMany.allowed += 1


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "3"}, {"OPENBLAS_NUM_THREADS": "2"}])
@pytest.mark.parametrize("allowed", [0, 3, 10**6])
def test_one_thread_computes_where_the_system_allows_too_few(monkeypatch, given, allowed):
    monkeypatch.setattr(startup.threading, "Thread", TooMany)
    monkeypatch.setattr(TooMany, "allowed", allowed)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    startup.limit_threads()
    found = {name: os.environ[name] for name in names if name in os.environ}
    bound = allowed < 10 and "OMP_NUM_THREADS" not in given
    assert found == ({**dict.fromkeys(names, "1"), **given} if bound else given)
    assert TooMany.allowed == allowed  # all that were tried are gone


# --- memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A control group of version 2 below that of a container, one of version 1, and a machine that counts nothing."""
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(resources, "CGROUP_FILE", tmp_path / "own")
    monkeypatch.setattr(worker_deaths, "VMSTAT", tmp_path / "vmstat")
    (tmp_path / "own").write_text("4:cpuset,memory:/job\n1:name=systemd:/\n0::/user/job\n")
    (tmp_path / "user" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job").mkdir(parents=True)
    return {
        "version 2": (
            tmp_path / "user" / "job" / "memory.events",
            "low 0\nmax 12\noom 3\noom_kill {}\noom_group_kill 0",
        ),
        "the container": (tmp_path / "memory.events", "oom_kill {}\n"),
        "version 1": (tmp_path / "memory" / "job" / "memory.oom_control", "under_oom 0\noom_kill {}\n"),
        "the machine": (tmp_path / "vmstat", "nr_free_pages 7\noom_kill {}\n"),
    }


@pytest.mark.parametrize("where", ["version 2", "the container", "version 1", "the machine"])
def test_a_process_that_the_system_ended_for_want_of_memory_is_said_to_be_that(groups, where):
    path, text = groups[where]
    path.write_text(text.format(4))
    before = worker_deaths.count_oom_kills()
    assert before == 4
    assert worker_deaths.describe_exit(-9, before) == "signal 9"
    path.write_text(text.format(5))
    found = worker_deaths.describe_exit(-9, before)
    assert found.startswith("signal 9: the system ended it for want of memory")
    for remedy in ("sweep.max_group", "sweep.memory", "hydra.launcher.workers"):
        assert remedy in found
    assert worker_deaths.describe_exit(-15, before) == "signal 15"
    assert worker_deaths.describe_exit(1, before) == "exit code 1"


def test_where_the_system_counts_nothing_memory_may_be_why(groups):
    assert worker_deaths.count_oom_kills() is None
    assert "it may be that the system ended it for want of memory" in worker_deaths.describe_exit(-9, None)
    groups["the machine"][0].write_text("oom_kill many\n")
    assert worker_deaths.count_oom_kills() is None


OWN = """
import os, signal
from pathlib import Path

def fill_(weight, **_):
    count = Path({path!r})
    count.write_text("oom_kill " + str(int(count.read_text().split()[1]) + 1))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_sweep_says_that_its_worker_died_for_want_of_memory(groups, tmp_path, monkeypatch, capfd):
    path = groups["version 2"][0]
    path.write_text("oom_kill 0")
    (tmp_path / "greedy.py").write_text(OWN.format(path=str(path)))
    monkeypatch.chdir(tmp_path)
    frame = initlab.sweep(
        {"init": "custom", "init.target": "greedy:fill_", "act": "tanh", "depth": 1, "width": 8, "data": "gaussian",
         "data.train_size": 200, "data.test_size": 50, "train.steps": 5, "train.batch_size": 16,
         "sweep.root": str(tmp_path), "log.tensorboard": False},
        executor="process", workers=1,
    )  # fmt: skip
    assert frame["status"].tolist() == ["failed"]
    assert "signal 9: the system ended it for want of memory" in frame["error"].iloc[0]
    assert "the worker of group g0001 was lost (signal 9: the system ended it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("state", "here", "memory"),
    [("OUT_OF_MEMORY", False, True), ("FAILED", False, False), ("FINISHED", True, True), ("INTERRUPTED", True, True)],
)
def test_a_job_that_died_for_want_of_memory_is_said_to_be_that(groups, state, here, memory):
    """SLURM says so itself; on this machine the count of the control group does."""
    utils = pytest.importorskip("submitit.core.utils")
    from initlab.sweep.executors.slurm import SlurmJob
    from initlab.sweep.worker import WorkerDied

    class Job:
        job_id = "7"

        def done(self):
            return True

        def result(self):
            raise utils.UncompletedJobError("Job 7 has not produced any output\nand more")

    Job.state = state
    groups["version 2"][0].write_text("oom_kill 1")
    with pytest.raises(WorkerDied) as died:
        SlurmJob(Job(), here, 0 if here else None).poll()
    assert "job 7: Job 7 has not produced any output" in str(died.value)
    assert ("for want of memory" in str(died.value)) == memory
