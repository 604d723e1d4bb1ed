"""Processes of one thread each that work at the same time, as a large grid is trained."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent


class Beside:
    """As many processes as asked for; each runs `code`, reads lines of JSON and answers each with one.

    `code` finds the modules beside this one; its first answer, unasked, says that it is ready.
    """

    def __init__(self, code: str, count: int, *arguments: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        whole = f"import sys; sys.path.insert(0, {str(HOME)!r})\n{code}"
        command = [sys.executable, "-c", whole, *arguments]
        self.workers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]  # type: ignore[call-overload]
        self.ready = [self.read_answer(worker) for worker in self.workers]

    def read_answer(self, worker: subprocess.Popen) -> Any:
        """Return the next answer of a process."""
        line = worker.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit("a process of the benchmark has ended; its output stands above")
        return json.loads(line)

    def seconds(self, message: Any) -> float:
        """Send a message to all; return the seconds until the last one has answered."""
        started = time.perf_counter()
        for worker in self.workers:
            worker.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
        for worker in self.workers:
            self.read_answer(worker)
        return time.perf_counter() - started

    def close(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.stdin.close()  # type: ignore[union-attr]
            worker.wait()
            worker.stdout.close()  # type: ignore[union-attr]
