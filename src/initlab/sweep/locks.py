"""One launch of a sweep at a time, and one worker at a group: locks that vanish with the process that holds them."""

import errno
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from initlab.errors import Interrupted, UserError
from initlab.system.files import make_directory, os_errors_as_user_errors, write_atomically
from initlab.system.safe_reading import abbreviate, read_json
from initlab.system.streams import print_stderr

try:
    import fcntl
except ImportError:  # Windows, where every file system locks
    fcntl = None  # type: ignore[assignment]

WAIT_NOTICE_SECONDS = 5.0  # seconds before a wait is mentioned


# What a file system answers that has no locks: some of NFS, FUSE, Lustre and container mounts.
UNSUPPORTED_ERRNOS = {
    getattr(errno, name)
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EPERM", "EPROTONOSUPPORT", "EREMOTEIO")
    if hasattr(errno, name)
}


def missing_locks_reason(directory: Path) -> str:
    """Return why the file system of a directory locks no files, or an empty text where it does.

    >>> missing_locks_reason(Path())
    ''
    """
    if fcntl is None:
        return ""
    with tempfile.TemporaryFile(dir=directory) as file:  # of our own: what others lock is not touched
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error) if error.errno in UNSUPPORTED_ERRNOS else ""
    return ""


@contextmanager
def sweep_lock(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory while its launch runs.

    Raises UserError at once when another launch holds it; a launch that died holds nothing. On a file system without
    locks another launch goes unnoticed, which is said once.
    """
    holder = directory / ".lock.json"
    with os_errors_as_user_errors(directory):
        make_directory(directory)
        if reason := missing_locks_reason(directory):
            last = f" The last one noted there is {describe_holder(holder)}." if holder.exists() else ""
            print_stderr(
                f"initlab: the file system of {directory} has no locks ({reason}): the sweep is run, and a launch "
                f"beside it would not be noticed.{last}"
            )
        lock = FileLock(directory / ".lock", timeout=0)
        try:
            if not reason:
                lock.acquire()
        except Timeout:
            raise UserError(f"{directory} is being run by {describe_holder(holder)}: {LOCKED_REMEDY}") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_atomically(
            holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


LOCKED_REMEDY = "wait for it, stop it, or choose another directory with sweep.name=…."


def describe_holder(holder: Path) -> str:
    """Say who holds a sweep, as far as is known."""
    try:
        found = read_json(holder)
        return f"process {abbreviate(found['pid'])} on {abbreviate(found['host'])} since {abbreviate(found['since'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another launch"


@contextmanager
def group_lock(path: Path, stop: Callable[[], int]) -> Iterator[None]:
    """Hold a group while it is computed; wait for whoever does already.

    A launch that dies may leave a worker behind, on a cluster for hours: two must not write the same files.

    Where the file system has no locks, nothing is waited for.

    Raises Interrupted when `stop()` returns a signal's number meanwhile.
    """
    began, told = time.monotonic(), False
    with os_errors_as_user_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0.2)
        while not missing_locks_reason(path.parent):
            try:
                lock.acquire()
                break
            except Timeout:
                if signal := stop():
                    raise Interrupted(signal) from None
                if not told and time.monotonic() - began > WAIT_NOTICE_SECONDS:
                    told = True
                    print_stderr(f"initlab: waiting for the worker of another launch, which has {path.stem}.")
    try:
        yield
    finally:
        lock.release()
