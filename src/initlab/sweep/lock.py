"""One launch of a sweep at a time, and one worker at a group: locks that vanish with the process that holds them."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from initlab.errors import Interrupted, UserError, tell
from initlab.reading import read_json
from initlab.records.files import door, replace

PATIENCE = 5.0  # seconds before a wait is mentioned


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold a sweep's directory while its launch runs.

    Raises UserError at once when another launch holds it; a launch that died holds nothing.
    """
    holder = directory / ".lock.json"
    with door(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{directory} is being run by {described(holder)}: {REMEDY}") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        replace(holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


REMEDY = "wait for it, stop it, or choose another directory with sweep.name=…."


def described(holder: Path) -> str:
    """Say who holds a sweep, as far as is known."""
    try:
        found = read_json(holder)
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another launch"


@contextmanager
def group_lock(path: Path, stop: Callable[[], int]) -> Iterator[None]:
    """Hold a group while it is computed; wait for whoever does already.

    A launch that dies may leave a worker behind, on a cluster for hours: two must not write the same files.

    Raises Interrupted when `stop()` returns a signal's number meanwhile.
    """
    began, told = time.monotonic(), False
    with door(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0.2)
        while True:
            try:
                lock.acquire()
                break
            except Timeout:
                if signal := stop():
                    raise Interrupted(signal) from None
                if not told and time.monotonic() - began > PATIENCE:
                    told = True
                    tell(f"initlab: waiting for the worker of another launch, which has {path.stem}.")
    try:
        yield
    finally:
        lock.release()
