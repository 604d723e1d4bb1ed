"""The fork server: what its children do, how their ends are reported, and that nothing outlives its client."""

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
from initlab.sweep.worker_server import WORKER_SERVER
from initlab.system import fork_server
from initlab.system.fork_server import ForkServer, ServerEnded, SharedServer, can_fork
from initlab.system.parent_process import process_start_time

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system does not fork processes that have loaded torch")

WORKER = """
import os, pickle, signal, sys
import torch

KEPT = []

def keep(value):
    KEPT.append(value)

def compute():
    torch.ones(3000, 3000).tanh().sum()
    (torch.ones(600, 600) @ torch.ones(600, 600)).sum()

def fail():
    raise ValueError("of the call")

def refuse_forks():
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    os.fork = fork

def begin(requests, answers):
    print("printed")
    while requests.peek(1):
        word = pickle.load(requests)
        if word == "leave":
            os._exit(3)
        if word == "fail":
            raise ValueError("of the child")
        if word == "exit":
            sys.exit(0)
        if word == "interrupt":
            signal.raise_signal(signal.SIGINT)
        functions = {
            "facts": lambda: (os.getpid(), os.getppid(), KEPT),
            "threads": threads,
            "gradient": gradient,
        }
        pickle.dump(functions[word](), answers)
        answers.flush()

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
def standard_error_to(path):
    """Give what starts in the block this file as its standard error."""
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server whose children answer questions; what they print is in the file `printed`."""
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for variable in fork_server.ONE_THREAD:
        monkeypatch.setenv(variable, "2")
    with standard_error_to(tmp_path / "printed"):
        started, children = ForkServer("worker_of_test:begin"), []
    fork = started.fork
    monkeypatch.setattr(started, "fork", lambda: children.append(fork()) or children[-1])
    yield started
    started.close()
    for child in children:
        child.stdin.close()
        child.stdout.close()


def send(child, word):
    pickle.dump(word, child.stdin)
    child.stdin.flush()


def ask(child, word):
    send(child, word)
    return pickle.load(child.stdout)


def ended(pid, seconds=30.0):
    """Wait until a process is gone, and return whether it is."""
    limit = time.monotonic() + seconds
    while process_start_time(pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return not process_start_time(pid)


def test_children_have_what_was_called_before_they_were_forked(server):
    first = server.fork()
    server.call("worker_of_test:keep", value="kept")
    second = server.fork()
    assert ask(second, "facts") == (second.pid, server.process.pid, ["kept"])
    assert ask(first, "facts") == (first.pid, server.process.pid, [])
    assert first.poll() is second.poll() is None


def test_a_child_may_use_threads_and_gradients_whatever_the_server_computed(server):
    server.call("worker_of_test:compute")
    child = server.fork()
    assert ask(child, "threads") == 600.0**3
    assert ask(child, "gradient") == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("word", "code", "trace"),
    [("leave", 3, ""), ("fail", 1, "ValueError: of the child"), ("exit", 1, "SystemExit"), ("interrupt", 130, "")],
)
def test_the_exit_code_of_a_child_is_reported(server, word, code, trace, tmp_path):
    child = server.fork()
    send(child, word)
    assert child.wait(30) == child.returncode == code
    assert child.stdout.read() == b""
    printed = (tmp_path / "printed").read_text()
    assert printed.count("printed") == 1
    assert trace in printed
    assert ("Traceback" in printed) == bool(trace)


def test_a_child_ends_when_its_requests_end(server):
    child = server.fork()
    assert ask(child, "facts")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.05)
    child.stdin.close()
    assert child.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_that_is_killed_ends_by_that_signal_and_the_others_go_on(server, number):
    killed, other = server.fork(), server.fork()
    assert ask(killed, "facts")
    killed.send_signal(number)
    assert killed.wait(30) == -number
    killed.kill()  # it has ended already
    assert ask(other, "facts")[0] == other.pid


def test_children_of_a_server_that_is_killed_are_followed_to_their_end(server):
    alive, dead = server.fork(), server.fork()
    assert ask(alive, "facts")
    server.process.kill()
    server.process.wait()
    assert not server.is_alive()
    assert alive.poll() is None  # its worker would end by itself
    os.kill(dead.pid, signal.SIGKILL)
    assert dead.wait(30) == -signal.SIGKILL  # its own code is unknown; what ended the server may have ended it
    alive.kill()
    assert alive.wait(30) == -signal.SIGKILL
    with pytest.raises(ServerEnded):
        server.fork()
    server.call("worker_of_test:keep", value=1)  # has no effect


def test_a_server_that_was_closed_gives_no_signal_as_the_reason(server):
    child = server.fork()
    server.close()
    child.stdin.close()
    assert child.wait(30) == 1


def test_another_process_of_the_same_pid_is_not_killed(server, monkeypatch):
    child = server.fork()
    child.start_time = "another"
    monkeypatch.setattr(server, "ask", lambda *given: 7)
    killed = []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    child.kill()
    assert (child.returncode, killed) == (7, [])


def test_a_server_that_does_not_answer_is_ended(server, monkeypatch):
    monkeypatch.setattr(fork_server, "LOAD_TIMEOUT", 0.2)
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ServerEnded):
        server.fork()
    assert server.process.returncode == -signal.SIGKILL


def test_the_answer_of_an_interrupted_request_is_not_taken_for_the_next(server, monkeypatch):
    child = server.fork()
    with monkeypatch.context() as interrupted:

        def poll(self, timeout):
            raise KeyboardInterrupt

        interrupted.setattr(fork_server.Connection, "poll", poll)
        with pytest.raises(KeyboardInterrupt):
            server.fork()
    send(child, "leave")
    assert child.wait(30) == 3
    assert server.is_alive()


def test_a_request_may_come_twice_where_the_first_was_interrupted(server):
    child = server.fork()
    send(child, "leave")
    assert ended(child.pid)
    assert server.ask("wait", child.pid, 30.0) == 3
    assert child.poll() == 1
    assert server.is_alive()


def test_threads_may_ask_at_once(server):
    answers = []

    def fork_five():
        for _ in range(5):
            child = server.fork()
            pid = ask(child, "facts")[0]
            child.kill()
            answers.append((pid == child.pid, child.wait(30)))

    threads = [threading.Thread(target=fork_five, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [(True, -signal.SIGKILL)] * 20


def test_where_no_further_process_can_be_the_others_go_on(server):
    child = server.fork()
    server.call("worker_of_test:refuse_forks")
    with pytest.raises(UserError, match=r"hydra\.launcher\.workers"):
        server.fork()
    assert ask(child, "facts")[0] == child.pid


def test_where_no_server_can_be_started_it_is_said_in_a_sentence(monkeypatch):
    def refuse(*given, **more):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(UserError, match=r"no further process can be started \(Resource temporarily unavailable\)"):
        ForkServer("time:sleep")


def test_a_call_that_fails_ends_the_server_and_its_traceback_is_printed(server, tmp_path):
    server.call("worker_of_test:fail")
    with pytest.raises(ServerEnded):
        server.fork()
    assert server.exit_code == 1
    assert "ValueError: of the call" in (tmp_path / "printed").read_text()


def test_a_shared_server_is_not_stopped_while_it_is_in_use():
    shared = SharedServer("time:sleep")
    with shared.hold():
        with shared.hold(in_use=True):
            first = shared.get()
            shared.stop()
            assert shared.get() is first
        shared.stop()
        assert not first.is_alive()


def test_a_shared_server_lives_as_long_as_a_holder():
    shared = SharedServer("time:sleep")
    with shared.hold():
        first = shared.get()
        with shared.hold():
            assert shared.get() is first
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait()
        second = shared.get()
        assert second is not first
        shared.stop()
        assert second.process.returncode == -signal.SIGKILL
        third = shared.get()
        assert third.process.poll() is None
    assert third.process.returncode == -signal.SIGKILL


def test_it_imports_nothing_from_the_current_directory(tmp_path, monkeypatch):
    for name in ("types", "queue", "random"):
        (tmp_path / f"{name}.py").write_text(f"open('loaded-{name}', 'w').close()\nraise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    with WORKER_SERVER.hold():
        child = WORKER_SERVER.get().fork()
        code = child.poll()
    child.stdin.close()
    child.stdout.close()
    assert code is None
    assert not list(tmp_path.glob("loaded-*"))


CLIENT = """
import pickle, time
from initlab.system.fork_server import ForkServer
server = ForkServer("worker_of_test:begin")
child = server.fork()
pickle.dump("facts", child.stdin)
child.stdin.flush()
print(*pickle.load(child.stdout)[:2], flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_client_that_is_killed(tmp_path, monkeypatch):
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE) as client:
        pids = [int(word) for word in client.stdout.readline().split()]
        client.kill()
    assert len(pids) == 2
    assert all(map(ended, pids))


BUSY = """
import time
print("importing", flush=True)
time.sleep(600)
"""
EARLY = """
import time
from initlab.system.fork_server import ForkServer
server = ForkServer("busy_of_test:begin")
print(server.process.pid, flush=True)
time.sleep(600)
"""


def test_a_server_that_is_still_importing_ends_with_its_client(tmp_path, monkeypatch):
    (tmp_path / "busy_of_test.py").write_text(BUSY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with subprocess.Popen([sys.executable, "-c", EARLY], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        pid = int(client.stdout.readline())
        assert client.stderr.readline() == b"importing\n"
        client.kill()
    assert ended(pid)


def test_the_server_of_workers_has_one_thread_when_it_forks():
    """Locks that other threads hold stay locked in a child."""
    with WORKER_SERVER.hold():
        server = WORKER_SERVER.get()
        server.call("initlab.data:preload", name="fashion_mini")
        child = server.fork()
        assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1
    child.stdin.close()
    child.stdout.close()
    assert ended(child.pid)
