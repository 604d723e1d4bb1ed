"""`process`: processes of this machine, each pinned to cores of its own or to one card; they outlive their groups."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from initlab.sweep.worker import GroupFailure, GroupResult, GroupTask, OnProgress, WorkerDied
from initlab.sweep.worker_deaths import count_oom_kills, describe_exit
from initlab.system import fork_server
from initlab.system.fork import can_fork
from initlab.system.fork_server import ForkedProcess, ProcessLimitReached, ServerEnded, keep_server
from initlab.system.parent_process import STOP_MESSAGE, send_message
from initlab.system.resources import usable_cores

STOP_TIMEOUT = 60.0  # seconds that a process has to finish its step and keep its group
WORKER_ENTRY = "initlab.sweep.executors.process_worker:serve_tasks"  # what a copy of the fork server calls
WORKER_PROGRAM = """
import sys
"" in sys.path and sys.path.remove("")
from initlab.system.parent_process import messages, own_pipes
inward, out = own_pipes()
heard = messages(inward)
from initlab.system.startup import modules_loading
with modules_loading():
    from initlab.sweep.executors.process_worker import answer
answer(heard, out)
"""


@dataclass
class WorkerProcess:
    """One process: tasks go in pickled, answers come out pickled, and its end is an answer, too."""

    cores: set[int]
    card: str | None
    threads: int
    process: "subprocess.Popen[bytes] | ForkedProcess | None" = None
    answers: "queue.Queue[GroupResult | GroupFailure | None]" = field(default_factory=queue.Queue)
    busy: bool = False
    kills: int | None = None  # processes that the system had ended for want of memory when the group began
    listener: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, unless it lives and will go on; raises NoProcess."""
        if self.process is not None and self.lives() and not has_lost_server(self.process):
            return
        self.close()
        environment = dict(os.environ)
        if self.card is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.card
        if can_fork():
            self.process = fork_process()
            parent = self.process.nursery.process.pid
        else:
            self.process = spawn_process({"OMP_NUM_THREADS": str(self.threads), **environment})
            parent = 0  # its end closes the pipe; processes in between may be the worker's parent
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.answers = queue.Queue()
        with suppress(OSError):  # where it died just now its end is on the way as an answer
            send_pickled((parent, self.cores, self.threads, environment), self.process.stdin)
        listener = threading.Thread(target=read_answers, args=(self.process.stdout, self.answers), daemon=True)
        try:
            listener.start()
        except RuntimeError as error:  # a thread counts as a process
            self.close()
            raise ProcessLimitReached(str(error)) from error
        self.listener = listener

    def lives(self) -> bool:
        """Is there a process already?"""
        return self.process is not None and self.process.poll() is None

    def submit(self, task: GroupTask) -> "ProcessJob":
        """Send a group."""
        self.start()
        self.busy = True
        self.kills = count_oom_kills()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            send_pickled(task, self.process.stdin)
        except OSError:
            # It died just now: its end is on the way as an answer.
            self.answers.put(None)
        return ProcessJob(self)

    def close(self) -> None:
        """End the process, after it has kept the group that it may have."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.busy:
            # The pipe stays open: a worker takes its end for the death of the launch, and has less time then.
            with suppress(OSError):
                send_message(STOP_MESSAGE, self.process.stdin)
        else:
            # It has nothing to keep, may still be loading what it will not need, and would take a second to leave.
            self.process.kill()
        try:
            self.process.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            self.process.stdin.close()
        if self.listener is not None:
            self.listener.join()  # it has heard the end
        self.process.stdout.close()
        self.listener = None


def send_pickled(given: Any, pipe: IO[bytes]) -> None:
    """Send a worker settings or a task, packed twice: it takes messages before it has loaded what they are made of."""
    send_message(pickle.dumps(given), pipe)


def has_lost_server(process: "subprocess.Popen[bytes] | ForkedProcess") -> bool:
    """Is it a copy whose nursery is gone, so that it leaves as soon as it sees that?"""
    return isinstance(process, ForkedProcess) and not process.nursery.alive()


def fork_process() -> ForkedProcess:
    """Return a copy of the nursery, which has loaded what a worker needs; of a new one where it died just now."""
    try:
        return fork_server.shared_server(WORKER_ENTRY).copy()
    except ServerEnded:
        return fork_server.shared_server(WORKER_ENTRY).copy()


def spawn_process(environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a process that loads everything itself."""
    # A session of its own: Ctrl-C in the terminal is for the launch, which lets its workers finish their step.
    try:
        return subprocess.Popen(
            [sys.executable, "-c", WORKER_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessLimitReached(str(error.strerror)) from error


@dataclass
class ProcessJob:
    """A group in one of the processes."""

    worker: WorkerProcess

    def cancel(self) -> bool:
        """Nothing waits."""
        return False

    def poll(self) -> GroupResult | None:
        """Look whether there is an answer."""
        try:
            answer = self.worker.answers.get_nowait()
        except queue.Empty:
            return None
        self.worker.busy = False
        if answer is None:
            assert self.worker.process is not None
            code = self.worker.process.wait()
            raise WorkerDied(describe_exit(code, self.worker.kills))
        if isinstance(answer, GroupFailure):
            answer.throw()
        assert isinstance(answer, GroupResult)
        return answer


class ProcessExecutor:
    """As many processes as there are slots; each is started when it is first needed, and again when it died."""

    def __init__(self, workers: list[WorkerProcess]):
        self.workers = workers
        self.slots = len(workers)
        self.holding = ExitStack()
        self.holding.enter_context(keep_server(in_use=True))

    def submit(self, task: GroupTask) -> ProcessJob:
        """Give a group to a process that has none; raises NoProcess where none can be started."""
        idle = [worker for worker in self.workers if not worker.busy]
        return max(idle, key=WorkerProcess.lives).submit(task)

    def close(self) -> None:
        """End all processes, but for those that are kept for the next launch."""
        # One after another, also when somebody loses patience with the first.
        with self.holding:
            for worker in reversed(self.workers):
                if _kept_workers is not None and not worker.busy:
                    _kept_workers.append(worker)
                else:
                    self.holding.callback(worker.close)


_kept_workers: list[WorkerProcess] | None = None  # idle workers between launches, where somebody asked to keep them


@contextmanager
def keep_workers() -> Iterator[None]:
    """Let processes outlive their launch for the while: each takes seconds to start, and several sweeps follow."""
    global _kept_workers
    if _kept_workers is not None:
        yield
        return
    _kept_workers = []
    with keep_server():
        try:
            yield
        finally:
            kept, _kept_workers = _kept_workers, None
            for worker in kept:
                worker.close()


@contextmanager
def prestart_workers(workers: int | str, groups: int) -> Iterator[None]:
    """Start the processes of the launch that comes: they load torch while the grid is composed and checked.

    Arguments: `workers` of the launch; `groups` that it may have at most, for more processes would have nothing to do.
    """
    with keep_workers():
        early = executor(workers, {})
        with suppress(ProcessLimitReached):  # the launch will say so
            if can_fork():
                fork_server.shared_server(WORKER_ENTRY)
            else:
                for worker in early.workers[:groups]:
                    worker.start()
        early.close()
        yield


def stop_idle_workers() -> None:
    """End the processes that were kept: whoever asked for them has no use for them."""
    while _kept_workers:
        _kept_workers.pop().close()
    fork_server.stop_server()


def take_worker(cores: set[int], card: str | None, threads: int) -> WorkerProcess:
    """Return a worker that was kept for these cores, or a new one."""
    for worker in list(_kept_workers or ()):
        if _kept_workers and (worker.cores, worker.card, worker.threads) == (cores, card, threads):
            _kept_workers.remove(worker)
            return worker
    return WorkerProcess(cores, card, threads)


def executor(
    workers: int | str,
    options: Mapping[str, Any],
    watch: Callable[[GroupTask], OnProgress] | None = None,
    stop: Callable[[], int] | None = None,
) -> ProcessExecutor:
    """Make the executor: by default one process for each card, or for each core where there is none."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cards = visible_gpus()
    count = (len(cards) or usable_cores()) if workers == "auto" else int(workers)
    share = max(len(cores) // count, 1)
    return ProcessExecutor(
        [
            take_worker(
                cores={cores[(k * share + i) % len(cores)] for i in range(share)},
                card=cards[k % len(cards)] if cards else None,
                threads=max(usable_cores() // count, 1),
            )
            for k in range(count)
        ]
    )


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES chooses among the cards that this process sees."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(k) for k in range(count)]


def read_answers(pipe: IO[bytes], answers: "queue.Queue[GroupResult | GroupFailure | None]") -> None:
    """Pass answers on until the process ends, and then None."""
    while True:
        try:
            answers.put(pickle.load(pipe))
        except (EOFError, OSError, pickle.UnpicklingError):
            answers.put(None)
            return
