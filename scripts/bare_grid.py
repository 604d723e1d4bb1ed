"""A whole grid by loops written by hand: two processes of one thread each share its networks, and record nothing.

    python scripts/bare_grid.py --depths 3 10 --acts tanh relu --networks 160 --update fused

It imports torch, reads the data and trains one network after another by `bare_loop.py`; that is what is timed, from the
start of the processes to the end of the last one, as a whole sweep of initlab's is. Before, in processes that are not
timed with it, `--update fastest` finds out which of torch.optim.SGD's updates is the faster one here.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bare_loop

UPDATES = ("plain", "fused")
PROCESSES = 2


def cells(given: argparse.Namespace, rank: int) -> list[dict[str, Any]]:
    """List one process's share of the grid: as many networks of each depth and activation as the other has, if even."""
    kinds = [(depth, act) for depth in given.depths for act in given.acts]
    each, left = divmod(given.networks, len(kinds))
    if left:
        raise SystemExit(f"--networks {given.networks}: give a multiple of {len(kinds)}, the depths and activations")
    whole = [
        {"depth": depth, "act": act, "width": given.width, "batch": given.batch, "steps": given.steps}
        for depth, act in kinds
        for _ in range(each)
    ]
    return whole[rank::PROCESSES][:: -1 if rank else 1]


def work(given: argparse.Namespace) -> None:
    """Be one process: read, then train its share, and print the seconds that the training took."""
    import torch

    torch.set_num_threads(1)
    x, y = bare_loop.read(given.data_root, "train")
    test = bare_loop.read(given.data_root, "t10k")
    if given.update == "fastest":
        print(json.dumps(tried(given, x, y)))
        return
    began = time.perf_counter()
    for cell in cells(given, given.rank):
        bare_loop.train(x, y, fused=given.update == "fused", test=test, **cell)
    print(json.dumps(time.perf_counter() - began))


def tried(given: argparse.Namespace, x: Any, y: Any) -> dict[str, float]:
    """Return the least seconds that a network of each depth takes by each update, in three tries taking turns."""
    facts = {"act": given.acts[0], "width": given.width, "batch": given.batch, "steps": given.trial_steps}
    taken = dict.fromkeys(UPDATES, 0.0)
    for depth in given.depths:
        found: dict[str, list[float]] = {update: [] for update in UPDATES}
        for _ in range(3):
            for update in UPDATES:
                ended = bare_loop.train(x, y, fused=update == "fused", depth=depth, **facts)
                found[update].append(ended["seconds"])
        for update in UPDATES:
            taken[update] += min(found[update])
    return taken


def run(given: argparse.Namespace, update: str) -> tuple[float, list[Any]]:
    """Start both processes; return the seconds until both have ended, and what each has printed."""
    facts = {"networks": given.networks, "width": given.width, "batch": given.batch, "steps": given.steps}
    options = [f"--{name}={value}" for name, value in {**facts, "data-root": given.data_root, "update": update}.items()]
    options += ["--depths", *map(str, given.depths), "--acts", *given.acts, f"--trial-steps={given.trial_steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *options]
    started = time.perf_counter()
    workers = [
        subprocess.Popen([*command, f"--rank={rank}"], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    printed = [worker.communicate()[0] for worker in workers]
    seconds = time.perf_counter() - started
    if any(worker.returncode for worker in workers):
        raise SystemExit("a bare loop failed; what it said stands above")
    return seconds, [json.loads(text) for text in printed]


def fastest_update(given: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """Return the faster update of the two on this machine now, and the seconds that each one took."""
    _, printed = run(given, "fastest")
    taken = {update: sum(one[update] for one in printed) for update in UPDATES}
    return min(taken, key=taken.__getitem__), taken


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 10], help="hidden layers")
    parser.add_argument("--acts", nargs="+", default=["tanh", "relu"], choices=("tanh", "relu"))
    parser.add_argument("--networks", type=int, default=160, help="of all depths and activations together")
    parser.add_argument("--width", type=int, default=128, help="units per hidden layer")
    parser.add_argument("--batch", type=int, default=128, help="samples per update")
    parser.add_argument("--steps", type=int, default=468, help="updates of each network")
    parser.add_argument("--update", default="fastest", choices=(*UPDATES, "fastest"), help="torch.optim.SGD's")
    parser.add_argument("--trial-steps", type=int, default=300, help="updates after which one counts as the faster one")
    parser.add_argument("--data-root", type=Path, default=bare_loop.DEBIAN, help="directory of the idx files")
    parser.add_argument("--rank", type=int, help="be one of the processes: 0 or 1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    given = parser.parse_args()
    if given.rank is not None:
        work(given)
    else:
        update = fastest_update(given)[0] if given.update == "fastest" else given.update
        seconds, training = run(given, update)
        print(f"{given.networks} networks, the {update} update: {seconds:.1f} s, {max(training):.1f} s of it training")
