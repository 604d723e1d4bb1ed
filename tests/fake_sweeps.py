"""Sweeps that were never trained, written through the real writer: as large, and as broken, as a test wants them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from initlab.records import RunWriter
from initlab.records.checksums import append_checksum
from initlab.records.serialization import to_json
from initlab.statistics.histograms import Histogram

# What a scheme does to the signal per layer (factor on q) under tanh and relu, and whether it learns at all.
FACTORS = {
    "glorot_uniform": (0.97, 0.5),
    "he_normal": (1.1, 1.0),
    "orthogonal": (0.98, 0.5),
    "torch_default": (0.34, 0.17),
    "zeros": (0.0, 0.0),
    "normal": (4.0, 8.0),
}
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '</script><script>alert("2")</script>',
    "=HYPERLINK(\"http://example.org\",'x')",
    "%{y} $x$ & <b>ümläut</b>, \"quoted\" 'too' \u2028 漢字",
)
CENTRES = np.linspace(-1, 1, 64)
BELL = np.exp(-(CENTRES**2) * 4)


@dataclass(frozen=True)
class Cell:
    """One run to be written."""

    init: str
    act: str
    depth: int
    seed: int
    lr: float = 0.01
    extra: tuple[tuple[str, Any], ...] = ()


def config_of(cell: Cell, steps: int) -> dict[str, Any]:
    init: dict[str, Any] = {"name": cell.init, "gain": "paper", "sigma_b": 0.0}
    if cell.init == "normal":
        init |= {"mean": 0.0, "std": 0.1}
    return {
        "init": init,
        "act": {"name": cell.act},
        "model": {"name": "mlp", "norm": "none"},
        "data": {"name": "fashion_mini", "seed": 0},
        "optim": {"name": "sgd", "lr": cell.lr, "momentum": 0.9},
        "depth": cell.depth,
        "width": 128,
        "seed": cell.seed,
        "train": {"steps": steps, "target_loss": None},
        "log": {"every": 1},
        "sweep": {"name": "fake"},
        **dict(cell.extra),
    }


def grid(inits: Iterable[str], acts: Iterable[str], depths: Iterable[int], seeds: Iterable[int]) -> list[Cell]:
    return [Cell(i, a, d, s) for i in inits for a in acts for d in depths for s in seeds]


def log_steps(steps: int, count: int = 10) -> list[int]:
    return sorted({0, *np.unique(np.geomspace(1, steps, count - 1).round().astype(int)).tolist()})


def write_run(directory: Path, cell: Cell, steps: int = 300, records: int = 10, status: str | None = None) -> None:
    """Write one run; `status` forces how it ends, else scheme and depth decide."""
    generator = np.random.default_rng([cell.seed, cell.depth, *cell.init.encode()[:8], round(cell.lr * 1e6)])
    run = RunWriter(directory, config_of(cell, steps), tensorboard=False, flush_seconds=1e9)
    factor = FACTORS.get(cell.init, (1.0, 1.0))[cell.act == "relu"]
    reach = 1.0 if cell.act == "tanh" and factor > 1 else factor
    signal = reach**cell.depth
    learns = 1e-4 < signal < 1e4 and factor > 0
    if status is None:
        status = "diverged" if signal >= 1e4 or cell.lr * (1 + cell.depth / 30) > 0.5 else "completed"
    if status == "skipped":
        run.finish("skipped", reason=f"{cell.init} cannot fill a dense layer", hash=directory.name)
        return
    last = steps if status != "diverged" else max(3, steps // 20)
    losses, accuracy = curve(generator, cell, steps, learns)
    measured = losses[: last + 1].copy()
    if status == "diverged":
        measured *= np.geomspace(1, 1e20, len(measured))
        measured[-1] = np.nan
    rates = {"lr": np.full(last + 1, cell.lr), "grad_norm": 0.3 * measured, "accuracy": accuracy[: last + 1]}
    run.add_scalars_block(np.arange(last + 1), {"loss": measured.astype(np.float32), **rates})
    run.flush()
    for step in (s for s in log_steps(steps, records) if s <= last):
        run.add_layers(layer_rows(generator, cell, step, reach, status == "diverged"))
        run.add_histograms(step, histograms_of(generator, cell, step, signal))
    if status == "unfinished":
        run.flush()
        return
    if status == "failed":
        run.log("Traceback (most recent call last):\n  File x\nRuntimeError: the <cable> was cut")
        run.finish("failed", error="RuntimeError: the <cable> was cut", seconds=0.1, hash=directory.name)
        return
    finals = final_metrics(generator, losses, accuracy, status)
    run.add_scalars(last, {key: finals[key] for key in finals if key.startswith(("val", "test"))})
    bad = {"first_bad_step": last, "first_bad_layer": "hidden.0"} if status == "diverged" else {}
    trained = None if status == "diverged" else bool(finals["val_accuracy"] > 0.55)
    forecast = 6 / abs(math.log(factor)) if factor > 0 and factor != 1 else math.inf
    finals |= {"trainable_depth": forecast} if factor > 0 else {}
    run.finish(status, steps=last, seconds=1.5, **finals, **bad, trained=trained, hash=directory.name)


def curve(generator: np.random.Generator, cell: Cell, steps: int, learns: bool) -> tuple[np.ndarray, np.ndarray]:
    step = np.arange(steps + 1)
    speed = 0.03 * generator.uniform(0.8, 1.2) * cell.lr / 0.01 if learns else 0.0
    floor = 0.45 + 0.02 * generator.standard_normal() + 0.004 * cell.depth
    loss = floor + (math.log(10) - floor) * np.exp(-speed * step) + 0.02 * generator.standard_normal(steps + 1)
    if not learns:
        loss = math.log(10) + 1e-4 * generator.standard_normal(steps + 1)
    accuracy = np.clip(0.1 + 0.75 * (math.log(10) - loss) / (math.log(10) - 0.45), 0.05, 1)
    return loss, accuracy


def final_metrics(generator: np.random.Generator, losses: np.ndarray, accuracy: np.ndarray, status: str) -> dict:
    loss, share = float(losses[-50:].mean()), float(accuracy[-50:].mean())
    if status == "diverged":
        loss, share = math.nan, 0.1
    noise = generator.normal(0, 0.004, 4)
    names = ("val_loss", "test_loss", "val_accuracy", "test_accuracy")
    values = (loss + noise[0], loss + noise[1], share + noise[2], share + noise[3])
    return {"loss": loss, "accuracy": share, **{k: float(v) for k, v in zip(names, values, strict=True)}}


def layer_rows(generator: np.random.Generator, cell: Cell, step: int, factor: float, bad: bool) -> list[tuple]:
    rows = []
    for index in range(1, cell.depth + 2):
        name = f"hidden.{index - 1}" if index <= cell.depth else "readout"
        q = factor ** (index - 1) * (1 + 0.02 * step**0.5)
        values = {
            "q": q * generator.uniform(0.95, 1.05),
            "mean": 0.01 * generator.standard_normal(),
            "std": math.sqrt(q),
            "nonfinite": float(bad and step > 10),
            "grad_mean_square": 1e-6 * factor ** (cell.depth + 1 - index) * generator.uniform(0.9, 1.1),
            "weight_norm": 11.3 * (1 + 1e-3 * step**0.7 * generator.uniform(0.8, 1.2)),
            "grad_norm": generator.uniform(0.09, 0.11) * factor ** ((cell.depth + 1 - index) / 2) * (factor > 0),
        }
        if index <= cell.depth:
            values["dead_fraction" if cell.act == "relu" else "saturated_fraction"] = 0.3 * generator.random()
        if step:
            values["update_ratio"] = 1e-3 * generator.uniform(0.5, 1.5)
        rows += [(step, name, index, stat, value, "measured") for stat, value in values.items()]
        if step == 0:
            rows.append((0, name, index, "q", factor ** (index - 1), "predicted"))
            rows.append((0, name, index, "grad_mean_square", 1e-6 * factor ** (cell.depth + 1 - index), "predicted"))
    return rows


def histograms_of(generator: np.random.Generator, cell: Cell, step: int, signal: float) -> dict:
    found = {}
    for index in range(1, cell.depth + 2):
        name = f"hidden.{index - 1}" if index <= cell.depth else "readout"
        for kind in ("preactivation", "postactivation", "weight", "gradient"):
            reach = 0.2 if kind == "weight" else 3 * min(max(signal, 1e-30), 1e30) ** (index / (cell.depth + 1))
            counts = (BELL * generator.uniform(200, 260)).astype(int).tolist()
            if cell.init == "zeros" and kind == "weight":
                found[kind, index, name] = Histogram(0.0, 0.0, (16384, *[0] * 63), 16384, 0.0, 0.0)
            else:
                num = sum(counts)
                found[kind, index, name] = Histogram(-reach, reach, tuple(counts), num, 0.0, num * reach**2 / 8)
    return found


def write_sweep(root: Path, cells: Iterable[Cell], ends: Mapping[int, str] | None = None, **options: Any) -> list[Path]:
    """Write one run per cell; `ends` forces the status of some by their number."""
    paths = []
    for number, cell in enumerate(cells):
        name = f"{cell.init}-{cell.act}-d{cell.depth}-s{cell.seed}-{number:08x}".replace("/", "∕")[:200]
        paths.append(root / name)
        write_run(paths[-1], cell, status=(ends or {}).get(number), **options)
    return paths


def write_halves(root: Path) -> dict[str, str]:
    """Write three cells whose mean accuracies are halves of the last digit shown; return what is shown by scheme."""
    halves = {
        "zeros": ((0.842, 0.843), "84.3"),  # 84.25 is a half in binary too
        "he_normal": ((0.758, 0.759), "75.9"),  # 75.85 lies below it,
        "orthogonal": ((0.757, 0.758, 0.7605), "75.9"),  # and as summed here above
    }
    for name, (values, _) in halves.items():
        paths = write_sweep(root, [Cell(name, "tanh", 3, seed) for seed in range(len(values))], steps=10, records=1)
        for path, value in zip(paths, values, strict=True):
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            write_summary(path, summary | {"test_accuracy": value})
    return {name: told for name, (_, told) in halves.items()}


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write a summary that says something else, with a checksum that is right."""
    known = {key: value for key, value in summary.items() if key != "crc32"}
    (directory / "summary.json").write_bytes(append_checksum(to_json(known)))


def write_large(root: Path, runs: int, **options: Any) -> list[Path]:
    """Write a sweep of this many runs with diverged, failed, skipped, unfinished and damaged ones, hostile names."""
    seeds = range(math.ceil((runs - 10) / (5 * 2 * 3)))
    cells = grid(
        ("glorot_uniform", "he_normal", "torch_default", "zeros", "normal"), ("relu", "tanh"), (3, 10, 30), seeds
    )
    cells = cells[: runs - 10]
    hostile = [Cell(name, "tanh", 3, seed) for name in HOSTILE for seed in range(2)]
    cells += [*hostile, Cell("delta_orthogonal", "relu", 3, 0), Cell("he_normal", "relu", 3, 999)]
    ends = {runs - 2: "skipped", runs - 1: "unfinished", 5: "failed", 17: "failed"}
    paths = write_sweep(root, cells, ends, **options)
    (paths[3] / "summary.json").write_text('{"status": "compl', encoding="utf-8")
    for name in ("metrics.csv", "layers.csv", "histograms.csv"):
        data = (paths[4] / name).read_bytes()
        (paths[4] / name).write_bytes(data[: len(data) // 2])
    (root / "no <run> at all").mkdir()
    (root / "no <run> at all" / "notes.txt").write_text("nothing", encoding="utf-8")
    return paths
