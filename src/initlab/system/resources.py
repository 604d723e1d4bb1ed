"""What this machine has to give: memory that is free, and cores that may be kept busy."""

import os
from pathlib import Path

import torch

from initlab.system.device import pick_device

GIB = 2**30
FLOPS_PER_CORE = 1e11  # floating-point operations that a core makes in a second
MEMORY_SHARE = 0.5  # of what is free: the rest is for data, records, other processes and what an estimate misses
CGROUP_ROOT = Path("/sys/fs/cgroup")  # control groups, of a container or a batch system
CGROUP_FILE = Path("/proc/self/cgroup")  # which of them this process is in


def free_bytes(device_name: str) -> float:
    """Return how much memory is free where networks train: the card's, or what the machine and its container leave."""
    device = pick_device(device_name)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(machine_free_bytes(), container_free_bytes())


def machine_free_bytes() -> float:
    """Return the machine's free memory; where the system does not tell, half of all there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return 8.0 * GIB


def container_free_bytes() -> float:
    """Return what the control groups of this process leave, infinity without a limit.

    A limit holds for all groups below it, so the smallest remainder counts. The page cache is not counted as used: the
    kernel takes it back before it refuses memory.
    """
    left = float("inf")
    for limit, used, folders in (
        ("memory.max", "memory.current", cgroup_directories("")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", cgroup_directories("memory")),
    ):
        for folder in folders:
            try:
                spare = float((folder / limit).read_text()) - float((folder / used).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            left = min(left, max(spare + reclaimable_bytes(folder), 0.0))
    return left


def reclaimable_bytes(folder: Path) -> float:
    """Return how much of a control group's memory is page cache, which is freed when the group needs memory."""
    try:
        pairs = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        found = {name: float(value) for name, value in pairs}
    except (OSError, ValueError):
        return 0.0
    prefix = "total_" if "total_inactive_file" in found else ""  # version 1 counts groups below apart
    return sum(found.get(f"{prefix}{kind}", 0.0) for kind in ("inactive_file", "active_file"))


def cgroup_directories(controller: str) -> list[Path]:
    """Return the folders of this process's control group and of all groups around it, the innermost first.

    Arguments: `controller` of version 1, "" for version 2, whose one hierarchy has them all. A container may see the
    path that its group has outside; the folders that do not exist are left out, and its own root is always there.
    """
    try:
        lines = CGROUP_FILE.read_text().splitlines()
    except OSError:
        lines = []
    own = "/"
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") and (controller or number == "0"):
            own = path
    parts = [part for part in own.split("/") if part not in ("", "..", ".")]
    inner_first = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
    # Version 2 lies beside version 1 on systems that have both.
    roots = [CGROUP_ROOT / controller] if controller else [CGROUP_ROOT, CGROUP_ROOT / "unified"]
    return [folder for root in roots for path in inner_first if (folder := root / path).is_dir()]


def usable_cores() -> int:
    """Return how many cores this process may keep busy: those it is bound to, as far as its container allows."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(bound, container_cores())), 1)


def container_cores() -> float:
    """Return how many cores' time the control groups allow, infinity without a limit: the smallest quota around."""
    allowed = float("inf")
    for names, folders in (
        (("cpu.max",), cgroup_directories("")),
        (("cpu.cfs_quota_us", "cpu.cfs_period_us"), cgroup_directories("cpu")),
    ):
        for folder in folders:
            try:
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:
                    allowed = min(allowed, int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
                continue
    return allowed
