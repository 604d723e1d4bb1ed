"""Fork server: imports torch and the data once; workers are forked from it.

A worker that is forked is ready in milliseconds and shares the memory of what was imported; one that is started by
`subprocess` imports torch itself. A process may be forked safely while it has one thread: locks that other threads
hold stay locked in the child. So the server is a process of its own, which computes nothing. Only Linux forks a process
that has loaded torch.

A sweep of 160 networks by two workers took 38.2 s with it and 40.2 s with workers started by `subprocess` (two cores of
an AMD EPYC of family 26, AVX-512; torch 2.14.1). `multiprocessing`'s fork server needs the same CPU time, but its
settings belong to the user's whole process, it ends where the system refuses a fork, and it cannot read data ahead.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pkgutil import resolve_name
from typing import IO, Any, NoReturn

from initlab.errors import UserError
from initlab.system.escape import print
from initlab.system.parent_process import end_with_parent, process_start_time
from initlab.system.startup import fast_imports

SERVER_PROGRAM = (
    "import sys; '' in sys.path and sys.path.remove(''); "
    + (  # imports nothing from the current directory
        "from initlab.system.fork_server import serve_forks; serve_forks({control}, {entry!r}, {parent})"
    )
)
# With threads of OpenMP in the server, its children would wait for theirs forever.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
MAX_MESSAGE = 2**16  # bytes
LOAD_TIMEOUT = 600.0  # seconds until the first fork, during which the server imports; disks of clusters are slow
ANSWER_TIMEOUT = 20.0  # seconds until the server returns an exit code
POLL_INTERVAL = 0.005  # seconds between two looks whether a child has ended


class ServerEnded(Exception):
    """The fork server has ended."""


class ProcessLimitReached(UserError):
    """The system allows no further process; `reason` is the system's message."""

    def __init__(self, reason: str):
        super().__init__(f"no further process can be started ({reason}): lower hydra.launcher.workers.")
        self.reason = reason


def can_fork() -> bool:
    """Return whether this system can fork a process that has loaded torch."""
    return sys.platform == "linux"


class ForkServer:
    """The client's end of a fork server; its methods may be called from any thread.

    The server runs in a session of its own, because Ctrl-C in the terminal is for the client, and prints to standard
    error.

    Args:
        entry: `"module:function"`, called in every child with a file to read requests from and one to write answers to.
            The server imports the module once.

    Raises:
        ProcessLimitReached: the system allows no further process.
    """

    def __init__(self, entry: str):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Linux would end the server with the thread that starts it, and other threads may go on using it.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        stderr = subprocess.DEVNULL if sys.stderr is None else 2
        program = SERVER_PROGRAM.format(control=theirs.fileno(), entry=entry, parent=parent)
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-u", "-c", program],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    env={**os.environ, **ONE_THREAD},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                raise ProcessLimitReached(str(error.strerror)) from error
        self.exit_code: int | None = None  # set when the server has ended; 1 after `close`

    def call(self, function: str, **arguments: Any) -> None:
        """Call `"module:function"` in the server before the next fork; return at once. An exception ends the server."""
        with suppress(OSError):
            self._send("call", (function, arguments), [])

    def fork(self) -> "ForkedProcess":
        """Return a new child, as soon as all is imported.

        Raises:
            ServerEnded: the server has ended, or does not answer within `LOAD_TIMEOUT`.
            ProcessLimitReached: the system allows no further process.
        """
        (requests, stdin), (stdout, answers) = Pipe(duplex=False), Pipe(duplex=False)
        with requests, stdin, stdout, answers:
            pid = self.ask("fork", None, LOAD_TIMEOUT, [requests.fileno(), answers.fileno()])
            if isinstance(pid, str):
                raise ProcessLimitReached(pid)
            files = os.fdopen(os.dup(stdin.fileno()), "wb"), os.fdopen(os.dup(stdout.fileno()), "rb")
        return ForkedProcess(self, pid, *files)

    def ask(self, request: str, argument: Any, timeout: float, files: Sequence[int] = ()) -> Any:
        """Send a request, with file descriptors to pass on, and return the answer.

        Raises:
            ServerEnded: the server has ended, or does not answer within `timeout` seconds.
        """
        answer, writer = Pipe(duplex=False)  # one for each request: an interrupted one leaves no answer behind
        with answer, suppress(OSError, EOFError):
            with writer:
                self._send(request, argument, [writer.fileno(), *files])
            if answer.poll(timeout):
                return answer.recv()
        self.close()
        raise ServerEnded

    def _send(self, request: str, argument: Any, files: Sequence[int]) -> None:
        socket.send_fds(self.control, [pickle.dumps((request, argument))], files)

    def is_alive(self) -> bool:
        """Return whether the server runs; without it its children end."""
        return self.process.poll() is None

    def close(self) -> None:
        """Kill the server; children that are at work notice, and write their checkpoint."""
        if self.exit_code is None:
            # Killed by us, its signal does not explain why a child ended.
            self.exit_code = self.process.poll() or 1
        self.control.close()
        self.process.kill()
        self.process.wait()


class ForkedProcess:
    """A child of the fork server, with the interface of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int, stdin: IO[bytes], stdout: IO[bytes]):
        self.server, self.pid, self.stdin, self.stdout = server, pid, stdin, stdout
        self.returncode: int | None = None
        self.start_time = process_start_time(pid)

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code, or -9 for signal 9."""
        if self.returncode is None and (self.start_time is None or process_start_time(self.pid) != self.start_time):
            try:
                self.returncode = self.server.ask("wait", self.pid, ANSWER_TIMEOUT)
            except ServerEnded:
                # Its own code is unknown; without the server it ends, and for the same reason.
                self.returncode = self.server.exit_code or 1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within `timeout` seconds.
        """
        limit = time.monotonic() + timeout if timeout is not None else float("inf")
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("forked process", timeout or 0.0)
            time.sleep(POLL_INTERVAL)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended; the server keeps its pid from being reused until `poll` notices."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


class SharedServer:
    """A fork server that starts when it is first needed, and ends when its last holder leaves.

    Args:
        entry: as in `ForkServer`.
    """

    def __init__(self, entry: str):
        self.entry = entry
        self._server: ForkServer | None = None
        self._holders = self._users = 0
        self._lock = threading.RLock()

    @contextmanager
    def hold(self, in_use: bool = False) -> Iterator[None]:
        """Keep the server from ending with another holder; `in_use` keeps it from being stopped as well."""
        with self._lock:
            self._holders += 1
            self._users += in_use
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                self._users -= in_use
                if not self._holders:
                    self.stop()

    def get(self) -> ForkServer:
        """Return the server, for a holder; a new one where there is none or it has ended.

        Raises:
            ProcessLimitReached: the system allows no further process.
        """
        with self._lock:
            if self._server is None or not self._server.is_alive():
                if self._server is not None:
                    self._server.close()
                self._server = ForkServer(self.entry)
            return self._server

    def stop(self) -> None:
        """End the server, unless it is in use; `get` starts another one."""
        with self._lock:
            if self._server is not None and not self._users:
                self._server.close()
                self._server = None


def serve_forks(control: int, entry: str, parent: int) -> NoReturn:
    """Serve requests until the client closes its end.

    Args:
        control: file descriptor of this end of the socket.
        entry: as in `ForkServer`.
        parent: pid of the process with which this one ends at any moment; 0 for none.
    """
    if parent:
        end_with_parent(parent)
    client = socket.socket(fileno=control)
    with fast_imports():
        begin = resolve_name(entry)
    while True:
        try:
            message, files, *_ = socket.recv_fds(client, MAX_MESSAGE, 3)
        except OSError:
            message = b""
        if not message:
            os._exit(0)
        request, argument = pickle.loads(message)
        if request == "call":
            function, arguments = argument
            resolve_name(function)(**arguments)
            continue
        answer, *pipes = files
        with Connection(answer, readable=False) as reply, suppress(OSError):  # the client may have ended
            reply.send(fork_child(begin, pipes, client, reply) if request == "fork" else wait_for_child(argument))
        for pipe in pipes:
            os.close(pipe)


def wait_for_child(pid: int) -> int:
    """Return the exit code of a child that has ended."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # a client that was interrupted has asked before
        return 1


def fork_child(begin: Callable[[IO[bytes], IO[bytes]], object], pipes: Sequence[int], *others: Any) -> int | str:
    """Fork; the child calls `begin` and exits: with 0, with 130 after Ctrl-C, or with 1 after another exception.

    Args:
        begin: given a file to read requests from, and one to write answers to.
        pipes: the file descriptors of these.
        *others: what the child closes first.

    Returns:
        The pid of the child, or the system's reason for a refusal.
    """
    try:
        pid = os.fork()
    except OSError as error:
        return str(error.strerror)
    if pid:
        return pid
    code = 1
    try:
        for other in others:
            other.close()
        with os.fdopen(pipes[0], "rb") as requests, os.fdopen(pipes[1], "wb") as answers:
            begin(requests, answers)
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        print(traceback.format_exc(), end="", file=sys.stderr)
    finally:
        os._exit(code)
