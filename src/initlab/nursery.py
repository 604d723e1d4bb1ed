"""The nursery: one process that has loaded torch and the data, and is copied whenever a worker is needed.

Loading torch takes a core seconds, and most of them in each of many workers at once; a copy of a process is made in
milliseconds and shares its memory. Copying (`fork`) is safe where a process has one thread, so it is a process of its
own that does nothing but load, and only on Linux: libraries of other systems do not survive it.
"""

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import IO, Any, NoReturn

from initlab.collector import modules_loading
from initlab.errors import UserError

WORKER = "initlab.sweep.executors.serve:serve"  # what copies are made for
ENTRY = "import sys; '' in sys.path and sys.path.remove(''); " + (
    "from initlab.nursery import tend; tend(int({control}), {entry!r})"  # what lies where the user is is not loaded
)
# With threads of OpenMP in the nursery, its copies would wait for theirs for ever.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LARGEST = 2**16  # bytes of a message
LOADING = 600.0  # seconds that a nursery may load before its first copy; disks of clusters are slow
ANSWERING = 20.0  # seconds that it may take to say how a copy ended
LOOK_EVERY = 0.005  # seconds between two looks whether a copy has ended


def can_copy() -> bool:
    """Does this system copy processes that have loaded torch?"""
    return sys.platform == "linux"


def start_aside() -> None:
    """Start the nursery, for whoever holds it open, if it can be and there is a core beside that of this process."""
    if can_copy() and len(os.sched_getaffinity(0)) > 1:
        nursery()


class Gone(Exception):
    """The nursery is no more."""


class Nursery:
    """The launch's end: it says what to load ahead, asks for copies, and hears how they ended; from any thread.

    Arguments: `entry`, "module:function" that a copy calls with its two pipes; the module is loaded once, there.
    """

    def __init__(self, entry: str):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        complaints = subprocess.DEVNULL if sys.stderr is None else 2
        with theirs:
            # A session of its own: Ctrl-C in the terminal is for the launch. It prints where the launch complains.
            self.process = subprocess.Popen(
                [sys.executable, "-c", ENTRY.format(control=theirs.fileno(), entry=entry)],
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                env={**os.environ, **ONE_THREAD},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.asked = 0
        self.code: int | None = None  # how it ended, if not by `close`
        self.speaking = threading.Lock()

    def call(self, function: str, **given: Any) -> None:
        """Have a function "module:function" called before the next copy is made; nobody waits for it, nor its end."""
        with self.speaking, suppress(OSError):
            socket.send_fds(self.control, [pickle.dumps((0, "call", (function, given)))], [])

    def copy(self) -> "Copy":
        """Return a copy, as soon as all is loaded.

        Raises Gone; UserError where the system allows no further process.
        """
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        try:
            pid = self.ask("copy", None, LOADING, [theirs_in, theirs_out])
            if isinstance(pid, str):
                raise UserError(f"no further process can be started ({pid}): say fewer by hydra.launcher.workers.")
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return Copy(self, pid, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"))

    def ask(self, word: str, given: Any, patience: float, pipes: list[int] | None = None) -> Any:
        """Send a request and return its answer; raises Gone, also where there is none in so many seconds."""
        with self.speaking:
            self.asked += 1
            try:
                self.control.settimeout(patience)
                socket.send_fds(self.control, [pickle.dumps((self.asked, word, given))], pipes or [])
                while message := self.control.recv(LARGEST):
                    number, answer = pickle.loads(message)
                    # Whoever asked before may have been interrupted.
                    if number == self.asked:
                        return answer
            except OSError as error:
                self.close()
                raise Gone from error
            self.close()
            raise Gone

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


class Copy:
    """A copy of the nursery, to be handled as `subprocess.Popen` is."""

    def __init__(self, nursery: Nursery, pid: int, stdin: IO[bytes], stdout: IO[bytes]):
        self.nursery, self.pid, self.stdin, self.stdout = nursery, pid, stdin, stdout
        self.returncode: int | None = None
        self.born = life(pid)

    def poll(self) -> int | None:
        """Return None while it lives, then its exit code, or -9 for signal 9."""
        if self.returncode is None and (self.born is None or life(self.pid) != self.born):
            try:
                self.returncode = self.nursery.ask("status", self.pid, ANSWERING)
            except Gone:
                # Nobody knows its code; without the nursery it ends, and for the same reason.
                self.returncode = self.nursery.code or 1
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raises subprocess.TimeoutExpired."""
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("a copy", timeout or 0.0)
            time.sleep(LOOK_EVERY)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self.signal(15)

    def kill(self) -> None:
        """End it."""
        self.signal(9)

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended: the nursery keeps its number from being given away until then."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def life(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one of this number; None if it runs no more.

    It may still wait for somebody to ask how it ended.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            state, *facts = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else facts[18]


_nursery: Nursery | None = None
_holders = _users = 0
_changing = threading.RLock()


@contextmanager
def held_open(in_use: bool = False) -> Iterator[None]:
    """Let the nursery, if there is or will be one, live until the last who holds it open leaves.

    Arguments: `in_use` says that copies of it are or will be at work: until then nobody may `dismiss` it.
    """
    global _holders, _users
    with _changing:
        _holders += 1
        _users += in_use
    try:
        yield
    finally:
        with _changing:
            _holders -= 1
            _users -= in_use
            if not _holders:
                dismiss()


def nursery() -> Nursery:
    """Return the nursery, for whoever holds it open; it starts when it is first needed, and again when it died."""
    global _nursery
    with _changing:
        if _nursery is not None and not _nursery.alive():
            _nursery.close()
            _nursery = None
        if _nursery is None:
            _nursery = Nursery(WORKER)
        return _nursery


def dismiss() -> None:
    """End the nursery, until it is needed again, unless its copies are in use."""
    global _nursery
    with _changing:
        if _nursery is not None and not _users:
            _nursery.close()
            _nursery = None


def resolve(name: str) -> Any:
    """Return what "module:name" says."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def tend(control: int, entry: str) -> NoReturn:
    """Be the nursery: load, then do what is asked until the launch is gone."""
    launch = socket.socket(fileno=control)
    with modules_loading():
        begin = resolve(entry)
    codes: dict[int, int] = {}
    while True:
        try:
            message, pipes, *_ = socket.recv_fds(launch, LARGEST, 2)
        except OSError:
            message = b""
        if not message:
            os._exit(0)
        number, word, given = pickle.loads(message)
        if word == "call":
            function, arguments = given
            resolve(function)(**arguments)
            continue
        answer = copied(launch, begin, pipes, codes) if word == "copy" else ended(given, codes)
        with suppress(OSError):  # the launch is gone: nothing more comes from it
            launch.send(pickle.dumps((number, answer)))


def copied(
    launch: socket.socket, begin: Callable[[IO[bytes], IO[bytes]], None], pipes: list[int], codes: dict[int, int]
) -> int | str:
    """Copy this process and return the copy's number, or why it cannot be; the copy begins and does not return."""
    failed = ""
    try:
        pid = os.fork()
    except OSError as error:
        pid, failed = -1, str(error.strerror)
    if pid:
        for pipe in pipes:
            os.close(pipe)
        codes.pop(pid, None)  # of an earlier one of that number
        return pid if pid > 0 else failed
    code = 1
    try:
        launch.close()
        with os.fdopen(pipes[0], "rb") as inward, os.fdopen(pipes[1], "wb") as out:
            begin(inward, out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def ended(pid: int, codes: dict[int, int]) -> int:
    """Return how a copy that runs no more ended."""
    if pid not in codes:
        codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return codes[pid]
