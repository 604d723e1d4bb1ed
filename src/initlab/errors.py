"""What the user got wrong, said in one sentence with the remedy."""

import operator
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TextIO

from initlab.visible import print

LARGEST_SEED = 2**63 - 1


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
            tell("", end="")
            sys.stdout.flush()
    except BrokenPipeError:
        to_nowhere(sys.stdout)


def to_nowhere(stream: TextIO) -> None:
    """Let a stream whose reader is gone end in nothing: what Python flushes at its end must find no broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(text: str, end: str = "\n") -> None:
    """Print to standard error, if anybody is there to read it: nothing that runs ends for want of a reader.

    After Ctrl-C on `… 2>&1 | tee log` nobody is. Also from within a signal's handler, where printing may be refused.
    """
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except BrokenPipeError:
        to_nowhere(sys.stderr)
    except RuntimeError:  # the signal came while somebody was printing
        return


def whole_seed(seed: Any) -> int:
    """Return a seed as a whole number, whatever kind of whole number it is; raises UserError if it is none.

    >>> whole_seed(3)
    3
    >>> whole_seed(-1)
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: seed=-1 must be a whole number from 0 to 2^63 − 1: say for example seed=0.
    """
    try:
        found = -1 if isinstance(seed, bool) else operator.index(seed)  # numpy's whole numbers have an index, too
    except TypeError:
        found = -1
    if not 0 <= found <= LARGEST_SEED:
        raise UserError(f"seed={seed!r} must be a whole number from 0 to 2^63 − 1: say for example seed=0.")
    return found


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return `" Did you mean 'he_normal'?"` for a mistyped name, or an empty string.

    >>> nearest("he_norml", ["he_normal", "zeros"]), nearest("rel", ["relu", "relu6", "prelu"])
    (" Did you mean 'he_normal'?", " Did you mean 'relu', 'relu6' or 'prelu'?")
    """
    close = [repr(match) for match in get_close_matches(name.lower(), list(names), n=count, cutoff=0.6)]
    listed = " or ".join([", ".join(close[:-1]), close[-1]] if len(close) > 1 else close)
    return f" Did you mean {listed}?" if close else ""
