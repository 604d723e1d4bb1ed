"""Python's garbage collector, which has nothing to find while modules load, and looks through them all the same."""

import atexit
import gc
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
        # At the end all goes: some libraries complain of what is still there then.
        atexit.register(gc.unfreeze)
        if before:
            gc.enable()
