"""Write docs/experiments/: a page for every experiment and their table, from the files and the verdicts last measured.

python scripts/write_pages.py outputs/reproduce
"""

import argparse
from pathlib import Path

from initlab.cli.reproduce import COSTS
from initlab.reproduce.pages import write_pages

PAGES = Path(__file__).parents[1] / "docs" / "experiments"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verdicts", type=Path, help="directory that `initlab reproduce` wrote into")
    for path in write_pages(parser.parse_args().verdicts, PAGES, COSTS):
        print(path)
