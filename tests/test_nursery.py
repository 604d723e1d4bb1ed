"""The nursery: what copies of it do, how their ends are told, and that nothing outlives its launch."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from initlab.errors import UserError
from initlab.sweep.executors import process
from initlab.system import fork_server
from initlab.system.fork import can_fork
from initlab.system.fork_server import ForkServer, ServerEnded

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system does not copy processes")

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

def no_more():
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    os.fork = fork

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
    for variable in fork_server.ONE_THREAD:
        monkeypatch.setenv(variable, "2")
    with complaining_into(tmp_path / "said"):
        found, made = ForkServer("doing:begin"), []
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
    while fork_server.process_start_time(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return not fork_server.process_start_time(pid)


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
    killed.signal(number)
    assert killed.wait(30) == -number
    killed.kill()  # it may be dead already
    assert asked(other, "facts")[0] == other.pid


def test_copies_of_a_nursery_that_is_killed_are_followed_to_their_end(home):
    alive, dead = home.copy(), home.copy()
    assert asked(alive, "facts")
    home.process.kill()
    home.process.wait()
    assert not home.alive()
    assert alive.poll() is None  # it would end by itself
    os.kill(dead.pid, signal.SIGKILL)
    assert dead.wait(30) == -signal.SIGKILL  # nobody knows; what ended the nursery may have ended it
    alive.kill()
    assert alive.wait(30) == -signal.SIGKILL
    with pytest.raises(ServerEnded):
        home.copy()
    home.call("doing:keep", value=1)  # nobody waits for it


def test_a_nursery_that_was_ended_says_nothing_of_a_signal(home):
    copy = home.copy()
    home.close()
    copy.stdin.close()
    assert copy.wait(30) == 1


def test_a_number_that_was_given_away_is_not_taken_for_the_copy(home, monkeypatch):
    copy = home.copy()
    copy.kill()
    assert copy.wait(30) == -signal.SIGKILL
    other = home.copy()
    other.born = "long ago"
    monkeypatch.setattr(home, "ask", lambda *given: 7)
    killed = []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    other.kill()
    assert (other.returncode, killed) == (7, [])


def test_a_nursery_that_does_not_answer_is_given_up(home, monkeypatch):
    monkeypatch.setattr(fork_server, "LOAD_TIMEOUT", 0.2)
    home.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ServerEnded):
        home.copy()
    assert home.process.returncode == -signal.SIGKILL


def test_threads_may_ask_at_once(home):
    found = []

    def ask():
        for _ in range(5):
            copy = home.copy()
            answer = asked(copy, "facts")[0]
            copy.kill()
            found.append((answer == copy.pid, copy.wait(30)))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [(True, -signal.SIGKILL)] * 20


def test_where_no_further_process_can_be_the_others_go_on(home):
    copy = home.copy()
    home.call("doing:no_more")
    with pytest.raises(UserError, match=r"hydra\.launcher\.workers"):
        home.copy()
    assert asked(copy, "facts")[0] == copy.pid


def test_what_fails_ahead_of_its_time_ends_the_nursery_and_is_seen(home, tmp_path):
    home.call("doing:fail")
    with pytest.raises(ServerEnded):
        home.copy()
    assert home.code == 1
    assert "ValueError: of the call" in (tmp_path / "said").read_text()


def test_it_is_not_dismissed_while_copies_are_at_work(monkeypatch):
    monkeypatch.setattr(fork_server, "WORKER", "time:sleep")
    with fork_server.keep_server():
        with fork_server.keep_server(in_use=True):
            first = fork_server.shared_server(process.WORKER_ENTRY)
            fork_server.stop_server()
            assert fork_server.shared_server(process.WORKER_ENTRY) is first
        fork_server.stop_server()
        assert not first.alive()


def test_it_loads_nothing_that_lies_where_the_user_is(tmp_path, monkeypatch):
    """A file that is called like a module of Python's is the user's, and says so when it is loaded."""
    for name in ("types", "queue", "random"):
        (tmp_path / f"{name}.py").write_text(f"open('loaded-{name}', 'w').close()\nraise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    found = ForkServer(process.WORKER_ENTRY)
    try:
        copy = found.copy()
        lives = copy.poll()
    finally:
        found.close()
    copy.stdin.close()
    copy.stdout.close()
    assert lives is None
    assert not list(tmp_path.glob("loaded-*"))


def test_it_lives_as_long_as_somebody_holds_it_open(monkeypatch):
    monkeypatch.setattr(fork_server, "WORKER", "time:sleep")
    with fork_server.keep_server():
        first = fork_server.shared_server(process.WORKER_ENTRY)
        with fork_server.keep_server():
            assert fork_server.shared_server(process.WORKER_ENTRY) is first
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        second = fork_server.shared_server(process.WORKER_ENTRY)
        assert second is not first
        fork_server.stop_server()
        assert second.process.returncode == -signal.SIGKILL
        third = fork_server.shared_server(process.WORKER_ENTRY)
        assert third.process.poll() is None
    assert third.process.returncode == -signal.SIGKILL


LAUNCH = """
import pickle, sys, time
from initlab.system.fork_server import Nursery
home = Nursery("doing:begin", here=sys.argv[1] == "here")
copy = home.copy()
pickle.dump("facts", copy.stdin)
copy.stdin.flush()
print(*pickle.load(copy.stdout)[:2], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("place", ["here", "apart"])
def test_nothing_outlives_a_launch_that_is_killed(tmp_path, monkeypatch, place):
    (tmp_path / "doing.py").write_text(DOING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with subprocess.Popen([sys.executable, "-c", LAUNCH, place], stdout=subprocess.PIPE) as launch:
        pids = [int(word) for word in launch.stdout.readline().split()]
        launch.kill()
    assert len(pids) == 2
    assert all(map(ended, pids))


BUSY = """
import time
print("loading", flush=True)
time.sleep(600)
"""
EARLY = """
import os, sys, time
from initlab.system.fork_server import Nursery
home = Nursery("busy:begin", here=sys.argv[1] == "here")
print(home.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("place", ["here", "apart"])
def test_a_nursery_that_is_still_loading_ends_with_its_launch(tmp_path, monkeypatch, place):
    (tmp_path / "busy.py").write_text(BUSY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-c", EARLY, place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launch:
        pid = int(launch.stdout.readline())
        assert launch.stderr.readline() == b"loading\n"
        launch.kill()
    assert ended(pid)


def test_no_thread_is_there_when_it_is_copied():
    """A copy of a process with threads has locks that nobody opens."""
    found = ForkServer(process.WORKER_ENTRY)
    try:
        found.call("initlab.data:preload", name="fashion_mini")
        copy = found.copy()
        assert copy.pid
        assert len(os.listdir(f"/proc/{found.process.pid}/task")) == 1
    finally:
        found.close()
    copy.stdin.close()
    copy.stdout.close()
    assert ended(copy.pid)


HERE = """
import os, pickle, sys
from initlab.system.fork_server import Nursery
kept = open(sys.argv[0], "rb")
print("printed once")
home = Nursery("doing:begin", here=True)
home.call("doing:keep", value="kept")
copy = home.copy()
pickle.dump("facts", copy.stdin)
copy.stdin.flush()
print(pickle.load(copy.stdout) == (copy.pid, home.process.pid, ["kept"]))
open_files = {os.readlink(f"/proc/{home.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{home.process.pid}/fd")}
print(kept.name in open_files, os.getsid(home.process.pid) == home.process.pid, home.alive())
print(open(f"/proc/{home.process.pid}/fd/0").read() == "", copy.nursery.process.pid == home.process.pid)
home.process.kill()
print(home.process.wait(), home.alive(), os.path.exists(f"/proc/{home.process.pid}"))
"""


def test_a_copy_of_the_launch_does_as_one_that_was_started(tmp_path, monkeypatch):
    (tmp_path / "doing.py").write_text(DOING)
    script = tmp_path / "launch.py"
    script.write_text(HERE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = subprocess.run([sys.executable, script], input="typed", capture_output=True, text=True, timeout=60)
    said = ["printed once", "True", "False True True", "True True", "-9 False False"]
    assert (done.stdout.splitlines(), done.stderr) == (said, "printed\n")
