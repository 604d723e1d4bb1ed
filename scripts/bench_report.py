"""How long `initlab report` takes, how much memory, how large the page is, and when a browser can use it."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
# The kernel's own account of this program: what wait4 tells has the memory of whoever started it in it.
CODE = """
import sys
from initlab.cli.main import main
try:
    main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, nargs="+", default=[300, 1000], help="sizes of the sweeps")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured")
    parser.add_argument("--no-browser", action="store_true", help="leave the browser out")


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    sys.path.insert(0, str(TESTS))
    import fake_sweeps

    found = []
    for runs in given.runs:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place) / "sweep"
            # Of 300 steps, recorded ten times: a thousand of them are what a large grid leaves.
            fake_sweeps.write_large(root, runs)
            page = root / "report.html"
            for _ in range(given.repeats):
                figures = {"runs": runs, **written(root)}
                figures["megabytes"] = page.stat().st_size / 1e6
                if not given.no_browser:
                    figures |= opened(page)
                found.append(figures)
                print(", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    for runs in given.runs:
        own = [figures for figures in found if figures["runs"] == runs]
        middle = {key: statistics.median(figures[key] for figures in own) for key in own[0] if key != "runs"}
        print(f"median of {len(own)} at {runs} runs: " + ", ".join(f"{k} {v:.3g}" for k, v in middle.items()))
    return found


def written(root: Path) -> dict[str, float]:
    """Run the verb in a process of its own; return seconds and the most memory that it had."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CODE, "report", str(root)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"initlab report ended with {done.returncode}: {done.stderr}")
    return {"seconds": time.perf_counter() - started, "GB": float(done.stderr.split()[-1]) / 1e6}


def opened(page: Path) -> dict[str, float]:
    """Open the page; return when it was interactive and when the picture in sight was drawn, in seconds."""
    from browser import start

    driver = start()
    try:
        driver.get(page.as_uri())
        ready = float(driver.execute_script("return document.documentElement.dataset.ready"))
        drawn = driver.execute_async_script(
            "const done = arguments[0]; const look = () => document.querySelector('#heat .plot svg.main-svg') ? "
            "done(performance.now()) : requestAnimationFrame(look); look();"
        )
        return {"interactive_s": ready / 1e3, "drawn_s": float(drawn) / 1e3}
    finally:
        driver.quit()
