"""A process that initlab starts ends within seconds of its parent's death, at any moment of its own life.

A worker learns of the death from its parent's pipe, which the system closes: the number of the parent process tells
nothing where a launcher stands between the two, as `python.exe` of a virtual environment does on Windows.
"""

import ctypes
import os
import pickle
import queue
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

CHECKPOINT_SECONDS = (
    5.0  # seconds that a worker has to finish its step and write its checkpoint after its parent's death
)
POLL_INTERVAL = 0.5  # seconds between two looks at a parent that has no pipe to this process
PDEATHSIG = 1  # of Linux's prctl
STOP_MESSAGE = b""  # the message that asks a worker to keep its group and end

stop_requested = threading.Event()  # the parent wants this process to end, or has ended
_finishing = threading.Event()  # this process has something to keep


def end_with_parent(parent: int) -> None:
    """Have Linux kill this process as soon as its parent ends; `parent` is the parent's process number.

    Linux does so at the end of the thread that started the process, so that thread must be one that stays.
    """
    with suppress(AttributeError, OSError, TypeError):  # another system
        ctypes.CDLL(None).prctl(PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent and process_start_time(parent) is None:
        os._exit(1)  # it ended before it was watched


def messages(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield the parent's messages, each a pickled `bytes`, until it says LEAVE or its end of the pipe is closed.

    They are read by a thread, which notices the parent's death while this process loads torch or trains.
    """
    received: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        while (message := read_message(pipe)) is not None:
            received.put(message)
            if message == STOP_MESSAGE:
                stop_requested.set()
        received.put(STOP_MESSAGE)

    try:
        exit_after(read)
    except RuntimeError:  # the system allows no further thread: they are read as they are wanted
        return iter(lambda: read_message(pipe) or STOP_MESSAGE, STOP_MESSAGE)
    return iter(received.get, STOP_MESSAGE)


def send_message(message: bytes, pipe: IO[bytes]) -> None:
    """Write a message to a worker."""
    pickle.dump(message, pipe)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes | None:
    """Return the next message, None where the parent has closed its end."""
    try:
        message: bytes = pickle.load(pipe)
    except (EOFError, OSError, pickle.UnpicklingError):
        return None
    return message


def exit_after(wait: Callable[[], None]) -> None:
    """End this process once `wait`, called in a thread, has returned; at once, unless it has something to keep."""

    def end() -> None:
        wait()
        stop_requested.set()
        if _finishing.is_set():
            time.sleep(CHECKPOINT_SECONDS)
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def delay_exit() -> Iterator[None]:
    """Allow the process to finish its step after its parent's death, for the while."""
    _finishing.set()
    try:
        yield
    finally:
        _finishing.clear()


def own_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return standard input and what was standard output; what the user's code prints goes to standard error."""
    inward, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return inward, out


def process_start_time(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one of the same number; None if it does not run.

    A process that has ended does not run, even if its parent has not asked for its exit code yet.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            state, *facts = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else facts[18]


def is_running(pid: int, born: str | None) -> bool:
    """Does the process that had this number and this birth still run? Where births are unknown, the number decides."""
    if born is not None:
        return process_start_time(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_module() -> None:
    """Run a module as `python -m` does, but without the current directory, and only while a given process runs.

    The command line is: number of that process (0: none), its birth (`-`: unknown), `-u -m MODULE`, arguments.
    """
    _, pid, born, _, _, module, *arguments = sys.argv

    def wait() -> None:
        while is_running(int(pid), None if born == "-" else born):
            time.sleep(POLL_INTERVAL)

    if int(pid):
        exit_after(wait)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
