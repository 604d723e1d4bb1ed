"""Faster imports: pause the garbage collector, keep Ctrl-C working; limits on threads that torch reads once."""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# OpenMP's threads wait for each other by spinning, 300,000 times (libgomp) or 200 ms (libomp): on busy cores that keeps
# the others from computing. 1,000 times, or 1 ms, is long enough to meet the next operation on an idle machine.
OPENMP_WAIT = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
USER_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "KMP_LIBRARY")
THREAD_POOLS = 4  # libraries with threads of their own, about: torch, numpy, scipy and initlab


def limit_openmp_spinning() -> None:
    """Have OpenMP's threads spin for a short time only, unless the user's environment sets how they wait.

    The library reads these variables once, when torch loads it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USER_WAIT_VARIABLES):
        for name, value in OPENMP_WAIT.items():
            os.environ.setdefault(name, value)


def limit_threads() -> None:
    """Have torch and numpy use one thread where the system allows too few: they would end the process.

    A thread counts as a process for `ulimit -u` and for control groups.
    """
    if "torch" in sys.modules or "OMP_NUM_THREADS" in os.environ:
        return
    if not can_start_threads(min(THREAD_POOLS * (os.cpu_count() or 1), 64)):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


def can_start_threads(count: int) -> bool:
    """Return whether this process can have `count` further threads at a time, by starting them."""
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
    return True


@contextmanager
def fast_imports() -> Iterator[None]:
    """Pause the garbage collector while modules load, and have it ignore them afterwards: they stay to the end.

    torch and what it imports are half a million objects: collections while they are made take a quarter of the time
    that loading takes. For programs that load once and then work, not for libraries.

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
    """Raise KeyboardInterrupt for Ctrl-C also where a module that is being imported catches it.

    Some modules take it for a failure of an import of theirs, and raise that or go on.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    received: list[int] = []

    def note_and_raise(number: int, frame: FrameType | None) -> None:
        received.append(number)
        default(number, frame)

    signal.signal(signal.SIGINT, note_and_raise)
    try:
        yield
    except Exception as error:
        if received:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, default)
    if received:
        raise KeyboardInterrupt


def unfreeze_at_exit() -> None:
    """Have the collector take up all objects where triton is loaded, which complains of what is left at the end.

    Elsewhere they stay frozen: to find that half a million objects are unreachable takes a second.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
