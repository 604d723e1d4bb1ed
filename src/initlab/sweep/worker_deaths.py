"""How a worker died: the system ends one that takes memory which is not there, and counts that."""

import signal
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines `number:controllers:path`, of version 2 with neither number nor controllers
MACHINE = Path("/proc/vmstat")
FOR_WANT_OF_MEMORY = (
    "the system ended it for want of memory: say a smaller sweep.max_group or sweep.memory, or fewer "
    "hydra.launcher.workers"
)


def memory_kills() -> int | None:
    """Return how many processes were ended for want of memory so far, here and around; None if that is not counted."""
    counts = [count for path in counters() if (count := counted(path)) is not None]
    return sum(counts) if counts else None


def counters() -> list[Path]:
    """Return the files that count them: of this process's control group, of the container's, of the machine."""
    found = [MACHINE, GROUPS / "memory.events", GROUPS / "memory" / "memory.oom_control"]
    try:
        lines = OWN.read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, place = (*line.split(":", 2), "", "")[:3]
        place = place.strip("/")
        if not controllers:
            found.append(GROUPS / place / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(GROUPS / "memory" / place / "memory.oom_control")
    return list(dict.fromkeys(found))


def counted(path: Path) -> int | None:
    """Return what a file says of `oom_kill`."""
    try:
        words = (line.split() for line in path.read_text(errors="replace").splitlines())
        return next((int(found[1]) for found in words if len(found) == 2 and found[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def described(code: int, kills: int | None) -> str:
    """Say how a process ended; `kills` is what `memory_kills` said when it began."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code}{because(kills)}" if -code == signal.SIGKILL else f"signal {-code}"


def because(kills: int | None) -> str:
    """Say that memory is why a process was killed, if that is known or may be."""
    now = memory_kills()
    if now is None:
        return f"; it may be that {FOR_WANT_OF_MEMORY}"
    return f": {FOR_WANT_OF_MEMORY}" if now > (kills or 0) else ""
