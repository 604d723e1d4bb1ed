"""The nursery: what copies of it do, how their ends are told, and that nothing outlives its launch."""

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from initlab import nursery
from initlab.nursery import Gone, Nursery

pytestmark = pytest.mark.skipif(not nursery.can_copy(), reason="this system does not copy processes")

DOING = """
import os, pickle, sys, time
import torch

KEPT = []

def keep(value):
    KEPT.append(value)

def work():
    torch.ones(3000, 3000).tanh().sum()
    (torch.ones(600, 600) @ torch.ones(600, 600)).sum()

def fail():
    raise ValueError("of the call")

def begin(inward, out):
    print("printed")
    while inward.peek(1):
        word = pickle.load(inward)
        if word == "leave":
            os._exit(3)
        if word == "fail":
            raise ValueError("of the copy")
        facts = {
            "facts": lambda: (os.getpid(), os.getppid(), KEPT),
            "threads": threads,
            "gradient": gradient,
        }
        pickle.dump(facts[word](), out)
        out.flush()

def threads():
    torch.set_num_threads(2)
    torch.ones(3000, 3000).tanh().sum()
    return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())

def gradient():
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()
    return x.grad.tolist()
"""


@contextmanager
def complaining_into(path):
    """Let what starts meanwhile have this file as its standard error."""
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A nursery whose copies answer questions."""
    (tmp_path / "doing.py").write_text(DOING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for variable in nursery.ONE_THREAD:
        monkeypatch.setenv(variable, "2")
    with complaining_into(tmp_path / "said"):
        found, made = Nursery("doing:begin"), []
    copy = found.copy
    monkeypatch.setattr(found, "copy", lambda: made.append(copy()) or made[-1])
    yield found
    found.close()
    for each in made:
        each.stdin.close()
        each.stdout.close()


def asked(copy, word):
    pickle.dump(word, copy.stdin)
    copy.stdin.flush()
    return pickle.load(copy.stdout)


def ended(pid, seconds=30.0):
    """Wait until a process is gone, and return whether it is."""
    limit = time.monotonic() + seconds
    while nursery.runs(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return not nursery.runs(pid)


def test_copies_know_what_was_called_before_they_were_made(home):
    first = home.copy()
    home.call("doing:keep", value="kept")
    second = home.copy()
    assert asked(second, "facts") == (second.pid, home.process.pid, ["kept"])
    assert asked(first, "facts") == (first.pid, home.process.pid, [])
    assert first.poll() is second.poll() is None


def test_a_copy_may_use_threads_and_gradients_whatever_the_nursery_computed(home):
    home.call("doing:work")
    copy = home.copy()
    assert asked(copy, "threads") == 600.0**3
    assert asked(copy, "gradient") == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("word", "code"), [("leave", 3), ("fail", 1)])
def test_the_end_of_a_copy_is_told(home, word, code, tmp_path):
    copy = home.copy()
    pickle.dump(word, copy.stdin)
    copy.stdin.flush()
    assert copy.wait(30) == copy.returncode == code
    assert copy.stdout.read() == b""
    said = (tmp_path / "said").read_text()
    assert ("ValueError: of the copy" in said) == (word == "fail")
    assert "printed" in said


def test_a_copy_that_hears_no_more_ends(home):
    copy = home.copy()
    assert asked(copy, "facts")
    with pytest.raises(subprocess.TimeoutExpired):
        copy.wait(0.05)
    copy.stdin.close()
    assert copy.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_copy_that_is_killed_ends_by_that_signal_and_leaves_the_others_alone(home, number):
    killed, other = home.copy(), home.copy()
    assert asked(killed, "facts")
    (killed.kill if number == signal.SIGKILL else killed.terminate)()
    assert killed.wait(30) == -number
    killed.kill()  # it may be dead already
    assert asked(other, "facts")[0] == other.pid


def test_a_nursery_that_is_killed_is_told_by_its_copies(home):
    copy, unborn = home.copy(), home.copy()
    assert asked(copy, "facts")
    home.process.kill()
    home.process.wait()
    assert copy.poll() is None  # it lives, and would end by itself
    copy.kill()
    assert copy.wait(30) == -signal.SIGKILL
    unborn.stdin.close()  # where it was born after all
    assert unborn.wait(30) == -signal.SIGKILL
    with pytest.raises(Gone):
        home.copy()
    home.call("doing:keep", value=1)  # nobody waits for it


def test_what_a_nursery_said_before_it_died_over_a_request_is_heard(home):
    copy = home.copy()
    while not select.select([home.control], [], [], 30)[0]:
        pass
    home.process.send_signal(signal.SIGSTOP)
    home.call("doing:keep", value="never heard")
    home.process.kill()
    home.process.wait()
    assert copy.poll() is None
    copy.kill()
    assert copy.wait(30) == -signal.SIGKILL


def test_what_fails_ahead_of_its_time_ends_the_nursery_and_is_seen(home, tmp_path):
    home.call("doing:fail")
    copy = home.copy()
    assert copy.wait(30) == 1
    assert "ValueError: of the call" in (tmp_path / "said").read_text()


def test_it_lives_as_long_as_somebody_holds_it_open(monkeypatch):
    monkeypatch.setattr(nursery, "WORKER", "time:sleep")
    with nursery.held_open():
        first = nursery.nursery()
        with nursery.held_open():
            assert nursery.nursery() is first
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        second = nursery.nursery()
        assert second is not first
        nursery.dismiss()
        assert second.process.returncode == -signal.SIGKILL
        third = nursery.nursery()
        assert third.process.poll() is None
    assert third.process.returncode == -signal.SIGKILL


LAUNCH = """
import pickle, sys, time
from initlab.nursery import Nursery
home = Nursery("doing:begin")
copy = home.copy()
pickle.dump("facts", copy.stdin)
copy.stdin.flush()
print(*pickle.load(copy.stdout)[:2], flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_launch_that_is_killed(tmp_path, monkeypatch):
    (tmp_path / "doing.py").write_text(DOING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE) as launch:
        pids = [int(word) for word in launch.stdout.readline().split()]
        launch.kill()
    assert len(pids) == 2
    assert all(map(ended, pids))


def test_no_thread_is_there_when_it_is_copied():
    """A copy of a process with threads has locks that nobody opens."""
    found = Nursery(nursery.WORKER)
    try:
        found.call("initlab.data:read_ahead", name="fashion_mini")
        copy = found.copy()
        assert copy.pid
        assert len(os.listdir(f"/proc/{found.process.pid}/task")) == 1
    finally:
        found.close()
    copy.stdin.close()
    copy.stdout.close()
    assert ended(copy.pid)
