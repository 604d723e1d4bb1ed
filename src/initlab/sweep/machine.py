"""What this machine has to give: memory that is free, and cores that may be kept busy."""

import os
from pathlib import Path

import torch

from initlab.experiment.build import pick_device

GIB = 2**30
SHARE = 0.5  # of what is free: the rest is for data, records, other processes and what an estimate misses
GROUPS = Path("/sys/fs/cgroup")  # control groups, of a container or a batch system


def free_bytes(device_name: str) -> float:
    """Return how much memory is free where networks train: the card's, or what the machine and its container leave."""
    device = pick_device(device_name)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(machine_bytes(), container_bytes())


def machine_bytes() -> float:
    """Return the machine's free memory; where the system does not tell, half of all there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return 8.0 * GIB


def container_bytes() -> float:
    """Return what a control group of this process leaves, infinity without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return float((GROUPS / limit).read_text()) - float((GROUPS / used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return float("inf")


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those it is bound to, as far as its container allows."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(bound, container_cores())), 1)


def container_cores() -> float:
    """Return how many cores' time a control group allows, infinity without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((GROUPS / name).read_text() for name in files).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return float("inf")
