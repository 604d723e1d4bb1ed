"""Make the README's picture from a real sweep: what four initializations do to ReLU networks of three depths."""

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import initlab

SCHEMES = ("zeros", "torch_default", "glorot_uniform", "he_normal")
DEPTHS = (3, 10, 30)
COLORS = dict(zip(SCHEMES, ("#8a8a8a", "#d1495b", "#edae49", "#00798c"), strict=True))


def train(name: str, steps: int) -> None:
    """Run the sweep through the ordinary door."""
    grid = [f"init={','.join(SCHEMES)}", "act=relu", f"depth={','.join(map(str, DEPTHS))}", "seed=range(3)"]
    command = [sys.executable, "train.py", "-m", *grid, f"train.steps={steps}", f"sweep.name={name}"]
    subprocess.run(command, check=True)


def draw(directory: Path, target: Path) -> None:
    """Draw signal per layer, loss curves and final accuracy from the records of the sweep."""
    runs, layers, metrics = (
        initlab.load(directory),
        initlab.load_layers(directory),
        initlab.records.load_metrics(directory),
    )
    figure, (signal, curves, map_) = plt.subplots(1, 3, figsize=(13, 3.9), width_ratios=(1.15, 1.15, 1))
    deep = max(DEPTHS)
    at_start = layers.query("step == 0 and stat == 'q' and source == 'measured' and depth == @deep")
    for scheme in SCHEMES:
        own = at_start[at_start.init == scheme].groupby("index").value.mean()
        signal.plot(own.index, own.where(own > 0), ".-", color=COLORS[scheme], label=scheme)
        rows = metrics[(metrics.init == scheme) & (metrics.depth == deep)].dropna(subset=["loss"])
        table = rows.pivot_table(index="step", columns="seed", values="loss").rolling(10, min_periods=1).mean()
        curves.plot(table.index, table.mean(axis=1), color=COLORS[scheme], label=scheme)
        curves.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=COLORS[scheme], alpha=0.2, lw=0)
    signal.set(
        yscale="log", xlabel="layer", ylabel="mean square of preactivations", title=f"step 0, depth {deep}: the signal"
    )
    grey = COLORS["zeros"]
    signal.annotate("zeros: exactly 0 everywhere", (0.03, 0.04), xycoords="axes fraction", color=grey, fontsize=9)
    curves.set(xlabel="step", ylabel="training loss (band: 3 seeds)", title=f"depth {deep}: what training makes of it")
    curves.axhline(np.log(10), color="black", lw=0.7, ls=":")
    at = (0.98, np.log(10) + 0.02)
    curves.annotate("ln 10: guessing", at, xycoords=("axes fraction", "data"), ha="right", fontsize=8)
    curves.legend(fontsize=8, loc="lower left", frameon=False)
    grid = runs.pivot_table(index="init", columns="depth", values="test_accuracy").loc[list(SCHEMES)]
    map_.imshow(grid, vmin=0.1, vmax=0.9, cmap="viridis", aspect="auto")
    map_.set_xticks(range(len(DEPTHS)), [f"depth {d}" for d in grid.columns])
    map_.set_yticks(range(len(SCHEMES)), SCHEMES)
    for i, j in np.ndindex(grid.shape):
        value = grid.iloc[i, j]
        map_.text(j, i, f"{value:.0%}", ha="center", va="center", color="black" if value > 0.6 else "white")
    map_.set_title("test accuracy, mean of 3 seeds")
    for axes in (signal, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main() -> None:
    """Train, unless `--draw-only`, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="picture")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--target", type=Path, default=Path("docs/picture.png"))
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    if not options.draw_only:
        train(options.name, options.steps)
    draw(Path("outputs/sweeps") / options.name, options.target)


if __name__ == "__main__":
    main()
