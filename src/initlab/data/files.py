"""Where data files are searched, and how missing ones are downloaded."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from initlab.errors import UserError

SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


def cache_directory() -> Path:
    """Return the per-user cache directory for data, without creating it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "initlab"


def search_path(root: str | os.PathLike | None) -> tuple[Path, ...]:
    """Return the directories to search, in order: `data.root`, $INITLAB_DATA, Debian's, the per-user cache."""
    named = [Path(str(place)).expanduser().absolute() for place in (root, os.environ.get("INITLAB_DATA")) if place]
    return (*named, SYSTEM_FASHION, cache_directory())


def find_files(directories: tuple[Path, ...], layouts: tuple[str, ...], names: tuple[str, ...]) -> list[Path] | None:
    """Return the paths of all `names` (or `name.gz`) in the first place that holds every one of them.

    Args:
        directories: `search_path(root)`.
        layouts: sub-directories to look into, `""` for the directory itself.
        names: file names without `.gz`.
    """
    for place in (directory / layout for directory in directories for layout in layouts):
        forms = [(place / name, place / f"{name}.gz") for name in names]
        paths = [path if path.exists() else zipped for path, zipped in forms]
        if all(path.exists() for path in paths):
            return paths
    return None


def download(name: str, directories: tuple[Path, ...], fetch: Callable[[str], object]) -> None:
    """Call `fetch(directory)` to write files below a temporary directory, then move them to their place.

    They go below `data.root` where it is given, else below $INITLAB_DATA, else the per-user cache. So a broken download
    leaves no file, two processes do not write one file, and a link to a system file is replaced, never written through.

    Args:
        name: the data set, for messages.
        directories: `search_path(root)`.
        fetch: downloads into the directory it is given.

    Raises:
        UserError: the place cannot be written, or the download fails.
    """
    place = next(directory for directory in directories if directory != SYSTEM_FASHION)
    try:
        place.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{name}-", dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"data={name} cannot be downloaded to {place} ({error.strerror}): name a writable directory by data.root."
        ) from error
    with temporary as fresh:
        try:
            with _socket_timeout(30.0):
                fetch(fresh)
        except (OSError, RuntimeError, HTTPException) as error:
            searched = ", ".join(map(str, directories))
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"data={name} is not here (searched {searched}) and its download failed ({reason}): connect to the "
                "network, name the directory that holds the files by data.root, or take data=fashion_mini."
            ) from error
        for source in (path for path in Path(fresh).rglob("*") if path.is_file()):
            target = place / source.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torchvision opens its connections without a timeout: behind a silent firewall it would wait for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
