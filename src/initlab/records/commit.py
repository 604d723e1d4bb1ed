"""The commit of the working directory, found without running anything that its repository names.

A repository's configuration may name programs (`core.fsmonitor`, filters, hooks, diff drivers) that git runs even for
`git status`. The commit is therefore read from the repository's files. Whether tracked files differ from it is asked of
git, with an empty configuration in a directory of our own.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COMMIT_PATTERN = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
REF_PATTERN = re.compile(r"refs/(?!.*\.\.)[^\x00-\x20\\:?*\[^~]+")  # no blank, no `..`: it stays inside the repository
MAX_LINE_BYTES = 4096  # bytes of the longest line that is read
MAX_LINES = 2**20  # of `packed-refs`
MAX_SYMBOLIC_REFS = 5  # symbolic references from HEAD to a commit
GIT_TIMEOUT = 10.0  # seconds that git has


@dataclass(frozen=True)
class Checkout:
    """A working tree, the directory of its HEAD and index, and the one of its references and objects."""

    tree: Path
    own: Path
    shared: Path


def find_checkout(start: Path | None = None) -> Checkout | None:
    """Return the checkout that holds a directory, by default the current one: a clone, submodule or linked worktree."""
    try:
        start = start or Path.cwd()
    except OSError:  # it is gone
        return None
    for tree in (start, *start.parents):
        place = tree / ".git"
        if link := read_first_line(place):  # of a submodule or a linked worktree
            place = tree / link.removeprefix("gitdir: ")
        if read_first_line(place / "HEAD"):
            return Checkout(tree, place, place / (read_first_line(place / "commondir") or ""))
    return None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the first lines of a regular file, each cut to a bound; nothing of what is none or cannot be read."""
    with suppress(OSError, ValueError):
        if path.is_file():
            with open(path, encoding="utf-8", errors="replace") as file:
                for _ in range(MAX_LINES):
                    if not (line := file.readline(MAX_LINE_BYTES)):
                        return
                    yield line.rstrip("\n")


def read_first_line(path: Path) -> str:
    """Return the first line of a regular file, empty where there is none."""
    return next(read_lines(path), "")


def head_commit(checkout: Checkout) -> str | None:
    """Return the commit that HEAD names; None before the first one, or where the repository keeps it otherwise."""
    said = read_first_line(checkout.own / "HEAD")
    for _ in range(MAX_SYMBOLIC_REFS):
        if COMMIT_PATTERN.fullmatch(said):
            return said
        name = said.removeprefix("ref: ")
        if name == said or not REF_PATTERN.fullmatch(name):
            return None
        said = (
            read_first_line(checkout.own / name)
            or read_first_line(checkout.shared / name)
            or packed_ref(checkout, name)
        )
    return None


def packed_ref(checkout: Checkout, name: str) -> str:
    """Return what `packed-refs` says of a reference."""
    for line in read_lines(checkout.shared / "packed-refs"):
        commit, _, found = line.partition(" ")
        if found == name:
            return commit
    return ""


def is_dirty(checkout: Checkout, commit: str) -> bool | None:
    """Does a tracked file differ from the commit? None where git is missing or cannot say.

    No filter is applied: a file that one changes (Git LFS) differs once it was touched. Submodules are left out.
    """
    git = shutil.which("git")
    if git is None or not os.path.isabs(git):  # one of the current directory, which Windows would take
        return None
    try:
        with tempfile.TemporaryDirectory(prefix="initlab-") as place:
            done = run_git_status(git, checkout, commit, Path(place))
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def run_git_status(git: str, checkout: Checkout, commit: str, place: Path) -> "subprocess.CompletedProcess[bytes]":
    """Run `git status` with a repository of its own, made in an empty directory, that has the checkout's objects."""
    for name in ("objects", "refs"):
        (place / name).mkdir()
    (place / "HEAD").write_text(f"{commit}\n")
    (place / "config").write_text(git_config(commit))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "GIT_DIR": str(place),
        "GIT_WORK_TREE": str(checkout.tree.absolute()),
        "GIT_INDEX_FILE": str((checkout.own / "index").absolute()),
        "GIT_OBJECT_DIRECTORY": str((checkout.shared / "objects").absolute()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",  # the index is not written
        "GIT_NO_LAZY_FETCH": "1",
    }
    return subprocess.run(
        [git, "--no-pager", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"],
        cwd=checkout.tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_TIMEOUT,
        check=False,
    )


def git_config(commit: str) -> str:
    """Return all that git reads of a configuration: what Windows needs, and the length of commits."""
    longer = len(commit) == 64
    modes = str(os.name != "nt").lower()
    text = f"[core]\nrepositoryformatversion = {int(longer)}\nfsmonitor = false\nattributesFile = {os.devnull}\n"
    text += f"fileMode = {modes}\nsymlinks = {modes}\n"
    return text + ("[extensions]\nobjectFormat = sha256\n" if longer else "")
