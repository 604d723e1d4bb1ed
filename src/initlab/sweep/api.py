"""A grid from Python: the same planner, executors and resume as the command line, and a frame at the end."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from initlab.config.grid import compose_grid, override_text, refuse_ambiguous_widths
from initlab.sweep.cells import cell_directories, check_cells, select_cells
from initlab.sweep.placement import Placement
from initlab.sweep.run import run_sweep
from initlab.sweep.screen import write_sweep_pictures
from initlab.system.streams import use_safe_streams

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    config: Mapping[str, Any] | None = None,
    /,
    *,
    executor: str = "inline",
    workers: int | str = "auto",
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **axes: Any,
) -> "pd.DataFrame":
    """Run every combination of the values given and return one row per run, as `initlab.load` does.

    Keys are those of the command line: dotted in `config`, with two underscores for a dot as arguments, or nested
    (`optim={"lr": [0.01, 0.1]}`). A list, tuple, range or array is swept; a text may sweep as it does on the command
    line (`"glob(*)"`, `"range(5)"`); a list that is one value stands in a list (`width=[[256, 128]]`). Nothing is
    written before the whole grid has been checked. With `sweep__name="depths"` the same call goes on where an earlier
    one was stopped, and adds what is new. With `race=True` the rate of every cell is tuned first, on seeds of its own,
    and the rows are those of the comparison; `load` has both.

    Args:
        config: keys and values as a mapping, `{"optim.lr": [0.01, 0.1]}`.
        executor: `inline`, which knows what this program has registered; `process`, `submitit`, `ray`, whose workers
            know what they can import; or `auto`, which is `process` for a large grid and `inline` otherwise.
        workers: groups at a time, or `auto`.
        options: of the executor, such as `{"slurm_partition": "gpu"}`.
        quiet: show no progress.
        **axes: keys and values.

    Raises:
        UserError: a key, a value or a cell cannot be, another process runs this sweep, or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     frame = sweep(init=["zeros", "he_normal"], depth=1, width=4, train__steps=2, sweep__root=root, quiet=True)
    >>> frame[["init", "status", "steps"]].values.tolist()
    [['zeros', 'completed', 2], ['he_normal', 'completed', 2]]
    """
    with use_safe_streams():
        return compose_and_run(config or {}, Placement(executor, workers, options or {}), axes, quiet)


def compose_and_run(config: Mapping[str, Any], how: Placement, axes: Mapping[str, Any], quiet: bool) -> "pd.DataFrame":
    """Compose, check and run a grid."""
    given = dict(dotted_items(config)) | dict(
        dotted_items({key.replace("__", "."): value for key, value in axes.items()})
    )
    configs, directory = compose_grid([override_text(key, value) for key, value in given.items()])
    for cell in configs:
        refuse_ambiguous_widths(given.get("width"), {"depth": cell.depth, "model": cell.model["name"]})
    configs = [configs[k] for k in select_cells(configs, repeats=bool(configs[0].sweep.grids))]
    if configs[0].race:
        from initlab.sweep.race import dry_run_race, run_race

        if configs[0].dry_run:
            return dry_run_race(configs, directory, how)
        return write_sweep_pictures(run_race(configs, directory, how, quiet), directory).frame()
    cells = check_cells(configs, cell_directories(configs, directory))
    if configs[0].dry_run:
        from initlab.sweep.dry_run import dry_run

        return dry_run(cells, directory, how)
    return write_sweep_pictures(run_sweep(cells, directory, how, lambda *_: None, quiet=quiet), directory).frame()


def dotted_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Write nested keys with dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
