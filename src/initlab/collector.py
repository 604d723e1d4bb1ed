"""Python's garbage collector: while modules load there is nothing to find, and it looks through them again and again."""

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
        if before:
            gc.enable()
