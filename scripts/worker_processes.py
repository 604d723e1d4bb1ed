"""Processes of one thread each that work at the same time, as a large grid is trained."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent


class WorkerProcesses:
    """As many processes as asked for; each runs `code`, reads lines of JSON and answers each with one.

    `code` finds the modules beside this one; its first answer, unasked, says that it is ready.
    """

    def __init__(self, code: str, count: int, *arguments: str):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        program = f"import sys; sys.path.insert(0, {str(HOME)!r})\n{code}"
        command = [sys.executable, "-c", program, *arguments]
        self.processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]  # type: ignore[call-overload]
        self.ready = [self.read_answer(process) for process in self.processes]

    def read_answer(self, process: subprocess.Popen) -> Any:
        """Return the next answer of a process."""
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit("a process of the benchmark has ended; its output stands above")
        return json.loads(line)

    def seconds(self, message: Any) -> float:
        """Send a message to all; return the seconds until the last one has answered."""
        started = time.perf_counter()
        for process in self.processes:
            process.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        for process in self.processes:
            self.read_answer(process)
        return time.perf_counter() - started

    def close(self) -> None:
        """End all."""
        for process in self.processes:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
