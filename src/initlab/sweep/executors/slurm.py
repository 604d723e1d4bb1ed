"""`submitit`: groups as jobs of a SLURM cluster, or as processes of this machine where there is none."""

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from initlab.errors import ProcessLimitReached, UserError
from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, RemoteWorker, WorkerDied
from initlab.sweep.worker_deaths import OUT_OF_MEMORY, count_oom_kills, oom_reason
from initlab.system.imports import change_to_root
from initlab.system.parent_process import process_start_time
from initlab.system.resources import usable_cores
from initlab.system.safe_reading import error_reason

START_PROGRAM = (
    "import sys; '' in sys.path and sys.path.remove(''); "
    "from initlab.system.parent_process import run_module; run_module()"
)
MAX_QUEUED = 64  # jobs in the queue of a cluster, unless `workers` says otherwise


class SlurmTask:
    """A group in submitit's form: a call, and what to queue again when its time is up or it is preempted."""

    def __init__(self, task: GroupTask):
        self.task = task

    def __call__(self) -> GroupResult | GroupFailure:
        """Compute the group."""
        return RemoteWorker(self.task)()

    def checkpoint(self) -> Any:
        """Return the job that continues from the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmTask(self.task))


@dataclass
class SlurmJob:
    """A group in a job of submitit's.

    Attributes:
        job: submitit's.
        local: whether it is a process of this machine.
        oom_kills: counted when the group began.
    """

    job: Any
    local: bool
    oom_kills: int | None

    def cancel(self) -> bool:
        """Take the job out of the queue."""
        self.job.cancel()
        return True

    def poll(self) -> GroupResult | None:
        """Return the result if there is one.

        Raises:
            WorkerDied: the job has ended without one.
        """
        from submitit.core.utils import UncompletedJobError

        if not self.job.done():
            return None
        try:
            answer = self.job.result()
        except (UncompletedJobError, OSError, EOFError) as error:
            raise WorkerDied(f"job {self.job.job_id}: {error_reason(error)}{self.memory_reason()}") from error
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer

    def memory_reason(self) -> str:
        """Return the end of a sentence: that memory is why the job ended, if the system says so."""
        if "OUT_OF_MEM" in str(self.job.state):
            return f"; {OUT_OF_MEMORY}"
        return oom_reason(self.oom_kills) if self.local and self.oom_kills is not None else ""


class SlurmExecutor:
    """Jobs of a cluster; their logs are in `.submitit` beside the runs, in a directory for each launch."""

    def __init__(self, slots: int, options: dict[str, Any]):
        self.slots, self.options = slots, options
        self.jobs: list[Any] = []
        self.submitter: Any = None

    def submit(self, task: GroupTask) -> SlurmJob:
        """Queue a group.

        Raises:
            ProcessLimitReached: the system allows no further process.
        """
        local = runs_locally(self.options)
        if self.submitter is None:
            # A new directory of this launch: results are unpickled, so none may be there before.
            folder = task.state_dir.parent / ".submitit" / task.launch_id
            folder.mkdir(parents=True)
            self.submitter = make_submitter(str(folder), dict(self.options), local)
        with change_to_root() if local else nullcontext():  # `python -m` starts them
            try:
                job = self.submitter.submit(SlurmTask(task))
            except BlockingIOError as error:
                raise ProcessLimitReached(str(error.strerror)) from error
        self.jobs.append(job)
        return SlurmJob(job, local, count_oom_kills())

    def close(self) -> None:
        """Cancel what is still in the queue."""
        for job in self.jobs:
            if not job.done():
                # A job that has begun writes its checkpoint after a step; one that has ended by now is no loss.
                with suppress(Exception):
                    job.cancel()


def python_command(local: bool) -> str:
    """Return the command that starts a job's Python, which imports nothing from the current directory.

    Args:
        local: whether the job is a process of this machine and ends with this launch; a job of a cluster goes on.
    """
    parent = [str(os.getpid()), process_start_time(os.getpid()) or "-"] if local else ["0", "-"]
    return shlex.join([sys.executable, "-u", "-c", START_PROGRAM, *parent])


def make_submitter(folder: str, options: dict[str, Any], local: bool) -> Any:
    """Return submitit's executor.

    Args:
        folder: for logs and results.
        options: `cluster` chooses slurm or local; every other option is a parameter of submitit's jobs.
        local: as in `python_command`.

    Raises:
        UserError: submitit does not accept the options.
    """
    import submitit

    cluster = options.pop("cluster", None) or submitit.AutoExecutor.which()
    commands = {f"{cluster}_python": python_command(local)} if cluster in ("local", "slurm") else {}
    try:
        submitter = submitit.AutoExecutor(folder=folder, cluster=cluster, **commands)
        submitter.update_parameters(**{"timeout_min": 24 * 60, "name": "initlab", **options})
    except (NameError, ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"submitit does not accept hydra.launcher.options ({error_reason(error)}): "
            "use for example +hydra.launcher.options.slurm_partition=gpu."
        ) from error
    return submitter


def runs_locally(options: Mapping[str, Any]) -> bool:
    """Return whether jobs are processes of this machine: without SLURM, or where another cluster is asked for."""
    cluster = options.get("cluster")
    if not cluster:
        import submitit

        cluster = submitit.AutoExecutor.which()
    return bool(cluster != "slurm")


def make_slurm_executor(workers: int | str, options: Mapping[str, Any], **_: Any) -> SlurmExecutor:
    """Return the executor; `auto` is 64 jobs of a cluster at a time, or one for each core of this machine."""
    auto = usable_cores() if runs_locally(options) else MAX_QUEUED
    return SlurmExecutor(auto if workers == "auto" else int(workers), dict(options))
