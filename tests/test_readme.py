"""The README's tables are made from the catalogues: they cannot drift."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_current():
    done = subprocess.run(
        [sys.executable, "scripts/fill_readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
