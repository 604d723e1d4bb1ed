"""Write files: appended and closed, or whole at once; errors of the system become one sentence for the user."""

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from initlab.errors import UserError

MIN_FREE_BYTES = 2**20  # less than any run writes
MAX_THREADS = 32  # files that are synced together: a journal commits all that wait at once
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CHANGE_DIRECTORY = "choose another directory (hydra.run.dir=…, or sweep.root=… for a sweep)"


@contextmanager
def os_errors_as_user_errors(directory: Path) -> Iterator[None]:
    """Raise an OSError of the block, which writes below `directory`, as a UserError with the remedy.

    Raises:
        UserError: the system refused to write.
    """
    try:
        yield
    except OSError as error:
        raise UserError(_describe_os_error(error, directory)) from error


def _describe_os_error(error: OSError, directory: Path) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"No space is left for {directory} ({reason}): free some and start again, or {_CHANGE_DIRECTORY}."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"{directory} cannot be written ({reason}): change its permissions, or {_CHANGE_DIRECTORY}."
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return f"{directory} cannot be written ({reason}): raise the limit (ulimit -n) and start again."
    return f"{directory} cannot be written ({reason}): {_CHANGE_DIRECTORY}."


def require_disk_space(directory: Path) -> None:
    """Refuse a directory, before anything is written, on a disk with less than `MIN_FREE_BYTES`.

    Raises:
        UserError: the disk is full.
    """
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < MIN_FREE_BYTES:  # file systems such as /proc have no size
        raise UserError(_describe_os_error(OSError(errno.ENOSPC, ""), directory))


def refuse_link(path: Path) -> None:
    """Refuse to write through a symbolic link, which may lead out of the directory that the user named.

    Raises:
        UserError: `path` is a link.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, and initlab writes only inside its own directories: remove it.")


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each synced to the disk."""
    with os_errors_as_user_errors(path):
        missing = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for each in missing:
            fsync_path(each.parent)


def fsync_path(path: Path) -> None:
    """Sync a file or a directory to the disk, so that it survives a power cut.

    Nothing happens on a file system without fsync, and for directories on Windows.

    Raises:
        OSError: the system refuses.
    """
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}:
            raise
    finally:
        os.close(descriptor)


def map_in_threads(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return `[call(item) for item in items]`, computed in threads: for calls that wait for the disk.

    A journal commits together what waits for it: 350 files took 0.04 s instead of 1.1 s on ext4. Where no thread can be
    started, this one computes all. The first exception of a call is raised when all threads have ended.

    >>> map_in_threads(str, range(3))
    ['0', '1', '2']
    """
    numbered = list(enumerate(items))
    remaining = iter(numbered)  # shared by the threads
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []

    def work() -> None:
        for number, item in remaining:
            try:
                results[number] = call(item)
            except BaseException as error:
                errors.append(error)
            if errors:
                return

    threads: list[threading.Thread] = []
    with suppress(RuntimeError):  # the limit on processes is reached
        for _ in range(min(MAX_THREADS, len(numbered)) - 1):
            thread = threading.Thread(target=work)
            thread.start()
            threads.append(thread)
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]


def append_bytes(path: Path, data: bytes, header: bytes = b"") -> bytes:
    """Append `data`, with `header` before it in an empty file, and return what was appended.

    Where the disk becomes full, the file is cut back to whole lines.

    Raises:
        OSError: the system refuses; as a UserError.
    """
    with os_errors_as_user_errors(path.parent), open(path, "ab", buffering=0) as file:
        size = file.tell()
        whole = data if size else header + data
        view = memoryview(whole)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise
    return whole


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file whole or not at all: to a temporary file, which is then renamed.

    Args:
        path: of the file.
        data: its content.
        durable: whether to sync it to the disk, which takes a few milliseconds.

    Raises:
        OSError: the system refuses; as a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os_errors_as_user_errors(path.parent):
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as file:  # never through a link
                file.write(data)
            if durable:
                fsync_path(temporary)
            os.replace(temporary, path)
            if durable:
                fsync_path(path.parent)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def truncate_file(path: Path, size: int) -> None:
    """Cut a file back to an earlier size; a file of 0 bytes is removed.

    Raises:
        UserError: the file is shorter.
    """
    refuse_link(path)
    with os_errors_as_user_errors(path.parent):
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise UserError(
                f"{path} has {present} bytes where its checkpoint has {size}: "
                f"it was changed since; delete {path.parent} and run this cell again."
            )
        if not size:
            path.unlink(missing_ok=True)
        elif present > size:
            os.truncate(path, size)


def short_path(path: Path) -> Path:
    """Return a path relative to the current directory where it is inside, else unchanged.

    >>> short_path(Path.cwd() / "outputs"), short_path(Path("/nowhere/else"))
    (PosixPath('outputs'), PosixPath('/nowhere/else'))
    """
    with suppress(OSError, ValueError):  # the current directory has been removed, or the path is outside
        return path.relative_to(Path.cwd())
    return path
