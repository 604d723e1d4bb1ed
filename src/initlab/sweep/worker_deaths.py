"""How a worker died: the system ends one that takes memory which is not there, and counts that."""

import signal
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path(
    "/proc/self/cgroup"
)  # lines `number:controllers:path`, of version 2 with neither number nor controllers
VMSTAT = Path("/proc/vmstat")
OUT_OF_MEMORY = (
    "the system ended it for want of memory: say a smaller sweep.max_group or sweep.memory, or fewer "
    "hydra.launcher.workers"
)


def count_oom_kills() -> int | None:
    """Return how many processes were ended for want of memory so far, here and around; None if that is not counted."""
    counts = [count for path in oom_counter_files() if (count := read_oom_kills(path)) is not None]
    return sum(counts) if counts else None


def oom_counter_files() -> list[Path]:
    """Return the files that count them: of this process's control group, of the container's, of the machine."""
    found = [VMSTAT, CGROUP_ROOT / "memory.events", CGROUP_ROOT / "memory" / "memory.oom_control"]
    try:
        lines = OWN_CGROUP.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, place = (*line.split(":", 2), "", "")[:3]
        place = place.strip("/")
        if not controllers:
            found.append(CGROUP_ROOT / place / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(CGROUP_ROOT / "memory" / place / "memory.oom_control")
    return list(dict.fromkeys(found))


def read_oom_kills(path: Path) -> int | None:
    """Return what a file says of `oom_kill`."""
    try:
        words = (line.split() for line in path.read_text(errors="replace").splitlines())
        return next((int(found[1]) for found in words if len(found) == 2 and found[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def describe_exit(code: int, kills: int | None) -> str:
    """Say how a process ended; `kills` is what `count_oom_kills` said when it began."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code}{oom_reason(kills)}" if -code == signal.SIGKILL else f"signal {-code}"


def oom_reason(kills: int | None) -> str:
    """Say that memory is why a process was killed, if that is known or may be."""
    now = count_oom_kills()
    if now is None:
        return f"; it may be that {OUT_OF_MEMORY}"
    return f": {OUT_OF_MEMORY}" if now > (kills or 0) else ""
