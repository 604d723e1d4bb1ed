"""How a worker died: the system kills a process when memory runs out, and counts that."""

import signal
from pathlib import Path

from initlab.system.resources import cgroup_directories

VMSTAT = Path("/proc/vmstat")
OUT_OF_MEMORY = (
    "the system ended it for want of memory: say a smaller sweep.max_group or sweep.memory, or fewer "
    "hydra.launcher.workers"
)


def count_oom_kills() -> int | None:
    """Return how many processes were killed for want of memory so far, here and around; None if that is not counted.

    Counters are those of the machine, of this process's control group and of all groups around it.
    """
    files = [VMSTAT]
    files += [folder / "memory.events" for folder in cgroup_directories("")]
    files += [folder / "memory.oom_control" for folder in cgroup_directories("memory")]
    counts = [count for path in files if (count := read_oom_kills(path)) is not None]
    return sum(counts) if counts else None


def read_oom_kills(path: Path) -> int | None:
    """Return the value of `oom_kill` in a file of lines `name value`, None where there is none."""
    try:
        lines = (line.split() for line in path.read_text(errors="replace").splitlines())
        return next((int(words[1]) for words in lines if len(words) == 2 and words[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None


def describe_exit(code: int, kills: int | None) -> str:
    """Return how a process ended.

    Args:
        code: its exit code, or minus the signal that killed it.
        kills: what `count_oom_kills` returned when it began.
    """
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code}{oom_reason(kills)}" if -code == signal.SIGKILL else f"signal {-code}"


def oom_reason(kills: int | None) -> str:
    """Return that memory is why a process was killed, if that is known or possible; `kills` as in `describe_exit`."""
    now = count_oom_kills()
    if now is None:
        return f"; it may be that {OUT_OF_MEMORY}"
    return f": {OUT_OF_MEMORY}" if now > (kills or 0) else ""
