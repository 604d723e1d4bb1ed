"""The same table from every executor: processes, SLURM's jobs (here submitit's local ones), tasks of a Ray cluster."""

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import initlab
from initlab.errors import Interrupted, ProcessLimitReached, UserError
from initlab.sweep.cost import CostCache
from initlab.sweep.executors import EXECUTORS, ExecutorKind, check_executor, make_executor
from initlab.sweep.executors import process as processes
from initlab.sweep.executors.ray_cluster import connect_to_ray
from initlab.sweep.placement import Placement
from initlab.sweep.plan_file import Group, PlanFile
from initlab.sweep.progress import SweepProgress, SweepProgressLine
from initlab.sweep.results import SweepResults
from initlab.sweep.scheduler import Scheduler, StopSignals
from initlab.sweep.worker import (
    GroupError,
    GroupFailure,
    GroupResult,
    GroupTask,
    RemoteWorker,
    WorkerDied,
    read_progress,
)
from initlab.system.resources import usable_cores

SAME = [
    "init",
    "act",
    "seed",
    "status",
    "hash",
    "fingerprint",
    "loss",
    "accuracy",
    "val_loss",
    "test_accuracy",
    "steps",
]


def axes(root, **others):
    tiny = {"depth": 2, "width": 16, "data": "gaussian", "data.train_size": 2000, "data.test_size": 100}
    grid = {"init": ["he_normal", "zeros"], "act": ["tanh", "relu"], "seed": [0, 1], "train.steps": 60}
    sweep = {"sweep.root": str(root), "sweep.name": "s", "sweep.max_group": 2, "log.histograms": 3}
    return {**tiny, **grid, **sweep, **others}


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """The grid by threads of this process, more of them than a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        return initlab.sweep(axes(tmp_path_factory.mktemp("inline")), quiet=True)
    finally:
        torch.set_num_threads(threads)


def assert_same(one, other):
    pd.testing.assert_frame_equal(one[SAME], other[SAME], check_exact=True)
    for mine, yours in zip(one["path"], other["path"], strict=True):
        for name in ("metrics.csv", "layers.csv", "parameters.csv"):
            assert Path(mine, name).read_bytes() == Path(yours, name).read_bytes()


def test_processes_give_the_same_table(tmp_path, inline):
    assert_same(inline, initlab.sweep(axes(tmp_path), executor="process", workers=2, quiet=True))


@pytest.mark.slow
def test_jobs_give_the_same_table(tmp_path, inline):
    pytest.importorskip("submitit")
    options = {"cluster": "local"}
    assert_same(inline, initlab.sweep(axes(tmp_path), executor="submitit", workers=2, options=options, quiet=True))


@pytest.fixture
def two_nodes():
    """A Ray cluster of two nodes, processes of this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tasks_on_two_nodes_give_the_same_table_also_when_a_node_is_lost(tmp_path, inline, two_nodes):
    import threading

    options = {"address": two_nodes.address}
    whole = initlab.sweep(axes(tmp_path / "a"), executor="ray", options=options, quiet=True)
    assert_same(inline, whole)
    long = {"train.steps": 2000, "log.every": 50, "sweep.checkpoint_every": 0.2}
    undisturbed = initlab.sweep(axes(tmp_path / "b", **long), quiet=True)

    def lose_a_node():
        room = tmp_path / "c" / "s" / ".groups"
        while len(list(room.glob("*.pt"))) < 2:
            time.sleep(0.05)
        two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)

    loser = threading.Thread(target=lose_a_node, daemon=True)
    loser.start()
    frame = initlab.sweep(axes(tmp_path / "c", **long), executor="ray", options=options, quiet=True)
    loser.join(timeout=1)
    assert not loser.is_alive()
    assert_same(undisturbed, frame)


@pytest.mark.slow
def test_a_job_that_is_killed_is_tried_again(tmp_path):
    pytest.importorskip("submitit")
    import threading

    long = {"train.steps": 2000, "log.every": 50, "sweep.checkpoint_every": 0.2}
    undisturbed = initlab.sweep(axes(tmp_path / "a", **long), quiet=True)
    killed = []

    def kill_one():
        room = tmp_path / "b" / "s" / ".groups"
        while not list(room.glob("*.pt")):
            time.sleep(0.05)
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"submitit.core._submit" in words and str(tmp_path / "b").encode() in b" ".join(words):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    killed.append(path.parent.name)
                    return

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    options = {"cluster": "local"}
    frame = initlab.sweep(axes(tmp_path / "b", **long), executor="submitit", workers=1, options=options, quiet=True)
    killer.join(timeout=1)
    assert len(killed) == 1
    assert_same(undisturbed, frame)


# --- processes between launches

ECHO = """
import pickle, sys
inward, out = sys.stdin.buffer, sys.stdout.buffer
pickle.load(inward)
while inward.peek(1):
    out.write(pickle.loads(pickle.load(inward)))
    out.flush()
"""


@pytest.fixture
def launched(monkeypatch):
    """Launch a group in a process that says at once that it is done; return that process."""
    monkeypatch.setattr(processes, "WORKER_PROGRAM", ECHO)
    started = []

    def launch_one():
        executor = make_executor("process", 1, {}, lambda task: lambda now: None, lambda: 0)
        try:
            job = executor.submit(pickle.dumps(GroupResult([])))
            limit = time.monotonic() + 60
            while (done := job.poll()) is None and time.monotonic() < limit:
                time.sleep(0.01)
            assert done == GroupResult([])
        finally:
            executor.close()
        started.append(executor.workers[0].process)
        return started[-1]

    yield launch_one
    for process in started:
        process.kill()


def test_without_asking_a_process_ends_with_its_launch(launched):
    first, second = launched(), launched()
    assert first is not second
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)


def test_workers_that_are_kept_serve_the_next_launch_and_end_with_the_last(launched):
    with processes.keep_workers():
        first = launched()
        with processes.keep_workers():
            second = launched()
        third = launched()
        assert first is second is third
        assert third.poll() is None
    assert third.returncode == -signal.SIGKILL
    after = launched()
    assert after is not first
    assert after.returncode == -signal.SIGKILL


def test_a_kept_worker_that_died_between_launches_is_replaced(launched):
    with processes.keep_workers():
        first = launched()
        first.kill()
        first.wait()
        second = launched()
        assert second is not first
        assert launched() is second
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)


def test_workers_that_start_early_serve_the_launch_and_end_with_it(launched):
    with processes.start_workers_early(1, 9):
        (waiting,) = processes._kept_workers
        assert waiting.process.poll() is None
        assert launched() is waiting.process
        assert launched() is waiting.process
    assert waiting.process.returncode == -signal.SIGKILL


def test_workers_that_start_early_do_not_hold_up_a_refusal(monkeypatch):
    """Busy with loading, a worker hears nothing: it is not waited for."""
    monkeypatch.setattr(processes, "WORKER_PROGRAM", "import time; time.sleep(600)")
    early = []

    def refuse():
        early.extend(worker.process for worker in processes._kept_workers)
        raise UserError("no such scheme")

    with pytest.raises(UserError, match="no such scheme"), processes.start_workers_early(2, 9):
        refuse()
    assert [process.returncode for process in early] == [-signal.SIGKILL] * 2


OWN = """
import torch
from torch import nn

def half_he(weight, fans, generator):
    weight.copy_(torch.randn(weight.shape, generator=generator) / fans.fan_in ** 0.5)

class Leaving(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 10)

    def forward(self, x):
        raise SystemExit(3)

def leaving(**_):
    return Leaving()
"""


def test_workers_find_modules_where_the_launch_does(tmp_path, monkeypatch):
    home = tmp_path / "elsewhere"
    home.mkdir()
    (home / "of_the_launch.py").write_text(OWN)
    monkeypatch.syspath_prepend(home)
    own = {"init": "custom", "init.target": "of_the_launch:half_he", "act": "tanh"}
    frame = initlab.sweep(axes(tmp_path, **own), executor="process", workers=1, quiet=True)
    assert list(frame["status"]) == ["completed"] * 2


def test_a_model_that_wants_to_leave_fails_alone(tmp_path, monkeypatch):
    (tmp_path / "leaver.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"model": "custom", "model.target": "leaver:leaving", "init": "he_normal", "act": "tanh"}
    frame = initlab.sweep(axes(tmp_path, **own), quiet=True)
    assert list(frame["status"]) == ["failed"] * 2


BETWEEN = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"


def test_a_worker_behind_a_launcher_of_pythons_does_its_work(tmp_path, monkeypatch, capsys):
    """On Windows `python.exe` of a virtual environment starts the real one, and is the parent of every worker."""

    def spawn(environment):
        command = [sys.executable, "-c", BETWEEN, processes.WORKER_PROGRAM]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    monkeypatch.setattr(processes, "start_process", spawn)
    # Long enough for a worker to look whether its launch lives.
    few = {"init": "he_normal", "seed": [0], "train.steps": 2000, "log.every": 500}
    frame = initlab.sweep(axes(tmp_path, **few), executor="process", workers=1)
    assert list(frame["status"]) == ["completed"] * 2
    assert "lost" not in "".join(capsys.readouterr())


# --- refusals


@pytest.mark.parametrize(("failures", "address", "starts"), [(1, None, 2), (9, None, 2), (9, "auto", 1)])
def test_a_cluster_of_this_machine_is_started_again_and_then_refused_in_a_sentence(
    monkeypatch, failures, address, starts
):
    ray = pytest.importorskip("ray")
    begun = []

    def init(**_):
        begun.append(1)
        if len(begun) <= failures:
            raise Exception("The node timed out\nduring startup")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    says = "address=auto cannot be reached" if address else r"cannot start a cluster .*\(The node timed out\)"
    refused = pytest.raises(UserError, match=says) if failures > 1 else contextlib.nullcontext()
    with refused:
        connect_to_ray(address)
    assert len(begun) == starts


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (("rayy", "auto", {}), "Did you mean 'ray'"),
        (("process", 0, {}), "workers=0"),
        (("process", True, {}), "workers=True"),
        (("process", "two", {}), "workers=two"),
        (("process", 2, {"partition": "gpu"}), "options.partition is unknown to executor=process: it has none"),
        (("ray", 2, {"adress": "x"}), "it has address, num_cpus, num_gpus"),
    ],
)
def test_executors_are_checked_before_anything_starts(monkeypatch, how, says):
    monkeypatch.setattr("initlab.sweep.executors.find_spec", lambda name: name)
    with pytest.raises(UserError) as refused:
        Placement(*how)
    assert says in str(refused.value)


@pytest.mark.parametrize(("name", "extra"), [("submitit", "initlab[slurm]"), ("ray", "initlab[ray]")])
def test_what_is_not_installed_is_said_with_its_remedy(monkeypatch, name, extra):
    monkeypatch.setattr("initlab.sweep.executors.find_spec", lambda package: None)
    with pytest.raises(UserError) as refused:
        check_executor(name, "auto", {})
    assert f"pip install '{extra}'" in str(refused.value)


def test_options_that_submitit_does_not_know_are_one_sentence(tmp_path):
    pytest.importorskip("submitit")
    options = {"cluster": "local", "slurm_partitionn": "gpu", "colour": "red"}
    with pytest.raises(UserError, match="submitit does not accept"):
        initlab.sweep(axes(tmp_path), executor="submitit", options=options, quiet=True)


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_is_made_with_as_many_slots_as_workers(monkeypatch, name):
    pytest.importorskip(EXECUTORS[name].package)
    if name == "ray":
        ray = pytest.importorskip("ray")
        monkeypatch.setattr(ray, "init", lambda **_: None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
        monkeypatch.setattr(ray, "remote", lambda **_: lambda function: function)
    executor = make_executor(name, 3, {}, lambda task: lambda now: None, lambda: 0)
    try:
        assert type(executor).__module__ == f"initlab.sweep.executors.{MODULES[name]}"
        assert executor.slots == (3 if EXECUTORS[name].several else 1)
    finally:
        executor.close()


MODULES = {"auto": "inline", "inline": "inline", "process": "process", "submitit": "slurm", "ray": "ray_cluster"}

OUTSIDE = """
from initlab.sweep.worker import RemoteWorker

MADE = []

class Job:
    def __init__(self, task):
        self.task = task

    def cancel(self):
        return False

    def poll(self):
        answer = RemoteWorker(self.task)()
        MADE.append(len(answer.summaries))
        return answer

class Outside:
    def __init__(self, workers, options, watch, stop):
        self.slots = 2 if workers == "auto" else workers
        self.name = options["name"]

    def submit(self, task):
        return Job(task)

    def close(self):
        MADE.append(f"closed {self.name}")
"""


def test_an_executor_from_outside_is_one_row(tmp_path, monkeypatch, inline):
    (tmp_path / "executor_of_test.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    import executor_of_test

    monkeypatch.setitem(EXECUTORS, "outside", ExecutorKind(executor_of_test.Outside, options=("name",)))
    with pytest.raises(UserError, match=r"options\.nme is unknown to executor=outside: it has name"):
        initlab.sweep(axes(tmp_path), executor="outside", options={"nme": "x"}, quiet=True)
    assert Placement("outside").local_workers() == (torch.cuda.device_count() or usable_cores())
    assert Placement("outside", 3).is_parallel()
    assert not Placement("outside").is_remote()
    frame = initlab.sweep(axes(tmp_path), executor="outside", options={"name": "mine"}, quiet=True)
    assert executor_of_test.MADE == [2, 2, 2, 2, "closed mine"]
    assert_same(inline, frame)


@pytest.mark.parametrize(
    ("placement", "sharers", "several", "elsewhere"),
    [
        (("inline", 3), 1, False, False),
        (("auto", 3), 1, False, False),
        (("process", 3), 3, True, False),
        (("process", 1), 1, False, False),
        (("submitit", 3, {"cluster": "local"}), 3, True, False),
        (("submitit", 3, {"cluster": "slurm"}), 1, True, True),
        (("submitit", 1, {"cluster": "slurm"}), 1, False, True),
        (("ray", 3), 3, True, True),
    ],
)
def test_the_facts_of_an_executor_are_in_its_row(monkeypatch, placement, sharers, several, elsewhere):
    monkeypatch.setattr("initlab.sweep.executors.find_spec", lambda name: name)
    where = Placement(*placement)
    assert (where.local_workers(), where.is_parallel(), where.is_remote()) == (sharers, several, elsewhere)


# --- what the launch does with what executors say


class Scripted:
    """An executor whose jobs say what a script tells them."""

    def __init__(self, script, slots=1):
        self.script, self.slots, self.closed, self.submitted = script, slots, 0, []

    def submit(self, task):
        self.submitted.append(task.id)
        answer = self.script(task, self.submitted.count(task.id))

        class Job:
            def poll(self):
                if isinstance(answer, BaseException):
                    raise answer
                return answer

            def cancel(self):
                return False

        return Job()

    def close(self):
        self.closed += 1


@pytest.fixture
def launch(tmp_path):
    """Run three cells as one group on a scripted executor; return what became of them, and who was asked."""
    from initlab.config.grid import compose_grid
    from initlab.sweep.cells import cell_directories, check_cells

    small = [f"{k}={v}" for k, v in axes(tmp_path).items() if k not in ("init", "act", "seed")]
    configs, directory = compose_grid([*small, "seed=0,1,2"])
    cells = check_cells(configs, cell_directories(configs, directory))
    directory.mkdir(parents=True)

    def start(script, signals=None):
        executor, ended, said = Scripted(script), {}, []
        line = SweepProgressLine("", quiet=True)
        plan = PlanFile(directory / "plan.json", {"g0001": [cell.hash for cell in cells]})
        line.remark = said.append
        (directory / ".groups").mkdir(exist_ok=True)
        it = Scheduler(
            [Group("g0001", tuple(cells))],
            plan,
            SweepResults(directory),
            directory / ".groups",
            Placement("process"),
            CostCache(),
            SweepProgress(3, 180, 0, line),
            lambda cell, summary, fresh: ended.update({cell.number: summary["status"]}),
            signals=signals or StopSignals(),
            launch_id="x",
        )
        it.make_executor = lambda placement: executor if placement == it.placement else executor.instead
        return it, executor, ended, said

    return start


class Limited(Scripted):
    """An executor on a machine that allows a number of processes."""

    def __init__(self, allowed, slots):
        super().__init__(lambda task, times: good(task), slots)
        self.allowed, self.instead, self.refused = allowed, Scripted(lambda task, times: good(task)), 0

    def submit(self, task):
        if self.allowed == 0:
            self.refused += 1
            raise ProcessLimitReached("Resource temporarily unavailable")
        self.allowed -= 1
        return super().submit(task)


@pytest.mark.parametrize("allowed", [0, 1, 2, 4])
def test_where_no_further_process_can_be_the_sweep_goes_on_with_those_there_are(launch, monkeypatch, allowed):
    it, _, ended, said = launch(None)
    limited = Limited(allowed, 4)
    it.make_executor = lambda placement: limited if placement == it.placement else limited.instead
    it.groups = [Group(f"g{cell.number}", (cell,)) for cell in it.groups[0].cells]
    it.run()
    assert ended == {0: "completed", 1: "completed", 2: "completed"}
    assert limited.closed == 1
    if allowed == 4:
        assert (said, limited.refused) == ([], 0)
        return
    where = f"with {allowed} at a time" if allowed else "in this process"
    assert len(said) == 1 + (allowed > 0)  # none is freed here: the next one is refused, too
    assert (
        f"Resource temporarily unavailable; `ulimit -u` shows how many there may be): the sweep goes on {where}"
        in (said[0])
    )


def good(task):
    return GroupResult([{"status": "completed"} for _ in task.configs])


@pytest.mark.parametrize(("slots", "times"), [(1, 0), (2, 1)])
def test_what_comes_afterwards_is_prepared_once_while_a_worker_has_nothing_to_do(launch, slots, times):
    asked, prepared = [], []

    def poll():
        asked.append(1)
        return good(it.make_task(it.groups[0])) if len(asked) > 3 else None

    it, executor, ended, _ = launch(lambda *_: None)
    executor.slots, it.preload_report = slots, lambda: prepared.append(len(ended))
    submit = executor.submit
    executor.submit = lambda task: (job := submit(task), setattr(job, "poll", poll))[0]
    it.run()
    assert prepared == [0] * times
    assert len(ended) == 3


def test_a_lost_worker_is_retried_once_for_each_failure_and_then_its_group_is_halved(launch):
    def script(task, times):
        if task.checkpoint.exists():
            task.checkpoint.unlink()
        return WorkerDied("signal 9") if task.id == "g0001" else good(task)

    it, executor, ended, said = launch(script)
    it.run()
    assert executor.submitted == ["g0001", "g0001", "g0001a", "g0001b"]
    assert ended == {0: "completed", 1: "completed", 2: "completed"}
    assert it.plan.groups.keys() == {"g0001a", "g0001b"}
    assert "tried once more" in said[0]
    assert "halves are tried" in said[1]


def test_a_group_that_gets_further_each_time_is_retried_each_time(launch):
    def script(task, times):
        if times > 5:
            return good(task)
        task.checkpoint.write_text("")
        os.utime(task.checkpoint, ns=(times, times * 10**9))
        return WorkerDied("signal 9")

    it, executor, ended, _ = launch(script)
    it.run()
    assert executor.submitted == ["g0001"] * 6
    assert len(ended) == 3


def test_one_bad_cell_is_found_by_halving(launch):
    def script(task, times):
        bad = any(config.seed == 1 for config in task.configs)
        return GroupError("RuntimeError: it", "Traceback: it") if bad else good(task)

    it, executor, ended, _ = launch(script)
    it.run()
    assert executor.submitted == ["g0001", "g0001a", "g0001aa", "g0001ab", "g0001b"]
    assert ended == {0: "completed", 1: "failed", 2: "completed"}


def test_a_worker_that_was_told_to_stop_by_somebody_else_is_asked_again(launch):
    it, executor, ended, _ = launch(lambda task, times: Interrupted(15) if times == 1 else good(task))
    it.run()
    assert executor.submitted == ["g0001", "g0001"]
    assert len(ended) == 3


def test_a_full_disk_ends_the_launch_and_everyone_is_asked_to_stop(launch):
    it, executor, ended, _ = launch(lambda task, times: UserError("No space is left."))
    with pytest.raises(UserError, match="No space"):
        it.run()
    assert (executor.closed, ended) == (1, {})
    assert (it.state_dir / "stop-x").exists()


def test_after_a_signal_nothing_more_is_begun(launch):
    signals = StopSignals()

    def script(task, times):
        signals.received = int(signal.SIGTERM)
        return Interrupted(15)

    it, executor, ended, _ = launch(script, signals)
    with pytest.raises(Interrupted):
        it.run()
    assert (executor.submitted, executor.closed, ended) == (["g0001"], 1, {})


# --- a worker elsewhere


@pytest.fixture
def task(tmp_path):
    from initlab.config.compose import compose_config

    small = [f"{k}={v}" for k, v in axes(tmp_path).items() if k not in ("init", "act", "seed") and "sweep" not in k]
    config = compose_config([*small, "train.steps=5"])
    (tmp_path / "room").mkdir()
    return GroupTask("g0001", [config], [tmp_path / "run"], tmp_path / "room", 60.0, "x", cwd=tmp_path)


@pytest.fixture(autouse=True)
def signals_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    home = Path.cwd()
    yield
    os.chdir(home)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_worker_answers_in_words_whatever_happens(task, monkeypatch):
    done = RemoteWorker(task)()
    assert isinstance(done, GroupResult)
    assert [s["status"] for s in done.summaries] == ["completed"]
    for error, kind in ((UserError("full"), "user"), (RuntimeError("bug"), "error"), (Interrupted(15), "interrupted")):
        (task.directories[0] / "summary.json").unlink(missing_ok=True)

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("initlab.sweep.worker.run", fail)
        answer = RemoteWorker(task)()
        assert isinstance(answer, GroupFailure)
        assert answer.kind == kind
        with pytest.raises((UserError, GroupError, Interrupted)):
            answer.throw()
    assert read_progress(task) is None


@pytest.mark.parametrize("what", ["RunWriter", "fingerprint"])
def test_a_network_that_fails_while_its_directory_is_opened_is_recorded_as_failed(task, monkeypatch, what):
    from initlab.experiment import run_recorder

    real, asked = getattr(run_recorder, what), []

    def fail(*given, **more):
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("a bug")
        return real(*given, **more)

    monkeypatch.setattr(run_recorder, what, fail)
    answer = RemoteWorker(task)()
    assert isinstance(answer, GroupResult)
    assert [(s["status"], s["error"]) for s in answer.summaries] == [("failed", "RuntimeError: a bug")]
    assert "Traceback" in (task.directories[0] / "run.log").read_text()
    assert initlab.load(task.directories[0])["status"].tolist() == ["failed"]


def test_what_another_worker_finished_is_not_computed_again(task, monkeypatch):
    first = RemoteWorker(task)()
    monkeypatch.setattr("initlab.sweep.worker.run", None)
    second = RemoteWorker(task)()
    assert [s["test_loss"] for s in first.summaries] == [s["test_loss"] for s in second.summaries]


def test_a_worker_hears_the_launchs_wish_and_its_end(task):
    remote = RemoteWorker(task)
    assert remote.stop() == 0
    task.stop.touch()
    remote.last_check = 0.0
    assert remote.stop() == signal.SIGTERM
    task.stop.unlink()
    assert RemoteWorker(task, parent=os.getppid()).stop() == 0
    assert RemoteWorker(task, parent=1 if os.getppid() != 1 else 2).stop() == signal.SIGTERM


def test_a_group_that_is_held_is_waited_for_until_a_signal(task, capsys, monkeypatch):
    from initlab.sweep import locks

    monkeypatch.setattr(locks, "WAIT_NOTICE_SECONDS", 0.3)
    path = task.state_dir / "g0001.lock"
    with locks.group_lock(path, lambda: 0):
        asked = iter([0, 0, 0, 15])
        with pytest.raises(Interrupted), locks.group_lock(path, lambda: next(asked)):
            pass
    assert "waiting for the worker of another launch, which has g0001" in capsys.readouterr().err


SETTLED = """
import json, os, sys
from initlab.sweep.executors.process_worker import apply_settings
import torch
apply_settings(set(json.loads(sys.argv[1])), 2, json.loads(sys.argv[2]))
print(json.dumps([torch.get_num_threads(), sorted(os.sched_getaffinity(0)), dict(os.environ)]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OF_THE_LAUNCH": "x"}, 2),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,1"}, 3),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "many"}, 2),
        ({"OMP_NUM_THREADS": "0"}, 2),
    ],
)
def test_a_worker_settles_as_the_launch_and_the_user_say(environment, threads):
    core = min(os.sched_getaffinity(0))
    given = [json.dumps([core]), json.dumps(environment)]
    done = subprocess.run([sys.executable, "-c", SETTLED, *given], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [threads, [core], environment]


def test_a_worker_notices_the_end_of_its_parent_also_where_no_thread_reads_its_pipe(monkeypatch):
    from initlab.sweep.executors import process_worker as other_end

    monkeypatch.setattr(other_end, "apply_settings", lambda *given: None)
    monkeypatch.setattr(other_end, "RemoteWorker", lambda task, parent: lambda: (task, parent))
    out = io.BytesIO()
    other_end.work_on_tasks(map(pickle.dumps, ((), "a", "b")), out)
    out.seek(0)
    assert [pickle.load(out), pickle.load(out)] == [("a", os.getppid()), ("b", os.getppid())]


def test_a_worker_that_is_told_nothing_leaves_in_peace():
    from initlab.sweep.executors import process_worker as other_end

    out = io.BytesIO()
    other_end.work_on_tasks(iter(()), out)
    assert out.getvalue() == b""


def test_a_worker_loads_nothing_that_lies_where_the_user_is(tmp_path, monkeypatch):
    for name in ("types", "queue", "random"):
        (tmp_path / f"{name}.py").write_text(f"open('loaded-{name}', 'w').close()\nraise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    with processes.start_process(dict(os.environ)) as worker:
        worker.stdin.close()
        assert worker.wait(60) == 0
    assert not list(tmp_path.glob("loaded-*"))
