"""Read files of unknown origin: bounded in kind, size and depth, whatever is in them.

A results directory may come from a stranger, and any file may be damaged. What these functions refuse is a ValueError
with the reason in a few words, so that one bad file costs its own run and no other.
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
"""Largest JSON or YAML file that is read; a configuration has a few kB."""
MAX_TABLE_BYTES = 256 * MIB
"""Largest CSV file that is read; some millions of logged steps have as much."""
MAX_DATA_BYTES = 2048 * MIB
"""Largest file of data that is read, and what is unpacked of a gzipped one."""
MAX_DEPTH = 32
"""Deepest nesting of JSON and YAML that is read; a configuration has five levels."""
MAX_VALUES = 200_000
"""Values that one YAML file may hold."""
MAX_INTEGER = 2**63 - 1
"""Largest whole number that is read."""

_FILE_KINDS = (
    (stat.S_ISLNK, "a symbolic link, which is not followed here"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(ValueError):
    """A file is not read; the message says why in a few words."""


def read_bytes(path: Path | str, most: int = MAX_TEXT_BYTES, *, given: bool = False) -> bytes:
    """Return the content of a regular file, at most `most` bytes.

    Opening never waits and never follows a link in the last place of the path: a pipe, a device or a link is refused.
    With `given`, the user named just this file: links and pipes are read as well, to the same bound.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the system refuses.
        Unreadable: it is of another kind, or larger.

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
    require_regular_file(os.lstat(path).st_mode)  # before it is opened: opening a device may do something
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    try:
        require_regular_file(os.fstat(descriptor).st_mode)
    except Unreadable:
        os.close(descriptor)
        raise
    return descriptor


def require_regular_file(mode: int) -> None:
    """Raise Unreadable unless `mode` is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise Unreadable(
            f"it is {next((word for test, word in _FILE_KINDS if test(mode)), 'no file')}, not a regular file"
        )


def read_ends(path: Path | str, count: int = 4096) -> tuple[bytes, bytes]:
    """Return the first `count` bytes of a regular file and its last byte; raises as `read_bytes`, but for the size."""
    descriptor = _open_regular(path, os.O_RDONLY)
    try:
        head = os.read(descriptor, count)
        if head:
            os.lseek(descriptor, -1, os.SEEK_END)
        return head, os.read(descriptor, 1)
    finally:
        os.close(descriptor)


def decompress(data: bytes, most: int = MAX_DATA_BYTES) -> bytes:
    """Return what a gzip file holds, at most `most` bytes.

    Raises:
        OSError, EOFError, zlib.error: it is damaged.
        Unreadable: it holds more.

    >>> decompress(gzip.compress(bytes(2 * MIB)), MIB)
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it has more than the 1 MiB that are read
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return _check_size(file.read(most + 1), most)


def load_bounded_json(data: bytes | str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is no JSON, nested deeper than 32 levels, or holds a whole number beyond 64 bits.

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
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in found if isinstance(member, (dict, list))]


def parse_integer(text: str) -> int:
    """Return the whole number that a text spells.

    Raises:
        Unreadable: it does not fit into 64 bits.

    >>> parse_integer("12"), parse_integer("-3")
    (12, -3)
    """
    value = int(text) if len(text) < 30 else None
    if value is None or abs(value) > MAX_INTEGER:
        raise Unreadable(f"it holds a whole number of {len(text.lstrip('-'))} digits, beyond 64 bits")
    return value


def require_mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is.

    Raises:
        Unreadable: it is none.
    """
    if not isinstance(value, dict):
        raise Unreadable("it holds no keys")
    return value


class _BoundedLoader(YamlLoader):
    """The one reader of YAML without numbers that take long to read."""

    def construct_yaml_int(self, node: Any) -> int:
        """Read a whole number of at most 64 bits."""
        value = super().construct_yaml_int(node) if len(str(node.value)) < 80 else MAX_INTEGER + 1
        if abs(value) > MAX_INTEGER:
            raise Unreadable(f"it holds a whole number of {len(str(node.value))} digits, beyond 64 bits")
        return int(value)

    def construct_yaml_float(self, node: Any) -> float:
        """Read a number of a sensible length."""
        if len(str(node.value)) > 400:
            raise Unreadable(f"it holds a number of {len(str(node.value))} digits")
        return float(super().construct_yaml_float(node))


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)
_BoundedLoader.add_constructor("tag:yaml.org,2002:float", _BoundedLoader.construct_yaml_float)


def load_bounded_yaml(data: bytes | str) -> Any:
    """Return what YAML says: plain values, no objects.

    Raises:
        ValueError: it is no YAML, nested deeper than 32 levels, or holds aliases (which may be cyclic, or grow
            exponentially), or a whole number beyond 64 bits.

    >>> load_bounded_yaml("width: [8, 4]")
    {'width': [8, 4]}
    >>> load_bounded_yaml("a: &a [1]\\nb: *a")
    Traceback (most recent call last):
    ...
    initlab.system.safe_reading.Unreadable: it holds an alias (*a)
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
            raise Unreadable(f"it holds an alias (*{event.anchor})")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise Unreadable(_TOO_DEEP)
        if number > MAX_VALUES:
            raise Unreadable(f"it holds more than {MAX_VALUES:,} values")


def read_json(path: Path | str, most: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Return the mapping that a JSON file holds; raises as `read_bytes` and `load_bounded_json`."""
    return require_mapping(load_bounded_json(read_bytes(path, most)))


def read_yaml_file(path: Path | str, *, given: bool = False) -> Any:
    """Return what a YAML file holds; raises as `read_bytes` and `load_bounded_yaml`."""
    return load_bounded_yaml(read_bytes(path, given=given))


def error_reason(error: BaseException) -> str:
    """Return the reason of an error in one line: without the path, which the sentence around it names.

    >>> error_reason(FileNotFoundError(2, "No such file or directory", "x")), error_reason(ValueError("it is empty"))
    ('No such file or directory', 'it is empty')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def abbreviate(value: Any, most: int = 40) -> str:
    """Return a value as a few characters for a sentence."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"
