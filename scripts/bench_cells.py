"""What a grid costs where nothing is trained to speak of, and what a thousand networks hold on to.

    python scripts/bench.py cells

First 256 cells of one update each, by the command line, from the start of the process to its end: composition, checks,
Hydra's own files and callbacks, run directories and the table; beside it a few cells by Hydra's basic launcher. Then
1,000 networks in groups of 50, all in one process: its resident memory and open files while they train, and its memory
while the sweep's own table and pictures are written in the end, which loads what draws them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[1] / "train.py"
TINY = ("depth=1", "width=4", "data=gaussian", "data.train_size=300", "data.test_size=50", "train.batch_size=50")
SECONDS_BAR, GROWTH_BAR, FILES_BAR = 15.0, 1.05, 300


def launch(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(TRAIN), "-m", *TINY, f"sweep.root={folder}", "sweep.name=cells", *overrides]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: subprocess.Popen, folder: Path, cells: int) -> None:
    said, _ = process.communicate()
    if process.returncode or len(list((folder / "cells").glob("*/summary.json"))) != cells:
        raise SystemExit(f"the sweep failed:\n{said}")


def seconds(cells: int, *overrides: str) -> tuple[float, float]:
    """Run so many cells of one update and return seconds by the clock and of all cores' work."""
    with tempfile.TemporaryDirectory() as name:
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = launch(Path(name), f"seed=range({cells})", "train.steps=1", "log.histograms=0", *overrides)
        wait_for(process, Path(name), cells)
        clock, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
        return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def memory_over_time(networks: int, group: int) -> list[tuple[int, float, int]]:
    """Run so many networks and return how many were done, MiB and open files, every tenth of a second."""
    looks = []
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = (f"seed=range({networks})", "train.steps=60", f"sweep.max_group={group}")
        process = launch(folder, *many, "hydra.launcher.executor=inline")
        while process.poll() is None:
            place = Path("/proc") / str(process.pid)
            try:
                memory = int((place / "statm").read_text().split()[1]) * page
                files = len(os.listdir(place / "fd"))
            except OSError:
                break
            looks.append((len(list(folder.glob("cells/*/summary.json"))), memory, files))
            time.sleep(0.1)
        wait_for(process, folder, networks)
    return looks


def arguments(sub: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sub.add_argument("--cells", type=int, default=256)
    sub.add_argument("--basic", type=int, default=16, help="cells by Hydra's basic launcher; 0: none")
    sub.add_argument("--networks", type=int, default=1000)
    sub.add_argument("--group", type=int, default=50)
    sub.add_argument("--rounds", type=int, default=3)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print as it goes."""
    found: dict[str, Any] = {"seconds": [seconds(given.cells) for _ in range(given.rounds)]}
    clock, cores = (sorted(column) for column in zip(*found["seconds"], strict=True))
    middle = clock[len(clock) // 2]
    met = "met" if middle < SECONDS_BAR else "MISSED"
    print(f"{given.cells} cells: {middle:.1f} s ({clock[0]:.1f}–{clock[-1]:.1f}), bar {SECONDS_BAR}: {met}", flush=True)
    print(f"  all cores' work {cores[len(cores) // 2]:.1f} s ({cores[0]:.1f}–{cores[-1]:.1f})", flush=True)
    if given.basic:
        lone, each = seconds(1, "hydra/launcher=basic")[0], (middle - seconds(1)[0]) / (given.cells - 1)
        found["basic"] = (seconds(given.basic, "hydra/launcher=basic")[0] - lone) / (given.basic - 1)
        print(f"  a cell more: {1e3 * each:.0f} ms; by the basic launcher {1e3 * found['basic']:.0f} ms", flush=True)
    if given.networks:
        found["memory"] = memory_over_time(given.networks, given.group)
        first = max(memory for done, memory, _ in found["memory"] if given.group <= done < 3 * given.group)
        last = max(memory for done, memory, _ in found["memory"] if 0.8 * given.networks < done < given.networks)
        end = max(memory for done, memory, _ in found["memory"] if done == given.networks)
        files = max(files for _, _, files in found["memory"])
        met = "met" if last < GROWTH_BAR * first else "MISSED"
        print(
            f"{given.networks} networks: {first:.0f} MiB after the first group, {last:.0f} MiB in the last one: ",
            end="",
        )
        print(f"{last / first:.3f}, bar {GROWTH_BAR}: {met}")
        print(f"  {end:.0f} MiB at most after the last network, when table and pictures of the sweep are written")
        print(f"  open files: at most {files}, bar {FILES_BAR}: {'met' if files < FILES_BAR else 'MISSED'}")
    return found
