"""Standard output and error that never raise: closed, full, or of a narrow encoding."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from initlab.system.escape import printable_lines

# What a narrow encoding lacks, in letters that every encoding has; the rest becomes question marks.
ASCII_SUBSTITUTES = str.maketrans(dict(zip("−–—‑·×≈…≤≥→━─⋮²₁", "----*x~.<>>=-:21", strict=True)))
ASCII_SUBSTITUTES |= {ord("±"): "+/-", ord("χ"): "chi", ord("σ"): "sigma"}


class SafeStream:
    """A text stream for which no print is an error: letters that it cannot show are replaced, a lost reader is noted.

    Attributes:
        lost: why nothing can be written any more, or None.

    >>> import io
    >>> narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    >>> SafeStream(narrow).write("84.2 ± 0.1 é")
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
                self.stream.write(text.translate(ASCII_SUBSTITUTES).encode(encoding, "replace").decode(encoding))
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
            redirect_to_devnull(self.stream)

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
def use_safe_streams() -> Iterator[None]:
    """Let no print of the block raise: with a closed or full output, or one of few letters, the work goes on.

    What could not be written for another reason than a reader that left (`… | head`) is said at the end.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as own:
        there = [each or own.enter_context(open(os.devnull, "w", encoding="utf-8")) for each in before]
        out, err = (each if isinstance(each, SafeStream) else SafeStream(each) for each in there)
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.flush()
            sys.stdout, sys.stderr = before
            if out is not before[0] and out.lost and not isinstance(out.lost, BrokenPipeError):
                print_stderr(f"initlab: standard output cannot be written ({out.lost}).")
            err.flush()


def output_was_lost() -> bool:
    """Was something lost that was printed, other than by a reader that left?"""
    lost = getattr(sys.stdout, "lost", None)
    return lost is not None and not isinstance(lost, BrokenPipeError)


@contextmanager
def tolerate_lost_output() -> Iterator[None]:
    """Run a command whatever becomes of its output: closed (`>&-`), left (`… | head`), full, or of few letters."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the first file that is opened would take its place, and be written to by what prints
            os.open(os.devnull, os.O_RDWR)
    with use_safe_streams():
        yield


def redirect_to_devnull(stream: TextIO) -> None:
    """Let a stream whose reader is gone end in nothing: what Python flushes at its end must find no broken pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_stderr(text: str, end: str = "\n") -> None:
    """Print to standard error, if anything reads it: no run ends for want of a reader.

    After Ctrl-C on `… 2>&1 | tee log` nothing does. Also from within a signal's handler, where printing may be refused.
    """
    if sys.stderr is None:
        return
    stream = sys.stderr if isinstance(sys.stderr, SafeStream) else SafeStream(sys.stderr)
    with suppress(RuntimeError):  # the signal came in the middle of a print
        stream.write(printable_lines(text + end))
        stream.flush()
