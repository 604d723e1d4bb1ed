"""At start-up: how long threads of torch will wait; the garbage collector and Ctrl-C while modules load."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# Threads that have done their share wait for the others by spinning, 300,000 times (libgomp) or 200 ms (libomp):
# where cores are busy they keep the others from computing meanwhile. 1,000 times, or 1 ms, is long enough to meet the
# next operation where the machine is idle.
OPENMP_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
USER_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "KMP_LIBRARY")


def limit_openmp_spinning() -> None:
    """Let OpenMP's threads wait by spinning for a short time only, unless the user has said how they are to wait.

    The library reads it once, when torch loads it: afterwards there is nothing to be done.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USER_WAIT_VARIABLES):
        for name, value in OPENMP_WAIT.items():
            os.environ.setdefault(name, value)


THREAD_POOLS = 4  # libraries with threads of their own, about: torch's, numpy's, scipy's and initlab's
THREAD_DIRECTORY = Path("/proc/self/task")  # of Linux: a directory for each thread


def limit_threads() -> None:
    """Let torch and numpy compute by one thread where the system allows too few: they end the process otherwise.

    A thread counts as a process for `ulimit -u` and for control groups.
    """
    if "torch" in sys.modules or "OMP_NUM_THREADS" in os.environ:
        return
    if not can_start_threads(min(THREAD_POOLS * (os.cpu_count() or 1), 64)):
        os.environ["OMP_NUM_THREADS"] = "1"
        for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def can_start_threads(count: int) -> bool:
    """Return whether this process can have that many further threads at a time; afterwards they are gone."""
    before = count_threads()
    enough, started = threading.Event(), []
    try:
        for _ in range(count):
            thread = threading.Thread(target=enough.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        enough.set()
        for thread in started:
            thread.join()
        # Python has done with them a moment before the system has; a process with one thread can be copied.
        limit = time.monotonic() + 1
        while count_threads() > before and time.monotonic() < limit:
            time.sleep(0.0002)
    return True


def count_threads() -> int:
    """Return how many threads the system counts in this process, 0 where it does not tell."""
    try:
        return len(os.listdir(THREAD_DIRECTORY))
    except OSError:
        return 0


@contextmanager
def fast_imports() -> Iterator[None]:
    """Let the collector rest for the while, and leave in peace from then on what was loaded: it stays to the end.

    torch and what it brings are half a million objects. Looked through as they come they take a quarter longer to load,
    and whatever makes objects afterwards pays again. For programs that load once and work then, not for libraries.

    >>> with fast_imports():
    ...     gc.isenabled()
    False
    """
    limit_threads()
    before = gc.isenabled()
    gc.disable()
    try:
        with keep_keyboard_interrupt():
            yield
    finally:
        gc.freeze()
        atexit.register(unfreeze_at_exit)
        if before:
            gc.enable()


@contextmanager
def keep_keyboard_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, whatever the module makes of it that is just being loaded.

    Some take it for a failure of what they load themselves, and raise that or go on without.
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        usual(number, frame)

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    except Exception as error:
        if heard:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, usual)
    if heard:
        raise KeyboardInterrupt


def unfreeze_at_exit() -> None:
    """Let the collector take up all, at the end, where somebody complains of what is still there then.

    It takes a second to find that all half a million objects are of no use any more.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
