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
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import IO, Any, NoReturn

from initlab.collector import modules_loading

WORKER = "initlab.sweep.executors.serve:serve"  # what copies are made for
ENTRY = "from initlab.nursery import tend; tend(int({control}), {entry!r})"
# With threads of OpenMP in the nursery, its copies would wait for theirs for ever.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LARGEST = 2**16  # bytes of a message
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
    """The launch's end: it says what to load ahead, asks for copies, and hears how they ended.

    Arguments: `entry`, "module:function" that a copy calls with its two pipes; the module is loaded once, here.
    """

    def __init__(self, entry: str):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own: Ctrl-C in the terminal is for the launch. It prints where the launch complains.
            self.process = subprocess.Popen(
                [sys.executable, "-c", ENTRY.format(control=theirs.fileno(), entry=entry)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, **ONE_THREAD},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.asked = 0
        self.answers: dict[int, Any] = {}

    def call(self, function: str, **given: Any) -> None:
        """Have a function "module:function" called before the next copy is made; nobody waits for it, nor its end."""
        with suppress(Gone):
            self.ask("call", (function, given))

    def copy(self) -> "Copy":
        """Ask for a copy, and return it without waiting for it."""
        (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()
        try:
            number = self.ask("copy", None, [theirs_in, theirs_out])
        except Gone:
            os.close(ours_in)
            os.close(ours_out)
            self.close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        return Copy(self, number, os.fdopen(ours_in, "wb"), os.fdopen(ours_out, "rb"))

    def ask(self, word: str, given: Any, pipes: list[int] | None = None) -> int:
        """Send a request and return its number; raises Gone."""
        self.asked += 1
        try:
            socket.send_fds(self.control, [pickle.dumps((self.asked, word, given))], pipes or [])
        except OSError as error:
            raise Gone from error
        return self.asked

    def answer(self, number: int) -> Any:
        """Wait for the answer to a request and return it; raises Gone."""
        while number not in self.answers:
            message = self.heard()
            if not message:
                raise Gone
            found, answer = pickle.loads(message)
            self.answers[found] = answer
        return self.answers.pop(number)

    def heard(self) -> bytes:
        """Return the next message; none when there will be no more."""
        try:
            return self.control.recv(LARGEST)
        except ConnectionResetError:
            # That it died over a request is told before what it had answered.
            return self.control.recv(LARGEST)
        except OSError:
            return b""  # closed

    def close(self) -> None:
        """End it, whatever it is loading; copies that are at work see that it is gone, and keep what they have."""
        self.control.close()
        self.process.kill()
        self.process.wait()


class Copy:
    """A copy of the nursery, to be handled as `subprocess.Popen` is."""

    def __init__(self, nursery: Nursery, number: int, stdin: IO[bytes], stdout: IO[bytes]):
        self.nursery, self.number, self.stdin, self.stdout = nursery, number, stdin, stdout
        self.returncode: int | None = None
        self.found: int | None = None

    @property
    def pid(self) -> int:
        """Its number, as soon as it lives; raises Gone."""
        if self.found is None:
            self.found = int(self.nursery.answer(self.number))
        return self.found

    def poll(self) -> int | None:
        """Return None while it lives, then its exit code, or -9 for signal 9."""
        if self.returncode is None:
            try:
                self.returncode = self.nursery.answer(self.nursery.ask("status", self.pid))
            except Gone:
                # Nobody knows its code; without the nursery it ends, and for the same reason.
                if self.found is None or not runs(self.found):
                    self.returncode = self.nursery.process.poll() or 1
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
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def runs(pid: int) -> bool:
    """Does a process run, and not only wait for somebody to ask how it ended?"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


_nursery: Nursery | None = None
_holders = 0


@contextmanager
def held_open() -> Iterator[None]:
    """Let the nursery, if there is or will be one, live until the last who holds it open leaves."""
    global _holders
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if not _holders:
            dismiss()


def nursery() -> Nursery:
    """Return the nursery, for whoever holds it open; it starts when it is first needed, and again when it died."""
    global _nursery
    if _nursery is not None and _nursery.process.poll() is not None:
        dismiss()
    if _nursery is None:
        _nursery = Nursery(WORKER)
    return _nursery


def dismiss() -> None:
    """End the nursery, until it is needed again."""
    global _nursery
    if _nursery is not None:
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
        answer = copied(launch, begin, pipes) if word == "copy" else ended(given, codes)
        with suppress(OSError):  # the launch is gone: nothing more comes from it
            launch.send(pickle.dumps((number, answer)))


def copied(launch: socket.socket, begin: Callable[[IO[bytes], IO[bytes]], None], pipes: list[int]) -> int:
    """Copy this process and return the copy's number; the copy itself begins and does not return."""
    pid = os.fork()
    if pid:
        for pipe in pipes:
            os.close(pipe)
        return pid
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


def ended(pid: int, codes: dict[int, int]) -> int | None:
    """Return None for a copy that lives, else how it ended."""
    if pid not in codes:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]
