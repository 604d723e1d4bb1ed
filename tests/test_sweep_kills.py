"""Whenever a launch is killed, no process of it stays, and the same command ends with the same bits."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

import initlab

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

MARK = "INITLAB_TEST_LAUNCH"  # in the environment of a launch, and so of every process that comes from it
# For ever is what this looks for. On a machine with nothing else to do it is below 10: INITLAB_TEST_KILL_SECONDS=10.
LIMIT = float(os.environ.get("INITLAB_TEST_KILL_SECONDS", "120"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GRID = ["-m", "data=gaussian", "data.train_size=2000", "data.test_size=100", "depth=2", "width=16", "train.steps=400",
        "init=he_normal,zeros,glorot_normal", "act=tanh,relu", "seed=0,1", "log.every=10", "log.histograms=3",
        "log.tensorboard=false", "sweep.checkpoint_every=0.1", "sweep.max_group=3", "sweep.name=s"]  # fmt: skip
EXECUTORS = {
    "inline": ["hydra.launcher.executor=inline"],
    "process": ["hydra.launcher.executor=process", "hydra.launcher.workers=2"],
    "submitit": [
        "hydra.launcher.executor=submitit",
        "hydra.launcher.workers=2",
        "+hydra.launcher.options.cluster=local",
    ],
}
KEYS = ["init", "act", "seed", "status", "hash", "loss", "test_loss", "test_accuracy", "steps", "fingerprint"]
FILES = ("metrics.csv", "layers.csv", "histograms.csv", "parameters.csv")


def needs(executor):
    if executor == "submitit" and not importlib.util.find_spec("submitit"):
        pytest.skip("submitit is not installed")


def launch(executor, root, mark, **how):
    """Start a sweep as a user does, in a session of its own and with every signal at its default."""
    command = [sys.executable, "-c", "import sys; from initlab.cli.train import run_train; sys.exit(run_train())"]
    return subprocess.Popen(
        [*command, *GRID, f"sweep.root={root}", *EXECUTORS[executor]],
        env={**os.environ, MARK: mark},
        cwd=root,
        start_new_session=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in SIGNALS[1:]],
        **how,
    )


def marked(mark):
    """Return the processes that come from a launch, by the mark in their environment, and what they are."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is another user's
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ")[:200]
    return found


def killed(executor, root, after, number):
    """Start a sweep, send it a signal after some seconds; return how long its processes take to end, and who stays."""
    mark = f"{os.getpid()}-{random.random()}"
    with open(root / "said", "ab") as said:
        process = launch(executor, root, mark, stdout=said, stderr=said)
    with suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.send_signal(number)
    began = time.monotonic()
    while left := (marked(mark) if process.poll() is not None else {process.pid: b"the launch"}):
        if time.monotonic() - began > LIMIT:
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.05)
    return time.monotonic() - began, left


def assert_same(one, other):
    """Hold a resumed sweep against one that nothing disturbed: every number, every record, to the last bit."""
    whole, resumed = (initlab.load(root / "s").sort_values(["init", "act", "seed"]) for root in (one, other))
    whole, resumed = whole.reset_index(drop=True), resumed.reset_index(drop=True)
    pd.testing.assert_frame_equal(whole[KEYS], resumed[KEYS], check_exact=True)
    for mine, yours in zip(whole["path"], resumed["path"], strict=True):
        for name in FILES:
            assert Path(mine, name).read_bytes() == Path(yours, name).read_bytes(), (mine, name)


def moments(count, seconds, rng):
    """Return random moments of a launch, every third in its first second, each with a signal; half are kill -9."""
    return [
        (rng.uniform(0, 1.0 if k % 3 == 0 else seconds), SIGNALS[(k // 2) % 3 + 1] if k % 2 else signal.SIGKILL)
        for k in range(count)
    ]


@pytest.mark.parametrize("executor", ["process", "submitit"])
def test_no_process_outlives_a_launch_that_is_killed_early(tmp_path, executor):
    needs(executor)
    rng = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGHUP):
        _, left = killed(executor, tmp_path, rng.uniform(0.1, 4.0), number)
        assert not left, number.name


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_at_forty_moments_a_sweep_leaves_no_process_and_ends_with_the_same_bits(tmp_path, executor):
    needs(executor)
    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert launch(executor, whole, "whole", stdout=subprocess.DEVNULL).wait() == 0
    seconds = time.monotonic() - began
    seed = random.randrange(10**6)
    took = []
    for k, (after, number) in enumerate(moments(40, seconds, random.Random(seed))):
        root = tmp_path / str(k // 4)  # four kills in the life of one sweep
        root.mkdir(exist_ok=True)
        seconds_to_end, left = killed(executor, root, after, number)
        assert not left, (number.name, after, seed)
        took.append((seconds_to_end, after, number.name))
    print(f"seed {seed}, a launch {seconds:.1f} s; the longest ends of processes: {sorted(took)[-3:]}")
    for k in range(10):
        root = tmp_path / str(k)
        assert launch(executor, root, "end", stdout=subprocess.DEVNULL).wait() == 0
        assert_same(whole, root)
