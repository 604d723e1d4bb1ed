"""The nursery: one process that has loaded torch and the data, and is copied whenever a worker is needed.

Loading torch takes a core seconds, and most of them in each of many workers at once; a copy of a process is made in
milliseconds and shares its memory. As that is safe where a process has one thread, the nursery is a process of its own
that does nothing but load; or a copy of a launch that has just loaded and done nothing yet.
"""

import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import IO, Any, NoReturn

from initlab.errors import UserError
from initlab.system.fork import ChildProcess, is_single_threaded, wait_for_exit
from initlab.system.parent_process import end_with_parent, process_start_time
from initlab.system.startup import fast_imports

SERVER_PROGRAM = (
    "import sys; '' in sys.path and sys.path.remove(''); "
    + (  # nothing is loaded from the current directory
        "from initlab.system.fork_server import tend; tend({control}, {entry!r}, {parent})"
    )
)
# With threads of OpenMP in the nursery, its copies would wait for theirs for ever.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MAX_MESSAGE = 2**16  # bytes of a message
LOAD_TIMEOUT = 600.0  # seconds that a nursery may load before its first copy; disks of clusters are slow
ANSWER_TIMEOUT = 20.0  # seconds that it may take to say how a copy ended


class ServerEnded(Exception):
    """The nursery is no more."""


class ProcessLimitReached(UserError):
    """The system allows no further process; `why` is its own word for that."""

    def __init__(self, why: str):
        super().__init__(f"no further process can be started ({why}): say fewer by hydra.launcher.workers.")
        self.why = why


class ForkServer:
    """The launch's end: it says what to load ahead, asks for copies, and hears how they ended; from any thread.

    Arguments: `entry`, "module:function" that a copy calls with its two pipes; the module is loaded once, there.
    `here` makes it a copy of this process instead of a new one.

    Raises NoProcess.
    """

    def __init__(self, entry: str, here: bool = False):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.process = (
                    ChildProcess(lambda: serve_as_child(theirs.fileno(), entry), bound=True)
                    if here
                    else start_server(theirs.fileno(), entry)
                )
            except OSError as error:
                self.control.close()
                raise ProcessLimitReached(str(error.strerror)) from error
        self.asked = 0
        self.code: int | None = None  # how it ended, if not by `close`
        self.speaking = threading.Lock()

    def call(self, function: str, **given: Any) -> None:
        """Have a function "module:function" called before the next copy is made; nobody waits for it, nor its end."""
        with self.speaking, suppress(OSError):
            socket.send_fds(self.control, [pickle.dumps((0, "call", (function, given)))], [])

    def copy(self) -> "ForkedProcess":
        """Return a copy, as soon as all is loaded.

        Raises Gone; NoProcess.
        """
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        try:
            pid = self.ask("copy", None, LOAD_TIMEOUT, [theirs_in, theirs_out])
            if isinstance(pid, str):
                raise ProcessLimitReached(pid)
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return ForkedProcess(self, pid, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"))

    def ask(self, word: str, given: Any, patience: float, pipes: list[int] | None = None) -> Any:
        """Send a request and return its answer; raises Gone, also where there is none in so many seconds."""
        with self.speaking:
            self.asked += 1
            try:
                self.control.settimeout(patience)
                socket.send_fds(self.control, [pickle.dumps((self.asked, word, given))], pipes or [])
                while message := self.control.recv(MAX_MESSAGE):
                    number, answer = pickle.loads(message)
                    # Whoever asked before may have been interrupted.
                    if number == self.asked:
                        return answer
            except OSError as error:
                self.close()
                raise ServerEnded from error
            self.close()
            raise ServerEnded

    def alive(self) -> bool:
        """Does it live, so that its copies go on?"""
        return self.process.poll() is None

    def close(self) -> None:
        """End it, whatever it is doing; copies that are at work see that it is gone, and keep what they have."""
        if self.code is None:
            # Killed by us, it says nothing of why its copies ended.
            self.code = self.process.poll() or 1
        self.control.close()
        self.process.kill()
        self.process.wait()


def start_server(control: int, entry: str) -> "subprocess.Popen[bytes]":
    """Start a nursery that loads everything itself.

    In a session of its own: Ctrl-C in the terminal is for the launch. It prints where the launch complains.
    """
    # Linux would end it with the thread that starts it, and other threads may go on using it.
    parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
    complaints = subprocess.DEVNULL if sys.stderr is None else 2
    return subprocess.Popen(
        [sys.executable, "-c", SERVER_PROGRAM.format(control=control, entry=entry, parent=parent)],
        stdin=subprocess.DEVNULL,
        stdout=complaints,
        stderr=complaints,
        env={**os.environ, **ONE_THREAD},
        pass_fds=[control],
        start_new_session=True,
    )


def serve_as_child(control: int, entry: str) -> NoReturn:
    """Be the nursery as a copy of the launch, keeping nothing of the launch's own."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    complaints = nowhere if sys.stderr is None else 2
    for stream, place in enumerate((nowhere, complaints, complaints)):
        os.dup2(place, stream)
    os.closerange(3, control)
    os.closerange(control + 1, os.sysconf("SC_OPEN_MAX"))
    tend(control, entry)


class ForkedProcess:
    """A copy of the nursery, to be handled as `subprocess.Popen` is."""

    def __init__(self, nursery: ForkServer, pid: int, stdin: IO[bytes], stdout: IO[bytes]):
        self.nursery, self.pid, self.stdin, self.stdout = nursery, pid, stdin, stdout
        self.returncode: int | None = None
        self.born = process_start_time(pid)

    def poll(self) -> int | None:
        """Return None while it lives, then its exit code, or -9 for signal 9."""
        if self.returncode is None and (self.born is None or process_start_time(self.pid) != self.born):
            try:
                self.returncode = self.nursery.ask("status", self.pid, ANSWER_TIMEOUT)
            except ServerEnded:
                # Nobody knows its code; without the nursery it ends, and for the same reason.
                self.returncode = self.nursery.code or 1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raises subprocess.TimeoutExpired."""
        return wait_for_exit(self.poll, timeout)

    def kill(self) -> None:
        """End it."""
        self.signal(9)

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended: the nursery keeps its number from being given away until then."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


_server: ForkServer | None = None
_holders = _users = 0
_lock = threading.RLock()


@contextmanager
def keep_server(in_use: bool = False) -> Iterator[None]:
    """Let the nursery, if there is or will be one, live until the last who holds it open leaves.

    Arguments: `in_use` says that copies of it are or will be at work: until then nobody may `stop_server` it.
    """
    global _holders, _users
    with _lock:
        _holders += 1
        _users += in_use
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            _users -= in_use
            if not _holders:
                stop_server()


def shared_server(entry: str, here: bool = False) -> ForkServer:
    """Return the nursery, for whoever holds it open; it starts when it is first needed, and again when it died.

    Arguments: `entry`, "module:function" that a copy calls; `here` makes it a copy of this process, if it is needed
    and this process has one thread.

    Raises NoProcess.
    """
    global _server
    with _lock:
        if _server is not None and not _server.alive():
            _server.close()
            _server = None
        if _server is None:
            _server = ForkServer(entry, here=here and is_single_threaded())
        return _server


def stop_server() -> None:
    """End the nursery, until it is needed again, unless its copies are in use."""
    global _server
    with _lock:
        if _server is not None and not _users:
            _server.close()
            _server = None


def import_name(name: str) -> Any:
    """Return what "module:name" says."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def tend(control: int, entry: str, parent: int = 0) -> NoReturn:
    """Be the nursery: load, then do what is asked until the launch is gone.

    Arguments: `parent`, the number of the process that must outlive this one at every moment; 0 for none.
    """
    if parent:
        end_with_parent(parent)
    launch = socket.socket(fileno=control)
    with fast_imports():
        begin = import_name(entry)
    children: dict[int, ChildProcess] = {}
    while True:
        try:
            message, pipes, *_ = socket.recv_fds(launch, MAX_MESSAGE, 2)
        except OSError:
            message = b""
        if not message:
            os._exit(0)
        number, word, given = pickle.loads(message)
        if word == "call":
            function, arguments = given
            import_name(function)(**arguments)
            continue
        answer = fork_worker(launch, begin, pipes, children) if word == "copy" else children[given].wait()
        with suppress(OSError):  # the launch is gone: nothing more comes from it
            launch.send(pickle.dumps((number, answer)))


def fork_worker(
    launch: socket.socket,
    begin: Callable[[IO[bytes], IO[bytes]], None],
    pipes: list[int],
    children: dict[int, ChildProcess],
) -> int | str:
    """Copy this process and return the copy's number, or why it cannot be; the copy begins and does not return."""

    def work() -> None:
        launch.close()
        with os.fdopen(pipes[0], "rb") as inward, os.fdopen(pipes[1], "wb") as out:
            begin(inward, out)

    try:
        child = ChildProcess(work)
    except OSError as error:
        return str(error.strerror)
    finally:
        for pipe in pipes:
            os.close(pipe)
    children[child.pid] = child  # in the place of an earlier one of that number
    return child.pid
