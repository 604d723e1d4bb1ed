"""What theory costs: gains, critical lines, a phase diagram and a ranking, beside a plain scipy double quadrature.

    python scripts/bench.py theory

Every figure is the time of a fresh process that has imported what it needs and remembers nothing. The quadrature
beside is what a straightforward code does at every point: iterate the q-map by `scipy.integrate.quad`, then the c-map
by `dblquad`; it is timed on some points of the same diagram, and both sides' answers are compared there.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

BARS = {"gains and critical lines": 2.0, "phase diagram": 3.0, "ranking": 5.0}
LINES = [0.0, 0.1, 0.3, 1.0]  # σ_b of the critical lines
ACTS = "tanh,relu,gelu"
INITS = (
    "glorot_normal,he_normal,orthogonal,torch_default,lecun_normal,glorot_uniform,he_uniform,uniform_rule,siren,ones"
)
DEPTHS = "range(10,101,10)"


def gains_and_lines(_: int) -> dict[str, Any]:
    """All gains and critical lines of all activations."""
    from initlab.activations import ACTIVATIONS
    from initlab.theory import critical_line, gains

    start = time.perf_counter()
    for act in ACTIVATIONS.values():
        gains(act)
        critical_line(act, LINES)
    return {"seconds": time.perf_counter() - start, "what": f"{len(ACTIVATIONS)} activations, {len(LINES)} σ_b each"}


def diagram(side: int) -> dict[str, Any]:
    """q*, χ₁, c* and ξ_c of tanh on a square grid."""
    import numpy as np

    from initlab.theory import phase_diagram

    sigma_w, sigma_b = np.linspace(0.5, 4, side), np.linspace(0, 1, side)
    start = time.perf_counter()
    phase_diagram("tanh", sigma_w, sigma_b)
    return {"seconds": time.perf_counter() - start, "what": f"tanh, {side} × {side} points", "points": side**2}


def ranking(_: int) -> dict[str, Any]:
    """A grid of 300 cells, from overrides to an ordered frame."""
    from initlab.cli.predict_grid import compose_forecasts, rank_configs

    start = time.perf_counter()
    configs = compose_forecasts([f"act={ACTS}", f"init={INITS}", f"depth={DEPTHS}"])
    frame = rank_configs(configs)
    return {"seconds": time.perf_counter() - start, "what": f"{len(frame)} cells, configurations composed and checked"}


def ranking_in_python(_: int) -> dict[str, Any]:
    """The same grid from Python."""
    from initlab.prediction import rank

    start = time.perf_counter()
    frame = rank(ACTS.split(","), INITS.split(","), range(10, 101, 10))
    return {"seconds": time.perf_counter() - start, "what": f"{len(frame)} cells, initlab.prediction.ranking"}


MEASURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "gains and critical lines": gains_and_lines,
    "phase diagram": diagram,
    "ranking": ranking,
    "ranking, from Python": ranking_in_python,
}


def measure_once(name: str, side: int) -> dict[str, Any]:
    """Measure in a fresh process on one thread, after what it imports was imported."""
    code = (
        "import json, sys, torch; torch.set_num_threads(1); sys.path.insert(0, 'scripts'); import bench_theory as b\n"
        "import initlab.cli.predict_grid, initlab.theory, initlab.prediction, scipy.integrate, scipy.optimize\n"
        f"print(json.dumps(b.MEASURES[{name!r}]({side})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def point_by_quadrature(sigma_w: float, sigma_b: float, tolerance: float = 1e-8) -> tuple[float, float, float, float]:
    """Return q*, χ₁, c* and ξ_c of tanh as a plain code finds them: fixed-point iteration of nested quadratures."""
    from scipy.integrate import dblquad, quad

    def gauss(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    def settled(step: Callable[[float], float], x: float) -> float:
        for _ in range(500):
            x, before = step(x), x
            if abs(x - before) < tolerance * max(abs(x), tolerance):
                break
        return x

    w, b = sigma_w**2, sigma_b**2
    q = settled(lambda q: w * quad(lambda z: gauss(z) * math.tanh(math.sqrt(q) * z) ** 2, -10, 10)[0] + b, 1.0)
    root = math.sqrt(q)
    chi = w * quad(lambda z: gauss(z) * math.cosh(root * z) ** -4, -10, 10)[0]

    def pairs(f: Callable[[float], float], c: float) -> float:
        other = math.sqrt(max(1 - c * c, 0.0))
        return dblquad(
            lambda y, x: gauss(x) * gauss(y) * f(root * x) * f(root * (c * x + other * y)),
            -8, 8, -8, 8, epsabs=1e-9, epsrel=1e-9,
        )[0]  # fmt: skip

    c = settled(lambda c: min((w * pairs(math.tanh, c) + b) / q, 1.0), 0.5) if chi > 1 else 1.0
    slope = chi if chi <= 1 else w * pairs(lambda u: math.cosh(u) ** -2, c)
    return q, chi, c, -1 / math.log(slope)


def time_quadrature(points: int) -> dict[str, Any]:
    """Time the quadrature on points spread over the diagram, and compare the answers."""
    import numpy as np

    from initlab.theory import phase_diagram

    generator = np.random.default_rng(0)
    found, taken = [], []
    for _ in range(points):
        sigma_w, sigma_b = float(generator.uniform(0.5, 4)), float(generator.uniform(0.05, 1))
        start = time.perf_counter()
        slow = point_by_quadrature(sigma_w, sigma_b)
        taken.append(time.perf_counter() - start)
        fast = phase_diagram("tanh", [sigma_w], [sigma_b])
        ours = [float(getattr(fast, name)[0, 0]) for name in ("q_star", "chi_1", "c_star", "xi_c")]
        found.append(max(abs(a / b - 1) for a, b in zip(ours, slow, strict=True)))
    return {"seconds_per_point": taken, "mean": statistics.mean(taken), "largest_difference": max(found)}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure, and print as it goes."""
    figures: dict[str, Any] = {}
    for name in MEASURES:
        taken = [measure_once(name, given.side) for _ in range(given.repeats)]
        seconds = sorted(one["seconds"] for one in taken)
        middle, bar = statistics.median(seconds), BARS.get(name)
        full = name != "phase diagram" or given.side >= 200
        verdict = f", bar {bar:g} s: {'met' if middle <= bar else 'MISSED'}" if bar and full else ""
        print(f"{name:26} {middle:.2f} s ({seconds[0]:.2f}–{seconds[-1]:.2f}){verdict}; {taken[0]['what']}", flush=True)
        figures[name] = {"seconds": seconds, "what": taken[0]["what"], "bar": bar}
    if given.points:
        slow = time_quadrature(given.points)
        per_point = statistics.median(figures["phase diagram"]["seconds"]) / given.side**2
        figures["dblquad"] = slow | {"ratio": slow["mean"] / per_point}
        print(
            f"{'scipy quad and dblquad':26} {slow['mean']:.2f} s a point "
            f"({min(slow['seconds_per_point']):.2f}–{max(slow['seconds_per_point']):.2f}, {given.points} points), "
            f"{slow['mean'] * given.side**2 / 3600:.1f} h for the diagram: initlab is "
            f"{slow['mean'] / per_point:,.0f} times as fast; they differ by at most {slow['largest_difference']:.1g}"
        )
    return figures


def arguments(sub: argparse.ArgumentParser) -> None:
    """Declare the options."""
    sub.add_argument("--side", type=int, default=200, help="points along each axis of the phase diagram")
    sub.add_argument("--repeats", type=int, default=5, help="fresh processes per figure")
    sub.add_argument("--points", type=int, default=8, help="points for the quadrature beside; 0: leave it out")
