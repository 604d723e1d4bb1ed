"""Does the forecast at step 0 predict training? A grid is trained and laid beside what theory said of it before.

    python scripts/bench.py forecast                # resumes where it was stopped; --grid second: other options
    python scripts/bench.py forecast --quick        # a small grid, to see that it runs

Every cell (activation × scheme × depth) is trained at each of the rates on one seed, and on three fresh seeds at the
rate of best validation accuracy; it *trains* when their mean validation accuracy is at least 50 %. Its forecast is the
score of `initlab.prediction.ranking`, made from the activation, the promised variances and the fans alone:

    score = log10 contrast − |log10 of first over last gradient mean square| / 2

how much of the difference between alike and unrelated inputs reaches the last layer, and how far the gradient's size
drifts on its way down. Schoenholz et al. (2017) found networks to train to about 6 ξ_c, where the contrast is e^-6: the
score's threshold is −6/ln 10 = −2.6. Score, threshold and grids were fixed before any cell was trained.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import initlab
from initlab.prediction import rank

TRAINS = 0.5
THRESHOLD = -6 / np.log(10)
RATES = (0.002, 0.01, 0.05, 0.25)
DEPTHS = (5, 10, 20, 40, 60)
TUNING_SEED, SEEDS = 1000, (0, 1, 2)
KEYS = ["act", "init", "gain", "depth"]

# Schemes as (init, init.gain): a gain of 2.5 stands for what is far too large.
Scheme = tuple[str, float | None]


@dataclass(frozen=True)
class Grid:
    """What is trained."""

    acts: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    depths: tuple[int, ...] = DEPTHS

    def cells(self) -> pd.DataFrame:
        """One row per cell, with its forecast."""
        parts = []
        for name, gain in self.schemes:
            found = rank(self.acts, name, self.depths, WIDTH, gain="paper" if gain is None else gain)
            parts.append(found.assign(gain=gain if gain is not None else np.nan))
        cells = pd.concat(parts, ignore_index=True)
        return cells[cells.reason.isna()].reset_index(drop=True)


WIDTH = 64
GRIDS = {
    "first": Grid(
        ("tanh", "relu", "sigmoid", "gelu", "selu", "hardtanh"),
        (
            ("torch_default", None),
            ("naive_normal", None),
            ("glorot_normal", None),
            ("he_normal", None),
            ("critical", None),
            ("lecun_normal", 2.5),
        ),
    ),
    # No activation, no scheme and no depth of the first one.
    "second": Grid(
        ("elu", "silu", "softsign", "erf", "leaky_relu", "softplus"),
        (
            ("uniform_rule", None),
            ("lecun_uniform", None),
            ("he_uniform", None),
            ("orthogonal", None),
            ("autoinit", None),
            ("orthogonal", 2.5),
        ),
        (8, 16, 32),
    ),
    "quick": Grid(("tanh", "relu"), (("torch_default", None), ("he_normal", None)), (3, 30)),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--grid", choices=list(GRIDS), default="first")
    parser.add_argument("--quick", action="store_true", help="the grid named quick, 30 steps")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--root", default="outputs/sweeps", help="where the two sweeps are kept: the same call goes on")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train the grid, print how well the forecast separates, and return the figures."""
    name = "quick" if given.quick else given.grid
    steps = 30 if given.quick else given.steps
    cells = GRIDS[name].cells()
    tuned = tune(cells, f"forecast-{name}-tuning-{steps}", steps, given.root)
    runs = train(tuned, f"forecast-{name}-{steps}", steps, given.root)
    final = runs.groupby(KEYS, dropna=False).val_accuracy.mean().rename("accuracy").reset_index()
    cells = tuned.merge(final, on=KEYS, how="left")
    cells["trains"] = cells.accuracy >= TRAINS
    show(cells)
    return {"grid": name, "steps": steps, "auc": separations(cells), "cells": cells.to_dict("records")}


def tune(cells: pd.DataFrame, name: str, steps: int, root: str) -> pd.DataFrame:
    """Find the rate of best validation accuracy of every cell, on a seed that is not used for judging."""
    grids = [cell_keys(c) | {"optim.lr": list(RATES), "seed": TUNING_SEED} for c in cells.itertuples()]
    runs = swept(grids, name, steps, root)
    best = runs.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).groupby(KEYS, dropna=False).first()
    return cells.merge(best["optim.lr"].rename("rate").reset_index(), on=KEYS, how="left")


def train(cells: pd.DataFrame, name: str, steps: int, root: str) -> pd.DataFrame:
    """Train every cell at its rate on fresh seeds."""
    grids = [cell_keys(c) | {"optim.lr": float(c.rate), "seed": list(SEEDS)} for c in cells.itertuples()]
    return swept(grids, name, steps, root)


def cell_keys(cell: Any) -> dict[str, Any]:
    """Give the keys of a cell as a sub-grid."""
    gain = {} if np.isnan(cell.gain) else {"init.gain": float(cell.gain)}
    return {"act": cell.act, "init": cell.init, "depth": int(cell.depth), **gain}


def swept(grids: Sequence[dict[str, Any]], name: str, steps: int, root: str) -> pd.DataFrame:
    """Run sub-grids as one resumable sweep; a network that diverged has accuracy 0."""
    runs = initlab.sweep(
        {
            "sweep.grids": list(grids),
            "sweep.name": name,
            "sweep.root": root,
            "width": WIDTH,
            "train.steps": steps,
            "train.batch_size": 64,
            "log.every": steps,
            "log.eval_every": steps,
            "log.histograms": 0,
            "log.tensorboard": False,
            "threads": 1,
        }
    )
    missing = runs[~runs.status.isin(["completed", "diverged"])]
    if len(missing):
        raise SystemExit(f"{len(missing)} networks did not run, the first: {missing.iloc[0].problem}")
    gain = pd.to_numeric(runs.get("init.gain", pd.Series(index=runs.index, dtype=float)), errors="coerce")
    return runs.assign(gain=gain, val_accuracy=runs.val_accuracy.fillna(0.0))


def auc(score: np.ndarray, trains: np.ndarray) -> float:
    """Probability that a cell that trains has a higher score than one that does not; ties count half."""
    good, bad = score[trains], score[~trains]
    if not (len(good) and len(bad)):
        return float("nan")
    difference = good[:, None] - bad[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


PREDICTORS: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "forecast": lambda c: c.score.fillna(-np.inf).to_numpy(),
    "contrast alone": lambda c: c.contrast.fillna(0).to_numpy(),
    "gradient alone": lambda c: -c.gradient_range.abs().fillna(np.inf).to_numpy(),
    "depth / 6 xi_c": lambda c: -(c.depth / c.trainable_depth).fillna(np.inf).to_numpy(),
    "depth alone": lambda c: -c.depth.to_numpy(dtype=float),
}


def separations(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Area under the curve of every predictor, overall and within each depth."""
    parts = {"all": cells} | {f"depth {d}": part for d, part in cells.groupby("depth")}
    return {
        name: {label: auc(predict(part), part.trains.to_numpy()) for label, part in parts.items()}
        for name, predict in PREDICTORS.items()
    }


def show(cells: pd.DataFrame) -> None:
    """Print the table of areas and the cells that were forecast wrongly."""
    counts = cells.groupby("depth").trains.agg(["sum", "count"])
    said = ", ".join(f"depth {d}: {row['sum']} of {row['count']}" for d, row in counts.iterrows())
    print(f"\n{len(cells)} cells, {int(cells.trains.sum())} train ({said})")
    print("area under the curve\n" + pd.DataFrame(separations(cells)).T.round(3).to_string())
    wrong = cells[(cells.score.fillna(-np.inf) > THRESHOLD) != cells.trains]
    print(f"\nwrongly forecast at the threshold {THRESHOLD:.1f} (6 xi_c): {len(wrong)} of {len(cells)}")
    for cell in wrong.sort_values("score").itertuples():
        scheme = cell.init if np.isnan(cell.gain) else f"{cell.init} gain {cell.gain:g}"
        print(
            f"  {cell.act:10s} {scheme:22s} depth {cell.depth:2d}  score {cell.score:6.2f}  "
            f"accuracy {cell.accuracy:4.0%} at rate {cell.rate:g}  {reason(cell)}"
        )


def reason(cell: Any) -> str:
    """Say what theory left out that most likely made the difference."""
    if cell.trains:
        if cell.rate >= np.median(RATES) and abs(cell.gradient_range) > 1:
            return (
                f"the gradient loses 10^{abs(cell.gradient_range) / 2:.1f} on its way, and a high rate makes up for it"
            )
        near = abs(cell.score - THRESHOLD) < 1
        return "just beyond the threshold" if near else "what is left of the contrast is enough at the best rate"
    if not np.isfinite(cell.score):
        return "theory has no answer"
    if cell.rate == RATES[0]:
        return "stable at the smallest rate tried alone: it would take more, smaller steps"
    if 5 * cell.depth / WIDTH > 2:
        return f"depth beside width: fluctuations e^(5L/n) = e^{5 * cell.depth / WIDTH:.1f}, and theory is of means"
    if cell.q > 10:
        return f"signal of mean square {cell.q:.0f}: saturated units, and a loss that starts high"
    return "near the threshold: it learns, but not to 50 % in so few steps"
