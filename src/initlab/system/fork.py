"""Copies of this process (`fork`): made in milliseconds, with all that was loaded.

Copying is safe where a process has one thread: of others the copy has nothing but what they hold, which nobody gives
back. And only on Linux: libraries of other systems do not survive it.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from initlab.system.escape import print
from initlab.system.parent_process import end_with_parent

T = TypeVar("T")
THREAD_DIRECTORY = Path("/proc/self/task")  # of this process: a directory for each, those of libraries as well
POLL_INTERVAL = 0.005  # seconds between two looks whether a child has ended


def can_fork() -> bool:
    """Does this system copy processes that have loaded torch?"""
    return sys.platform == "linux"


def is_single_threaded() -> bool:
    """Has this process one thread, so that it may be copied?"""
    try:
        return can_fork() and len(list(THREAD_DIRECTORY.iterdir())) == 1
    except OSError:
        return False


def run_and_exit(work: Callable[[], object], quiet: bool = False) -> NoReturn:
    """Do this work as a copy, which ends with it: 0, or 1 where it fails, which is told unless it is `quiet`.

    Who is interrupted knows why, and says nothing.
    """
    code = 1
    try:
        work()
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        if not quiet:
            print(traceback.format_exc(), end="", file=sys.stderr)
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Write what was printed, that no copy writes it again."""
    for stream in (sys.stdout, sys.stderr):
        # None: whoever started this process closed it.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


class ChildProcess:
    """A copy of this process that does some work, to be handled as `subprocess.Popen` is.

    Arguments: `quiet` prints no traceback; `bound` ends the copy with the thread that made it.
    """

    def __init__(self, work: Callable[[], object], quiet: bool = False, bound: bool = False):
        flush_output()
        self.returncode: int | None = None
        self.asking = threading.Lock()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            if bound:
                end_with_parent(parent)
            run_and_exit(work, quiet)

    def poll(self) -> int | None:
        """Return None while it lives, then its exit code, or -9 for signal 9."""
        with self.asking:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raises subprocess.TimeoutExpired."""
        return wait_for_exit(self.poll, timeout)

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def wait_for_exit(poll: Callable[[], int | None], timeout: float | None) -> int:
    """Wait until a process has ended, and return its exit code; raises subprocess.TimeoutExpired."""
    limit = None if timeout is None else time.monotonic() + timeout
    while (code := poll()) is None:
        if limit is not None and time.monotonic() > limit:
            raise subprocess.TimeoutExpired("a copy", timeout or 0.0)
        time.sleep(POLL_INTERVAL)
    return code


@contextmanager
def run_in_child(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Let a copy of this process do some work meanwhile; yields the call that waits for its result.

    Where the copy fails this process does the work itself, so that what is wrong with it is raised here.

    >>> with run_in_child(lambda: [os.getpid()]) as result:
    ...     result() == [os.getpid()]
    False
    """
    inward, out = os.pipe()

    def send() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits
        os.close(inward)  # or its own pipe would never break, and it would wait for a reader after the parent's death
        with os.fdopen(out, "wb") as pipe:
            pickle.dump(work(), pipe, -1)

    with os.fdopen(inward, "rb") as pipe:
        try:
            child = ChildProcess(send, quiet=True, bound=True)
        except OSError:  # the system allows no further process
            child = None
        finally:
            os.close(out)

        def result() -> T:
            try:
                found: T = pickle.load(pipe)
            except (EOFError, pickle.UnpicklingError):
                return work()
            return found

        try:
            yield result
        finally:
            if child is not None:
                child.kill()
                child.wait()
