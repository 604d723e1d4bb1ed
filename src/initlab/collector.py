"""Python's garbage collector, which has nothing to find while modules load, and looks through them all the same."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
        yield
    finally:
        gc.freeze()
        atexit.register(unfreeze_for_those_who_count)
        if before:
            gc.enable()


def unfreeze_for_those_who_count() -> None:
    """Let the collector take up all, at the end, where somebody complains of what is still there then.

    It takes a second to find that all half a million objects are of no use any more.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
