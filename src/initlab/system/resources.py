"""Free memory and usable cores of this machine, within the limits of its container."""

import os
from pathlib import Path

import torch

from initlab.system.device import pick_device

GIB = 2**30
FLOPS_PER_CORE = 1e11  # floating-point operations of a core in a second
MEMORY_SHARE = 0.5  # of free memory; the rest is for data, records, other processes and errors of the estimate
CGROUP_ROOT = Path("/sys/fs/cgroup")  # control groups, of a container or a batch system
CGROUP_FILE = Path("/proc/self/cgroup")  # which of them this process is in


def free_bytes(device_name: str) -> float:
    """Return the free memory of a device: the GPU's, or for the CPU that of the machine and its container."""
    device = pick_device(device_name)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(machine_free_bytes(), container_free_bytes())


def machine_free_bytes() -> float:
    """Return the machine's free memory; where the system does not report it, half of all memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return 8.0 * GIB


def container_free_bytes() -> float:
    """Return what the memory limits of this process's control groups leave, infinity without a limit.

    A limit holds for all groups below it, so the smallest remainder counts. The page cache does not count as used: the
    kernel frees it before it refuses memory.
    """
    free = float("inf")
    for limit, used, folders in (
        ("memory.max", "memory.current", cgroup_directories("")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", cgroup_directories("memory")),
    ):
        for folder in folders:
            try:
                spare = float((folder / limit).read_text()) - float((folder / used).read_text())
            except (OSError, ValueError):  # no such file, or "max"
                continue
            free = min(free, max(spare + reclaimable_bytes(folder), 0.0))
    return free


def reclaimable_bytes(folder: Path) -> float:
    """Return the page cache of a control group, which is freed when the group needs memory."""
    try:
        pairs = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
        counts = {name: float(value) for name, value in pairs}
    except (OSError, ValueError):
        return 0.0
    prefix = "total_" if "total_inactive_file" in counts else ""  # version 1: with the groups below
    return sum(counts.get(f"{prefix}{kind}", 0.0) for kind in ("inactive_file", "active_file"))


def cgroup_directories(controller: str) -> list[Path]:
    """Return the directories of this process's control group and of its parents, the innermost first.

    A container may see the path of its group outside: directories that do not exist are left out; its root exists.

    Args:
        controller: of version 1, as `"memory"`; "" for version 2, which has one hierarchy for all.
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
    # Systems with both versions have version 2 in a directory of version 1.
    roots = [CGROUP_ROOT / controller] if controller else [CGROUP_ROOT, CGROUP_ROOT / "unified"]
    return [folder for root in roots for path in inner_first if (folder := root / path).is_dir()]


def usable_cores() -> int:
    """Return how many cores this process may use: those it is bound to, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(cores, container_cores())), 1)


def container_cores() -> float:
    """Return the smallest CPU quota of this process's control groups in cores, infinity without one."""
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
