"""What a result rests on beside its configuration: versions, machine, commit."""

import os
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from initlab.records.commit import find_checkout, head_commit, is_dirty

_PACKAGES = ("initlab", "torch", "numpy", "hydra-core", "omegaconf", "pandas")


@cache
def describe_environment() -> dict[str, Any]:
    """Return versions, platform and the working directory's git commit, computed once per process.

    Torch is not imported for its version. `commit` is None outside a checkout; `dirty` is whether a tracked file
    differs from that commit, None without git. Nothing that the repository's configuration names is run.

    >>> sorted(describe_environment())
    ['commit', 'cpus', 'dirty', 'machine', 'platform', 'python', 'versions']
    """
    checkout = find_checkout()
    commit = head_commit(checkout) if checkout else None
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "commit": commit,
        "dirty": is_dirty(checkout, commit) if checkout and commit else None,
    }
