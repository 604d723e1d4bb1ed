"""Read files of unknown origin within bounds of type, size and depth.

A results directory may come from another person, and any file may be damaged. A refusal is a ValueError with the reason
in a few words, so that one bad file affects its own run alone.
"""

import gzip
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from initlab.system.yaml_text import YamlLoader

MIB = 2**20
MAX_TEXT_BYTES = 8 * MIB
"""Of a JSON or YAML file; a configuration has a few kB."""
MAX_TABLE_BYTES = 256 * MIB
"""Of a CSV file; some millions of logged steps have as much."""
MAX_DATA_BYTES = 2048 * MIB
"""Of a data file, and of the content of a gzipped one."""
MAX_DEPTH = 32
"""Levels of nesting of JSON and YAML; a configuration has five."""
MAX_VALUES = 200_000
"""Of one YAML file."""
MAX_INTEGER = 2**63 - 1
"""Largest whole number."""

_FILE_KINDS = (
    (stat.S_ISLNK, "a symbolic link, which is not followed here"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(ValueError):
    """A file is refused; the message is the reason in a few words."""


def read_bytes(path: Path | str, most: int = MAX_TEXT_BYTES, *, given: bool = False) -> bytes:
    """Return the content of a regular file.

    Opening never waits, and never follows a link that is the file itself: pipes, devices and links are refused.

    Args:
        path: of the file.
        most: bytes that it may have.
        given: whether the user named this file; then links and pipes are read as well, to the same bound.

    Raises:
        Unreadable: it is not a regular file, or larger; a missing file raises FileNotFoundError, as `open` does.

    >>> read_bytes("/dev/null")
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it is a device, not a regular file
    """
    if given:
        with open(path, "rb") as file:
            return _check_size(file.read(most + 1), most)
    with open(path, "rb", opener=_open_regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unreadable(f"it has {size / MIB:,.0f} MiB, more than the {most // MIB} MiB that are read")
        return _check_size(file.read(most + 1), most)


def _check_size(data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise Unreadable(f"it has more than the {most // MIB} MiB that are read")
    return data


def _open_regular(path: Path | str, _: int) -> int:
    require_regular_file(os.lstat(path).st_mode)  # first, because opening a device may have an effect
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        require_regular_file(os.fstat(descriptor).st_mode)
    except Unreadable:
        os.close(descriptor)
        raise
    return descriptor


def require_regular_file(mode: int) -> None:
    """Check the mode of a file.

    Raises:
        Unreadable: it is not a regular file.
    """
    if not stat.S_ISREG(mode):
        raise Unreadable(
            f"it is {next((word for test, word in _FILE_KINDS if test(mode)), 'no file')}, not a regular file"
        )


def read_ends(path: Path | str, count: int = 4096) -> tuple[bytes, bytes]:
    """Return the first `count` bytes of a regular file and its last byte; other files raise Unreadable."""
    descriptor = _open_regular(path, os.O_RDONLY)
    try:
        head = os.read(descriptor, count)
        if head:
            os.lseek(descriptor, -1, os.SEEK_END)
        return head, os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def decompress(data: bytes, most: int = MAX_DATA_BYTES) -> bytes:
    """Return the content of a gzip file; a damaged one raises OSError, EOFError or zlib.error.

    Args:
        data: of the file.
        most: bytes of its content; more raise Unreadable.

    >>> decompress(gzip.compress(bytes(2 * MIB)), MIB)
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it has more than the 1 MiB that are read
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return _check_size(file.read(most + 1), most)


def load_bounded_json(data: bytes | str) -> Any:
    """Return the value of a JSON text; text that is not JSON raises ValueError.

    Raises:
        Unreadable: it is nested deeper than 32 levels, or has a whole number beyond 64 bits.

    >>> load_bounded_json(b'{"steps": 3}')
    {'steps': 3}
    >>> load_bounded_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it is nested deeper than 32 levels
    """
    try:
        value = json.loads(data, parse_int=parse_integer)
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None
    _check_depth(value)
    return value


_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _nested_values(outer)]
        if not level:
            return
    raise Unreadable(_TOO_DEEP)


def _nested_values(value: Any) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, (dict, list))]


def parse_integer(text: str) -> int:
    """Return the whole number of a text.

    Raises:
        Unreadable: it does not fit into 64 bits.

    >>> parse_integer("12"), parse_integer("-3")
    (12, -3)
    """
    value = int(text) if len(text) < 30 else None
    if value is None or abs(value) > MAX_INTEGER:
        raise Unreadable(f"it has a whole number of {len(text.lstrip('-'))} digits, beyond 64 bits")
    return value


def require_mapping(value: Any) -> dict[str, Any]:
    """Return a mapping unchanged.

    Raises:
        Unreadable: it is another type.
    """
    if not isinstance(value, dict):
        raise Unreadable("it has no keys")
    return value


class _BoundedLoader(YamlLoader):
    """The loader of YAML without numbers that take long to read."""

    def construct_yaml_int(self, node: Any) -> int:
        """Return a whole number of at most 64 bits.

        Raises:
            Unreadable: it is larger.
        """
        value = super().construct_yaml_int(node) if len(str(node.value)) < 80 else MAX_INTEGER + 1
        if abs(value) > MAX_INTEGER:
            raise Unreadable(f"it has a whole number of {len(str(node.value))} digits, beyond 64 bits")
        return int(value)

    def construct_yaml_float(self, node: Any) -> float:
        """Return a number of at most 400 characters.

        Raises:
            Unreadable: it is longer.
        """
        if len(str(node.value)) > 400:
            raise Unreadable(f"it has a number of {len(str(node.value))} digits")
        return float(super().construct_yaml_float(node))


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)
_BoundedLoader.add_constructor("tag:yaml.org,2002:float", _BoundedLoader.construct_yaml_float)


def load_bounded_yaml(data: bytes | str) -> Any:
    """Return the value of a YAML text: plain values, no objects.

    Raises:
        Unreadable: it is not YAML, is nested deeper than 32 levels, has aliases (which may be cyclic, or grow
            exponentially), or a whole number beyond 64 bits.

    >>> load_bounded_yaml("width: [8, 4]")
    {'width': [8, 4]}
    >>> load_bounded_yaml("a: &a [1]\\nb: *a")
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it has an alias (*a)
    """
    try:
        _check_events(data)
        return yaml.load(data, _BoundedLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(error_reason(error)) from error
    except (ArithmeticError, LookupError, AttributeError, TypeError) as error:  # a tag that its value does not fit
        raise Unreadable(f"a value does not fit its tag ({error_reason(error)})") from error


def _check_events(data: bytes | str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(data, _BoundedLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(f"it has an alias (*{event.anchor})")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise Unreadable(_TOO_DEEP)
        if number > MAX_VALUES:
            raise Unreadable(f"it has more than {MAX_VALUES:,} values")


def read_json(path: Path | str, most: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Return the mapping of a JSON file; raises as `read_bytes` and `load_bounded_json`."""
    return require_mapping(load_bounded_json(read_bytes(path, most)))


def read_yaml_file(path: Path | str, *, given: bool = False) -> Any:
    """Return the value of a YAML file; raises as `read_bytes` and `load_bounded_yaml`."""
    return load_bounded_yaml(read_bytes(path, given=given))


def error_reason(error: BaseException) -> str:
    """Return the reason of an error in one line, without the path, which the sentence around it has.

    >>> error_reason(FileNotFoundError(2, "No such file or directory", "x")), error_reason(ValueError("it is empty"))
    ('No such file or directory', 'it is empty')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def abbreviate(value: Any, most: int = 40) -> str:
    """Return a value as at most `most` characters for a sentence."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"
