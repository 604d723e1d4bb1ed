"""`process`: processes of this machine, each pinned to cores of its own or to one GPU; each computes many groups.

Every worker is started by `subprocess` and imports torch and reads the data itself, while the grid is composed where
that is possible. Workers forked from a server that had imported both would start sooner, but save less than a second:
a sweep of 160 networks by two workers took 38.2 and 40.5 s with such a server and 40.2 and 40.1 s without (measured in
turn on two cores of an AMD EPYC of family 26, AVX-512; torch 2.14.1).
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from initlab.errors import ProcessLimitReached
from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, WorkerDied
from initlab.sweep.worker_deaths import count_oom_kills, describe_exit
from initlab.system.parent_process import STOP_MESSAGE, send_message
from initlab.system.resources import usable_cores

STOP_TIMEOUT = 60.0  # seconds in which a process finishes its step and writes its checkpoint
WORKER_PROGRAM = """
import sys
"" in sys.path and sys.path.remove("")
from initlab.system.parent_process import claim_standard_pipes, read_messages
requests, answers = claim_standard_pipes()
messages = read_messages(requests)
from initlab.system.startup import fast_imports
with fast_imports():
    from initlab.sweep.executors.process_worker import work_on_tasks
work_on_tasks(messages, answers)
"""


@dataclass
class WorkerProcess:
    """One process: tasks go in pickled, answers come out pickled; None is the answer of a process that has ended."""

    cores: set[int]
    gpu: str | None
    threads: int
    process: Any = None  # subprocess.Popen
    answers: "queue.Queue[GroupResult | GroupFailure | None]" = field(default_factory=queue.Queue)
    busy: bool = False
    oom_kills: int | None = None  # counted when the group began
    reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, unless there is one that can take a task.

        Raises:
            ProcessLimitReached: the system allows no further process or thread.
        """
        if self.is_usable():
            return
        self.close()
        environment = dict(os.environ)
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        self.process = start_process({"OMP_NUM_THREADS": str(self.threads), **environment})
        self.answers = queue.Queue()
        with suppress(OSError):  # where it has just ended, `read_answers` puts None
            send_pickled((self.cores, self.threads, environment), self.process.stdin)
        reader = threading.Thread(target=read_answers, args=(self.process.stdout, self.answers), daemon=True)
        try:
            reader.start()
        except RuntimeError as error:  # a thread counts as a process
            self.close()
            raise ProcessLimitReached(str(error)) from error
        self.reader = reader

    def is_usable(self) -> bool:
        """Return whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def submit(self, task: GroupTask) -> "ProcessJob":
        """Send a group."""
        self.start()
        self.busy = True
        self.oom_kills = count_oom_kills()
        with suppress(OSError):  # as in `start`
            send_pickled(task, self.process.stdin)
        return ProcessJob(self)

    def close(self) -> None:
        """End the process, after it has written the checkpoint of its group, if it has one."""
        if self.process is None:
            return
        if self.busy:
            # The pipe stays open: a worker takes its end for the end of the launch, and has less time then.
            with suppress(OSError):
                send_message(STOP_MESSAGE, self.process.stdin)
        else:
            # It has nothing to write, may still be importing, and would take a second to exit.
            self.process.kill()
        try:
            self.process.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            self.process.stdin.close()
        if self.reader is not None:
            self.reader.join()
        self.process.stdout.close()
        self.reader = None


def send_pickled(value: Any, pipe: IO[bytes]) -> None:
    """Send settings or a task, pickled twice: a worker reads messages before it has imported what they are made of."""
    send_message(pickle.dumps(value), pipe)


def start_process(environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a worker.

    Raises:
        ProcessLimitReached: the system allows no further process.
    """
    # In a session of its own: Ctrl-C in the terminal is for the launch, whose workers finish their step.
    try:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            stderr=subprocess.DEVNULL if sys.stderr is None else None,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessLimitReached(str(error.strerror)) from error


def read_answers(pipe: IO[bytes], answers: "queue.Queue[GroupResult | GroupFailure | None]") -> None:
    """Put answers into a queue until the process ends, and then None."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            answers.put(pickle.load(pipe))
    answers.put(None)


@dataclass
class ProcessJob:
    """A group in one of the processes."""

    worker: WorkerProcess

    def cancel(self) -> bool:
        """Return False: nothing waits in a queue."""
        return False

    def poll(self) -> GroupResult | None:
        """Return the result if there is one.

        Raises:
            WorkerDied: the process has ended.
        """
        try:
            answer = self.worker.answers.get_nowait()
        except queue.Empty:
            return None
        self.worker.busy = False
        if answer is None:
            code = self.worker.process.wait()
            raise WorkerDied(describe_exit(code, self.worker.oom_kills))
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer


class ProcessExecutor:
    """As many processes as there are slots; each starts when it is first needed, and again when it has ended."""

    def __init__(self, workers: list[WorkerProcess]):
        self.workers = workers
        self.slots = len(workers)

    def submit(self, task: GroupTask) -> ProcessJob:
        """Send a group to an idle process, one that runs if possible; raises ProcessLimitReached as `start` does."""
        idle = [worker for worker in self.workers if not worker.busy]
        return max(idle, key=WorkerProcess.is_usable).submit(task)

    def close(self) -> None:
        """End all processes, except those that are kept for the next launch."""
        # All of them, also when Ctrl-C interrupts the wait for one.
        with ExitStack() as closing:
            for worker in reversed(self.workers):
                if _kept_workers is not None and not worker.busy:
                    _kept_workers.append(worker)
                else:
                    closing.callback(worker.close)


_kept_workers: list[WorkerProcess] | None = None  # idle workers between launches; None outside `keep_workers`


@contextmanager
def keep_workers() -> Iterator[None]:
    """Keep processes from one launch to the next, for several sweeps in a row: each takes seconds to start."""
    global _kept_workers
    if _kept_workers is not None:
        yield
        return
    _kept_workers = []
    try:
        yield
    finally:
        workers, _kept_workers = _kept_workers, None
        for worker in workers:
            worker.close()


@contextmanager
def start_workers_early(workers: int | str, groups: int) -> Iterator[None]:
    """Start the workers of the next launch, which import torch while the grid is composed and checked.

    Args:
        workers: of the launch.
        groups: that the launch has at most; more processes would have nothing to do.
    """
    with keep_workers():
        executor = make_process_executor(workers, {})
        with suppress(ProcessLimitReached):  # the launch reports it
            for worker in executor.workers[:groups]:
                worker.start()
        executor.close()
        yield


def stop_idle_workers() -> None:
    """End the processes that were kept."""
    while _kept_workers:
        _kept_workers.pop().close()


def take_worker(cores: set[int], gpu: str | None, threads: int) -> WorkerProcess:
    """Return a worker that was kept for these cores, or a new one."""
    for number, worker in enumerate(_kept_workers or ()):
        if _kept_workers and (worker.cores, worker.gpu, worker.threads) == (cores, gpu, threads):
            return _kept_workers.pop(number)
    return WorkerProcess(cores, gpu, threads)


def make_process_executor(workers: int | str, options: Mapping[str, Any], **_: Any) -> ProcessExecutor:
    """Return the executor; `auto` is one process for each GPU, or for each core where there is none."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = visible_gpus()
    count = (len(gpus) or usable_cores()) if workers == "auto" else int(workers)
    share = max(len(cores) // count, 1)
    threads = max(usable_cores() // count, 1)
    processes = []
    for k in range(count):
        own_cores = {cores[(k * share + i) % len(cores)] for i in range(share)}
        processes.append(take_worker(own_cores, gpus[k % len(gpus)] if gpus else None, threads))
    return ProcessExecutor(processes)


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES chooses among the GPUs that this process sees."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return names[:count] if names else [str(k) for k in range(count)]
