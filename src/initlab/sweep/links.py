"""A sweep writes inside its own directory: symbolic links in it are refused."""

from collections.abc import Sequence
from pathlib import Path

from initlab.sweep.cells import Cell
from initlab.system.files import refuse_link


def refuse_links(cells: Sequence[Cell], directory: Path) -> None:
    """Refuse symbolic links inside a sweep's directory: through them its runs would be written to another place."""
    own = (directory / name for name in (".groups", "plan.json", "multirun.yaml", ".lock"))
    for place in (*own, *(part for cell in cells for part in (cell.directory, *cell.directory.parents))):
        if directory in place.parents:
            refuse_link(place)
    for cell in cells:
        for name in (".hydra", *(f".hydra/{file}.yaml" for file in ("config", "hydra", "overrides"))):
            refuse_link(cell.directory / name)
