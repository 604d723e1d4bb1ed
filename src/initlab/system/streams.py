"""Standard output and error that never raise: closed, full, or of a narrow encoding."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from initlab.system.escape import printable_lines

# Substitutes for an encoding without these characters; others become question marks.
ASCII_SUBSTITUTES = str.maketrans(dict(zip("−–—‑·×≈…≤≥→━─⋮²₁", "----*x~.<>>=-:21", strict=True)))
ASCII_SUBSTITUTES |= {ord("±"): "+/-", ord("χ"): "chi", ord("σ"): "sigma"}


class SafeStream:
    """A text stream that never raises: characters outside its encoding are replaced; after an error it writes nothing.

    Attributes:
        stream: the wrapped stream.
        error: that ended the writing, or None.

    >>> import io
    >>> narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    >>> SafeStream(narrow).write("84.2 ± 0.1 é")
    12
    >>> narrow.flush(), narrow.buffer.getvalue()
    (None, b'84.2 +/- 0.1 ?')
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text."""
        if self.error is not None:
            return len(text)
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.translate(ASCII_SUBSTITUTES).encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.give_up(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the wrapped stream."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Note the error, and redirect the stream to the null device."""
        self.error = self.error or error
        with suppress(OSError, ValueError):
            redirect_to_devnull(self.stream)

    def isatty(self) -> bool:
        """Return whether it is an open terminal."""
        with suppress(ValueError):
            return self.error is None and self.stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped stream.

        Raises:
            AttributeError: for `buffer` of an ascii stream, to which click would write UTF-8.
        """
        if name == "buffer" and getattr(self.stream, "encoding", "").lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"):
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def use_safe_streams() -> Iterator[None]:
    """Make standard output and error safe streams in the block: no print raises.

    An error other than a closed pipe (`… | head`) is reported at the end.
    """
    before = sys.stdout, sys.stderr
    with ExitStack() as opened:
        streams = [each or opened.enter_context(open(os.devnull, "w", encoding="utf-8")) for each in before]
        out, err = (each if isinstance(each, SafeStream) else SafeStream(each) for each in streams)
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.flush()
            sys.stdout, sys.stderr = before
            if out is not before[0] and out.error and not isinstance(out.error, BrokenPipeError):
                print_stderr(f"initlab: standard output cannot be written ({out.error}).")
            err.flush()


def output_was_lost() -> bool:
    """Return whether standard output has failed, other than by a closed pipe."""
    error = getattr(sys.stdout, "error", None)
    return error is not None and not isinstance(error, BrokenPipeError)


@contextmanager
def tolerate_lost_output() -> Iterator[None]:
    """Let the block finish whatever happens to its output: closed (`>&-`), read no further (`… | head`), or full."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    with use_safe_streams():
        yield


def redirect_to_devnull(stream: TextIO) -> None:
    """Redirect a stream without reader to the null device: Python flushes it at exit, which must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_stderr(text: str, end: str = "\n") -> None:
    """Print to standard error without ever raising, also in a signal's handler, where Python may refuse to print.

    After Ctrl-C on `… 2>&1 | tee log` nothing reads it.
    """
    if sys.stderr is None:
        return
    stream = sys.stderr if isinstance(sys.stderr, SafeStream) else SafeStream(sys.stderr)
    with suppress(RuntimeError):  # the signal came during a print
        stream.write(printable_lines(text + end))
        stream.flush()
