"""The commit of the working directory, read without running anything that its repository names.

A repository's configuration may name programs (`core.fsmonitor`, filters, hooks, diff drivers) that git runs even for
`git status`. The commit is therefore read from the repository's files. Whether tracked files differ from it is asked of
git, with an empty configuration in a new directory.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

COMMIT_PATTERN = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
REF_PATTERN = re.compile(r"refs/(?!.*\.\.)[^\x00-\x20\\:?*\[^~]+")  # no blank, no `..`
MAX_LINE_BYTES = 4096  # a longer line is cut
MAX_LINES = 2**20  # of `packed-refs`
MAX_SYMBOLIC_REFS = 5  # from HEAD to a commit
GIT_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Checkout:
    """A working tree, the directory of its HEAD and index, and the directory of its references and objects."""

    tree: Path
    head_directory: Path
    shared_directory: Path


def find_checkout(start: Path | None = None) -> Checkout | None:
    """Return the checkout that holds a directory, by default the current one: a clone, submodule or linked worktree.

    None outside a checkout, or where the current directory was removed.
    """
    try:
        start = start or Path.cwd()
    except OSError:
        return None
    for tree in (start, *start.parents):
        git = tree / ".git"
        if link := read_first_line(git):  # of a submodule or a linked worktree
            git = tree / link.removeprefix("gitdir: ")
        if read_first_line(git / "HEAD"):
            return Checkout(tree, git, git / (read_first_line(git / "commondir") or ""))
    return None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the first lines of a regular file, each cut to a bound; none of other files and of unreadable ones."""
    with suppress(OSError, ValueError):
        if path.is_file():
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in islice(iter(lambda: file.readline(MAX_LINE_BYTES), ""), MAX_LINES):
                    yield line.rstrip("\n")


def read_first_line(path: Path) -> str:
    """Return the first line of a regular file, "" where there is none."""
    return next(read_lines(path), "")


def head_commit(checkout: Checkout) -> str | None:
    """Return the commit that HEAD names; None before the first one, or where the repository stores it otherwise."""
    value = read_first_line(checkout.head_directory / "HEAD")
    for _ in range(MAX_SYMBOLIC_REFS):
        if COMMIT_PATTERN.fullmatch(value):
            return value
        ref = value.removeprefix("ref: ")
        if ref == value or not REF_PATTERN.fullmatch(ref):
            return None
        loose = map(read_first_line, (checkout.head_directory / ref, checkout.shared_directory / ref))
        packed = (line.partition(" ") for line in read_lines(checkout.shared_directory / "packed-refs"))
        value = next(filter(None, loose), "") or next((commit for commit, _, name in packed if name == ref), "")
    return None


def is_dirty(checkout: Checkout, commit: str) -> bool | None:
    """Return whether a tracked file differs from the commit; None where git is missing or fails.

    No filter is applied: a file that a filter changes (Git LFS) differs once it was touched. Submodules are left out.
    """
    git = shutil.which("git")
    if git is None or not os.path.isabs(git):  # Windows would take one of the current directory
        return None
    with suppress(OSError, subprocess.SubprocessError), tempfile.TemporaryDirectory(prefix="initlab-") as place:
        return bool(run_git_status(git, checkout, commit, Path(place)).strip())
    return None


def run_git_status(git: str, checkout: Checkout, commit: str, place: Path) -> bytes:
    """Return the output of `git status` in a new repository in an empty directory, with the checkout's objects."""
    for name in ("objects", "refs"):
        (place / name).mkdir()
    (place / "HEAD").write_text(f"{commit}\n")
    (place / "config").write_text(git_config(commit))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "GIT_DIR": str(place),
        "GIT_WORK_TREE": str(checkout.tree.absolute()),
        "GIT_INDEX_FILE": str((checkout.head_directory / "index").absolute()),
        "GIT_OBJECT_DIRECTORY": str((checkout.shared_directory / "objects").absolute()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",  # the index is not written
        "GIT_NO_LAZY_FETCH": "1",
    }
    command = [git, "--no-pager", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"]
    quiet: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.check_output(command, cwd=checkout.tree, env=environment, timeout=GIT_TIMEOUT, **quiet)


def git_config(commit: str) -> str:
    """Return the whole configuration that git reads: what Windows needs, and the length of commits."""
    is_sha256, modes = len(commit) == 64, str(os.name != "nt").lower()
    text = f"[core]\nrepositoryformatversion = {int(is_sha256)}\nfsmonitor = false\nattributesFile = {os.devnull}\n"
    text += f"fileMode = {modes}\nsymlinks = {modes}\n"
    return text + ("[extensions]\nobjectFormat = sha256\n" if is_sha256 else "")
