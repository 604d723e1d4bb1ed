"""`submitit`: groups as jobs of a SLURM cluster, or as processes of this machine where there is none."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from initlab.errors import UserError
from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, OnProgress, RemoteWorker, WorkerDied
from initlab.sweep.worker_deaths import OUT_OF_MEMORY, count_oom_kills, oom_reason
from initlab.system.fork_server import ProcessLimitReached
from initlab.system.imports import change_to_root
from initlab.system.parent_process import process_start_time
from initlab.system.resources import usable_cores

START_PROGRAM = (
    "import sys; '' in sys.path and sys.path.remove(''); "
    "from initlab.system.parent_process import run_module; run_module()"
)
MAX_QUEUED = 64  # jobs in the queue of a cluster, unless `workers` says otherwise


class SlurmTask:
    """A group as submitit wants it: a call, and what to queue again when its time is up or it is preempted."""

    def __init__(self, task: GroupTask):
        self.task = task

    def __call__(self) -> GroupResult | GroupFailure:
        """Do the work."""
        return RemoteWorker(self.task)()

    def checkpoint(self) -> Any:
        """Go on in a new job, from the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmTask(self.task))


@dataclass
class SlurmJob:
    """A group in a job; `here`, on this machine, with the count of processes that died for want of memory before it."""

    job: Any
    here: bool
    kills: int | None

    def cancel(self) -> bool:
        """Take the job out of the queue."""
        self.job.cancel()
        return True

    def poll(self) -> GroupResult | None:
        """Look whether the job is done."""
        from submitit.core.utils import UncompletedJobError

        if not self.job.done():
            return None
        try:
            answer = self.job.result()
        except (UncompletedJobError, OSError, EOFError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkerDied(f"job {self.job.job_id}: {why}{self.memory()}") from error
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer

    def memory(self) -> str:
        """Say that memory is why the job died, if the system says so."""
        if "OUT_OF_MEM" in str(self.job.state):
            return f"; {OUT_OF_MEMORY}"
        return oom_reason(self.kills) if self.here and self.kills is not None else ""


class SlurmExecutor:
    """Jobs of a cluster; their logs lie in `.submitit` beside the runs, in a directory for each launch."""

    def __init__(self, slots: int, options: dict[str, Any]):
        self.slots, self.options = slots, options
        self.jobs: list[Any] = []
        self.submitter: Any = None

    def submit(self, task: GroupTask) -> SlurmJob:
        """Queue a group; raises NoProcess."""
        here = runs_locally(self.options)
        if self.submitter is None:
            # A directory that this launch makes: results are unpickled, so none may lie there before.
            folder = task.state_dir.parent / ".submitit" / task.launch_id
            folder.mkdir(parents=True)
            self.submitter = make_submitter(str(folder), dict(self.options), here)
        with change_to_root() if here else nullcontext():  # `python -m`, which starts them
            try:
                job = self.submitter.submit(SlurmTask(task))
            except BlockingIOError as error:
                raise ProcessLimitReached(str(error.strerror)) from error
        self.jobs.append(job)
        return SlurmJob(job, here, count_oom_kills())

    def close(self) -> None:
        """Take back what is still in the queue."""
        for job in self.jobs:
            if not job.done():
                # What has begun keeps itself within a step; a job that is gone by now is no loss.
                with suppress(Exception):
                    job.cancel()


def python_command(here: bool) -> str:
    """Return the command that starts a job's Python.

    Jobs import nothing from the current directory; those `here` on this machine end with this launch, those of a
    cluster go on without it.
    """
    launch = [str(os.getpid()), process_start_time(os.getpid()) or "-"] if here else ["0", "-"]
    return shlex.join([sys.executable, "-u", "-c", START_PROGRAM, *launch])


def make_submitter(folder: str, options: dict[str, Any], here: bool) -> Any:
    """Return submitit's executor; `cluster` chooses slurm or local, every other option is a parameter of its jobs."""
    import submitit

    cluster = options.pop("cluster", None) or submitit.AutoExecutor.which()
    starts = {f"{cluster}_python": python_command(here)} if cluster in ("local", "slurm") else {}
    try:
        submitter = submitit.AutoExecutor(folder=folder, cluster=cluster, **starts)
        submitter.update_parameters(**{"timeout_min": 24 * 60, "name": "initlab", **options})
    except (NameError, ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"submitit does not accept hydra.launcher.options ({str(error).strip().splitlines()[0]}): "
            "say for example +hydra.launcher.options.slurm_partition=gpu."
        ) from error
    return submitter


def runs_locally(options: Mapping[str, Any]) -> bool:
    """Will its jobs be processes of this machine: is there no SLURM, or none asked for?"""
    if options.get("cluster"):
        return bool(options["cluster"] != "slurm")
    import submitit

    return bool(submitit.AutoExecutor.which() != "slurm")


def executor(
    workers: int | str, options: Mapping[str, Any], watch: Callable[[GroupTask], OnProgress], stop: Callable[[], int]
) -> SlurmExecutor:
    """Make the executor; by default 64 jobs of a cluster at a time, on this machine one for each core."""
    auto = usable_cores() if runs_locally(options) else MAX_QUEUED
    return SlurmExecutor(auto if workers == "auto" else int(workers), dict(options))
