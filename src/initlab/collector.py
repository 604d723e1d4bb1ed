"""At start-up: how long threads of torch will wait; the garbage collector and Ctrl-C while modules load."""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Threads that have done their share wait for the others by spinning, 300,000 times (libgomp) or 200 ms (libomp):
# where cores are busy they keep the others from computing meanwhile. 1,000 times, or 1 ms, is long enough to meet the
# next operation where the machine is idle.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
SAYS_HOW_TO_WAIT = ("OMP_WAIT_POLICY", "KMP_LIBRARY")


def bound_waiting() -> None:
    """Let OpenMP's threads wait by spinning for a short time only, unless the user has said how they are to wait.

    The library reads it once, when torch loads it: afterwards there is nothing to be done.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in SAYS_HOW_TO_WAIT):
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


@contextmanager
def modules_loading() -> Iterator[None]:
    """Let the collector rest for the while, and leave in peace from then on what was loaded: it stays to the end.

    torch and what it brings are half a million objects. Looked through as they come they take a quarter longer to load,
    and whatever makes objects afterwards pays again. For programs that load once and work then, not for libraries.

    >>> with modules_loading():
    ...     gc.isenabled()
    False
    """
    before = gc.isenabled()
    gc.disable()
    try:
        with interrupts_kept():
            yield
    finally:
        gc.freeze()
        atexit.register(unfreeze_for_those_who_count)
        if before:
            gc.enable()


@contextmanager
def interrupts_kept() -> Iterator[None]:
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


def unfreeze_for_those_who_count() -> None:
    """Let the collector take up all, at the end, where somebody complains of what is still there then.

    It takes a second to find that all half a million objects are of no use any more.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
