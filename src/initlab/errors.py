"""What the user got wrong, said in one sentence with the remedy."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user asked for cannot be: the message names the key, the value and the remedy.

    The command line prints it as one sentence and exits with code 2; in Python it is a `ValueError`.
    """


class Impossible(UserError):
    """A combination that cannot exist (dirac on an mlp): skipped inside a grid, an error when asked for alone."""


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop and everything has been kept; `remedy` says how to go on.

    The command line prints it and exits with code 128 + the signal: 130 after Ctrl-C, 143 after a kill.
    """

    def __init__(self, signal: int, remedy: str = ""):
        super().__init__(signal, remedy)
        self.signal, self.remedy = signal, remedy


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let `… | head` end in peace: whoever read the output has had enough, which is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What Python itself flushes at its end must find no broken pipe, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'he_normal'?"` for a mistyped name, or an empty string.

    >>> nearest("he_norml", ["he_normal", "zeros"]), nearest("rel", ["relu", "relu6", "prelu"])
    (" Did you mean 'he_normal'?", " Did you mean 'relu', 'relu6' or 'prelu'?")
    """
    close = [repr(match) for match in get_close_matches(name.lower(), list(names), n=count, cutoff=0.6)]
    listed = " or ".join([", ".join(close[:-1]), close[-1]] if len(close) > 1 else close)
    return f" Did you mean {listed}?" if close else ""
