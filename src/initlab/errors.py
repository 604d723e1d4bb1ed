"""What the user got wrong, said in one sentence with the remedy."""

import operator
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TextIO

from initlab.visible import lines

LARGEST_SEED = 2**63 - 1


def here() -> Path:
    """Return the current directory; raises UserError when it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError(
            "The current directory has been removed: change to one that exists (cd) and start again."
        ) from error


class UserError(ValueError):
    """Something the user asked for cannot be: the message names the key, the value and the remedy.

    The command line prints it as one sentence and exits with `code`; in Python it is a `ValueError`.
    """

    code = 2


class Impossible(UserError):
    """A combination that cannot exist (dirac on an mlp): skipped inside a grid, an error when asked for alone."""


class OwnBug(RuntimeError):
    """An exception that initlab's own code raised while it looked at a user's module; its cause says what it was."""


class NothingLeft(UserError):
    """What has run gave nothing to go on with: the message says what became of it. The command line exits with 1."""

    code = 1


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop and everything has been kept; `remedy` says how to go on.

    The command line prints it and exits with code 128 + the signal: 130 after Ctrl-C, 143 after a kill.
    """

    def __init__(self, signal: int, remedy: str = ""):
        super().__init__(signal, remedy)
        self.signal, self.remedy = signal, remedy


# What a narrow encoding lacks, in letters that every encoding has; the rest becomes question marks.
PLAIN = str.maketrans(dict(zip("−–—‑·×≈…≤≥→━─⋮²₁", "----*x~.<>>=-:21", strict=True)))
PLAIN |= {ord("±"): "+/-", ord("χ"): "chi", ord("σ"): "sigma"}


class LastingStream:
    """A text stream for which no print is an error: letters that it cannot show are replaced, a lost reader is noted.

    Attributes:
        lost: why nothing can be written any more, or None.

    >>> import io
    >>> narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    >>> LastingStream(narrow).write("84.2 ± 0.1 é")
    12
    >>> narrow.flush(), narrow.buffer.getvalue()
    (None, b'84.2 +/- 0.1 ?')
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write what can be shown."""
        if self.lost is not None:
            return len(text)
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.translate(PLAIN).encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.lose(error)

    def lose(self, error: Exception) -> None:
        """Note that nothing can be written any more."""
        self.lost = self.lost or error
        with suppress(OSError, ValueError):
            to_nowhere(self.stream)

    def isatty(self) -> bool:
        """Is it a terminal, and open?"""
        with suppress(ValueError):
            return self.lost is None and self.stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else, but give no bytes of an ascii one: click would write UTF-8 into them."""
        if name == "buffer" and getattr(self.stream, "encoding", "").lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"):
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let no print of the block raise: with a closed or full output, or one of few letters, the work goes on.

    What could not be written for another reason than a reader that left (`… | head`) is said at the end.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as own:
        there = [each or own.enter_context(open(os.devnull, "w", encoding="utf-8")) for each in before]
        out, err = (each if isinstance(each, LastingStream) else LastingStream(each) for each in there)
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.flush()
            sys.stdout, sys.stderr = before
            if out is not before[0] and out.lost and not isinstance(out.lost, BrokenPipeError):
                tell(f"initlab: standard output cannot be written ({out.lost}).")
            err.flush()


def output_lost() -> bool:
    """Was something lost that was printed, other than by a reader that left?"""
    lost = getattr(sys.stdout, "lost", None)
    return lost is not None and not isinstance(lost, BrokenPipeError)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Run a command whatever becomes of its output: closed (`>&-`), left (`… | head`), full, or of few letters."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the first file that is opened would take its place, and be written to by what prints
            os.open(os.devnull, os.O_RDWR)
    with lasting_streams():
        yield


def to_nowhere(stream: TextIO) -> None:
    """Let a stream whose reader is gone end in nothing: what Python flushes at its end must find no broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(text: str, end: str = "\n") -> None:
    """Print to standard error, if anything reads it: no run ends for want of a reader.

    After Ctrl-C on `… 2>&1 | tee log` nothing does. Also from within a signal's handler, where printing may be refused.
    """
    if sys.stderr is None:
        return
    stream = sys.stderr if isinstance(sys.stderr, LastingStream) else LastingStream(sys.stderr)
    with suppress(RuntimeError):  # the signal came in the middle of a print
        stream.write(lines(text + end))
        stream.flush()


def short_path(path: Path) -> Path:
    """Return a path from the current directory where it lies below it, else as it is.

    >>> short_path(Path.cwd() / "outputs"), short_path(Path("/nowhere/else"))
    (PosixPath('outputs'), PosixPath('/nowhere/else'))
    """
    try:
        here_now = Path.cwd()
    except OSError:  # it has been removed
        return path
    return path.relative_to(here_now) if path.is_relative_to(here_now) else path


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
