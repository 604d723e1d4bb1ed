"""The switch of the fast path, and the processor that decides which parts of it are taken."""

import os
import re
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")  # where Linux describes the processor


def fast_cpu_enabled() -> bool:
    """Return whether the fast path may be taken: always, unless the environment says INITLAB_FAST_CPU=0."""
    return os.environ.get("INITLAB_FAST_CPU", "1") != "0"


@cache
def amd_family() -> int:
    """Return the family of this processor where it is AMD's and torch computes by MKL, else 0."""
    if not torch.backends.mkl.is_available() or not CPUINFO.exists():
        return 0
    facts = dict(re.findall(r"^(vendor_id|cpu family)\s*:\s*(\S+)$", CPUINFO.read_text(), re.MULTILINE))
    return int(facts.get("cpu family", 0)) if facts.get("vendor_id") == "AuthenticAMD" else 0
