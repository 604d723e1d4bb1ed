"""Checksums: does a file still hold what was written into it?

The records of a run are `config.yaml`, `parameters.csv`, the three tables, weights and `summary.json`: they are read
back, so each has a checksum. `run.log`, event files, `sweep.csv` and `.hydra/` are views for people and for
TensorBoard: nothing reads them back, and a damaged one changes no result.
"""

import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initlab.records.columns import TABLE_COLUMNS

SUMMARY_FORMAT = 2  # of summary.json; those of format 1 have neither this number nor checksums
TABLES = tuple(TABLE_COLUMNS)
WEIGHTS = ("weights-0.safetensors", "weights-end.safetensors")
RECORDS = ("config.yaml", "parameters.csv", *TABLES, *WEIGHTS)
CHUNK_BYTES = 2**20
_CHECKSUM_LINE = b',\n "crc32": "%08x"\n}'
_CHECKSUM_LENGTH = len(_CHECKSUM_LINE % 0)


@dataclass(frozen=True)
class Checksum:
    """The number of bytes written into a file, and their CRC-32.

    >>> Checksum().plus(b"step,").plus(b"loss") == Checksum().plus(b"step,loss")
    True
    """

    size: int = 0
    crc32: int = 0

    def plus(self, data: bytes) -> "Checksum":
        """Return the checksum after more bytes were appended."""
        return Checksum(self.size + len(data), zlib.crc32(data, self.crc32))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Checksum":
        """Return the checksum that `to_record` wrote."""
        return cls(record["bytes"], int(record["crc32"], 16))

    def to_record(self) -> dict[str, Any]:
        """Return the checksum as plain values for JSON."""
        return {"bytes": self.size, "crc32": f"{self.crc32:08x}"}


def find_damage(path: Path, record: Any, *, may_be_longer: bool = False, size_alone: bool = False) -> str:
    """Compare a file with its checksum; return what is wrong with it, "" for an intact file.

    Args:
        path: the file.
        record: its checksum as `Checksum.to_record` returns it.
        may_be_longer: whether only the first bytes are compared, because more may have been appended.
        size_alone: whether the size is compared alone, without reading the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the record is no checksum.
    """
    if not isinstance(record, Mapping) or type(record.get("bytes")) is not int or "crc32" not in record:
        raise ValueError(f"the checksum of {path.name} cannot be read")
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path.name} is missing"
    if not stat.S_ISREG(status.st_mode):
        return f"{path.name} is not a regular file"
    size: int = record["bytes"]
    if status.st_size < size or (status.st_size > size and not may_be_longer):
        return f"{path.name} has {status.st_size} bytes where {size} were written"
    if size_alone:
        return ""
    checksum = Checksum()
    with open(path, "rb") as file:
        while checksum.size < size and (data := file.read(min(CHUNK_BYTES, size - checksum.size))):
            checksum = checksum.plus(data)
    return "" if checksum.to_record() == dict(record) else f"{path.name} was changed after it was written"


def find_run_damage(directory: Path, records: Any, *, read_weights: bool = True) -> str:
    """Compare the records of a finished run with their checksums; return what is wrong, "" for an intact run.

    Args:
        directory: the run's directory.
        records: checksums by file name, from `summary.json`.
        read_weights: whether files of weights, which may be large, are read; else their sizes alone are compared.

    Raises:
        OSError: a file cannot be read.
        ValueError: a record is no checksum.
    """
    if not isinstance(records, Mapping):
        raise ValueError("the checksums of its files cannot be read")
    for name in RECORDS:
        if name in records:
            size_alone = name in WEIGHTS and not read_weights
            if damage := find_damage(directory / name, records[name], size_alone=size_alone):
                return damage
        elif name in TABLES and (directory / name).exists():
            return f"{name} was not written by this run"
    return ""


def append_checksum(data: bytes) -> bytes:
    """Return an indented JSON object with the checksum of all that is before it as its last value.

    >>> append_checksum(b'{\\n "depth": 3\\n}')
    b'{\\n "depth": 3,\\n "crc32": "30c4aebe"\\n}'
    """
    body = data[: -len(b"\n}")]
    return body + _CHECKSUM_LINE % zlib.crc32(body)


def verify_checksum(value: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return a JSON object without its format and checksum; an object with either must have the right checksum.

    Args:
        value: the object.
        data: the bytes that it was read from.

    Raises:
        ValueError: it was changed after it was written.
    """
    if "format" in value or "crc32" in value:
        body = data[:-_CHECKSUM_LENGTH]
        if data[-_CHECKSUM_LENGTH:] != _CHECKSUM_LINE % zlib.crc32(body):
            raise ValueError("it was changed after it was written")
    return {key: member for key, member in value.items() if key not in ("format", "crc32")}
