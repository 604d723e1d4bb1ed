"""What a result rests on beside its configuration: versions, machine, commit."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("initlab", "torch", "numpy", "hydra-core", "omegaconf", "pandas")


@cache
def environment() -> dict[str, Any]:
    """Return versions, platform and the working directory's git commit, found once per process.

    Torch is not imported for its version. `commit` is None outside a checkout or without git; `dirty` tells whether a
    tracked file differs from that commit.

    >>> sorted(environment())
    ['commit', 'cpus', 'dirty', 'machine', 'platform', 'python', 'versions']
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
