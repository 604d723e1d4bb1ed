"""One launch of a sweep at a time, and one worker at a group: locks that vanish with the process that holds them."""

import errno
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from initlab.errors import Interrupted, UserError
from initlab.system.files import make_directory, os_errors_as_user_errors, refuse_link, write_atomically
from initlab.system.safe_reading import abbreviate, read_json
from initlab.system.streams import print_stderr

try:
    import fcntl
except ImportError:  # Windows, where every file system locks
    fcntl = None  # type: ignore[assignment]

WAIT_NOTICE_SECONDS = 5.0  # before a wait is mentioned
SWEEP_FILES = (".groups", "plan.json", "multirun.yaml", ".lock")
HYDRA_FILES = (".hydra", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml")
# What a file system without locks answers: some of NFS, FUSE, Lustre and container mounts.
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
    with tempfile.TemporaryFile(dir=directory) as file:  # not a file that others may have locked
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error) if error.errno in UNSUPPORTED_ERRNOS else ""
    return ""


@contextmanager
def sweep_lock(directory: Path, run_directories: Sequence[Path] = ()) -> Iterator[None]:
    """Hold a sweep's directory while its launch runs.

    A launch that was killed holds nothing. On a file system without locks another launch goes unnoticed, which is
    printed once.

    Args:
        directory: of the sweep; it is made where it does not exist.
        run_directories: of its cells. Symbolic links in them and in the sweep's own files are refused: runs would be
            written to another place.

    Raises:
        UserError: another launch holds the directory, or it has a link.
    """
    holder = directory / ".lock.json"
    with os_errors_as_user_errors(directory):
        make_directory(directory)
        lock = FileLock(directory / ".lock", timeout=0)
        if reason := missing_locks_reason(directory):
            last = f" The last one noted there is {describe_holder(holder)}." if holder.exists() else ""
            print_stderr(
                f"initlab: the file system of {directory} has no locks ({reason}): the sweep is run, and a launch "
                f"beside it would not be noticed.{last}"
            )
        else:
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"{directory} is being run by {describe_holder(holder)}: "
                    "wait for it, stop it, or choose another directory with sweep.name=…."
                ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_atomically(holder, json.dumps(owner).encode())
        for place in (*(directory / name for name in SWEEP_FILES), *run_directories):
            for path in (place, *place.parents):
                if directory in path.parents:
                    refuse_link(path)
        for path in (run / name for run in run_directories for name in HYDRA_FILES):
            refuse_link(path)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def describe_holder(holder: Path) -> str:
    """Return which process holds a sweep, as far as its file records it."""
    try:
        owner = read_json(holder)
        return f"process {abbreviate(owner['pid'])} on {abbreviate(owner['host'])} since {abbreviate(owner['since'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another launch"


@contextmanager
def group_lock(path: Path, stop: Callable[[], int]) -> Iterator[None]:
    """Hold a group while it is computed; wait for another process that holds it.

    A launch that was killed may leave a worker behind, on a cluster for hours: two must not write the same files.
    Where the file system has no locks, nothing is waited for.

    Args:
        path: of the lock.
        stop: returns a signal's number once one was received, else 0.

    Raises:
        Interrupted: a signal was received while waiting.
    """
    began, announced = time.monotonic(), False
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
                if not announced and time.monotonic() - began > WAIT_NOTICE_SECONDS:
                    announced = True
                    print_stderr(f"initlab: waiting for the worker of another launch, which has {path.stem}.")
    try:
        yield
    finally:
        lock.release()
