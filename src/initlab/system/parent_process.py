"""A process that initlab starts ends within seconds of its parent's end, whatever it is doing then.

A worker notices the end of its parent by the pipe from it, which the system closes. The pid of the parent shows nothing
where a launcher stands between the two, as `python.exe` of a virtual environment does on Windows.
"""

import os
import pickle
import queue
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

CHECKPOINT_SECONDS = 5.0  # in which a worker finishes its step and writes its checkpoint after its parent's end
POLL_INTERVAL = 0.5  # seconds between two looks at a parent without a pipe to this process
STOP_MESSAGE = b""  # asks a worker to write its checkpoint and exit

stop_requested = threading.Event()  # the parent asks this process to end, or has ended
_exit_delayed = threading.Event()  # this process has a checkpoint to write


def read_messages(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield the parent's messages until it sends `STOP_MESSAGE` or its end of the pipe is closed.

    A thread reads them, and notices the parent's end while this process imports torch or trains.

    Args:
        pipe: what `send_message` writes to.
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
    except RuntimeError:  # the system allows no further thread: each is read when it is asked for
        return iter(lambda: read_message(pipe) or STOP_MESSAGE, STOP_MESSAGE)
    return iter(received.get, STOP_MESSAGE)


def send_message(message: bytes, pipe: IO[bytes]) -> None:
    """Write a message to a worker."""
    pickle.dump(message, pipe)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> bytes | None:
    """Return the next message, None where the parent has closed its end."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        return bytes(pickle.load(pipe))
    return None


def exit_after(wait: Callable[[], None]) -> None:
    """Exit once `wait`, called in a thread, has returned; within `delay_exit`, `CHECKPOINT_SECONDS` later."""

    def wait_and_exit() -> None:
        wait()
        stop_requested.set()
        if _exit_delayed.is_set():
            time.sleep(CHECKPOINT_SECONDS)
        os._exit(0)

    threading.Thread(target=wait_and_exit, daemon=True).start()


@contextmanager
def delay_exit() -> Iterator[None]:
    """Allow the process to finish its step after its parent's end."""
    _exit_delayed.set()
    try:
        yield
    finally:
        _exit_delayed.clear()


def claim_standard_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return standard input and output for messages alone; what user code prints goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return requests, answers


def process_start_time(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one of the same pid; None if it does not run.

    A zombie, which has ended while its parent has not asked for its exit code, does not run.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            state, *fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def is_running(pid: int, start_time: str | None) -> bool:
    """Return whether the process of this pid and start time still runs; without a start time the pid decides."""
    if start_time is not None:
        return process_start_time(pid) == start_time
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's process
    return True


def run_module() -> None:
    """Run a module as `python -m` does, but without the current directory, and only while a given process runs.

    The command line is: pid of that process (0: none), its start time (`-`: unknown), `-u -m MODULE`, arguments.
    """
    _, pid, start_time, _, _, module, *arguments = sys.argv

    def wait() -> None:
        while is_running(int(pid), None if start_time == "-" else start_time):
            time.sleep(POLL_INTERVAL)

    if int(pid):
        exit_after(wait)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
