"""How bytes reach the disk: appended and closed, or whole and at once; what can fail is said in one sentence here."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from initlab.errors import UserError

ENOUGH = 2**20  # bytes: less than any run leaves behind
_ELSEWHERE = "choose another directory (hydra.run.dir=…, or sweep.root=… for a sweep)"


@contextmanager
def door(directory: Path) -> Iterator[None]:
    """Turn an OSError of whatever writes below `directory` into a UserError that names the directory and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(_sentence(error, directory)) from error


def _sentence(error: OSError, directory: Path) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"No space is left for {directory} ({reason}): free some and start again, or {_ELSEWHERE}."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{directory} cannot be written ({reason}): change its permissions, or {_ELSEWHERE}."
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{directory} cannot be written ({reason}): raise the limit (ulimit -n) and start again."
    return f"{directory} cannot be written ({reason}): {_ELSEWHERE}."


def require_room(directory: Path) -> None:
    """Raise UserError when the disk that would hold a directory is as good as full, before anything is written."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < ENOUGH:  # /proc and its like have no size at all
        with door(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_link(path: Path) -> None:
    """Raise UserError when a symbolic link stands where initlab writes: it would write to another place.

    A directory that the user names may be a link; what lies inside it may not.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, and initlab writes only inside its own directories: remove it.")


def append(path: Path, data: bytes, header: bytes = b"") -> None:
    """Append `data`, after `header` in an empty file; what fails halfway is cut off again: a file keeps whole lines."""
    with door(path.parent), open(path, "ab", buffering=0) as file:
        size = file.tell()
        view = memoryview(data if size else header + data)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside it first, then renamed over it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with door(path.parent):
        try:
            beside.unlink(missing_ok=True)
            with open(beside, "xb") as file:  # never through a link that stands there
                file.write(data)
            os.replace(beside, path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise


def cut(path: Path, size: int) -> None:
    """Cut a file back to an earlier size; at 0 bytes it goes.

    Raises:
        UserError: the file is shorter than that: what was to be kept is lost.
    """
    refuse_link(path)
    with door(path.parent):
        found = path.stat().st_size if path.exists() else 0
        if found < size:
            raise UserError(
                f"{path} has {found} bytes where its checkpoint knows {size}: "
                f"it was changed since; delete {path.parent} and run this cell again."
            )
        if not size:
            path.unlink(missing_ok=True)
        elif found > size:
            os.truncate(path, size)
