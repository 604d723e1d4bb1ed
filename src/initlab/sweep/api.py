"""A grid from Python: the same planner, executors and resume as the command line, and a frame at the end."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from initlab.config.grid import compose_grid, override_text, refuse_ambiguous_widths
from initlab.sweep.cells import cell_directories, check_cells, select_cells
from initlab.sweep.dry_run import dry_run, dry_run_race
from initlab.sweep.placement import Placement
from initlab.sweep.race import run_race
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
    one was stopped, and adds what is new. With `race=True` the rate of every cell is tuned first, on separate seeds,
    and the rows are those of the comparison; `load` has both.

    Args:
        config: keys and values as a mapping, `{"optim.lr": [0.01, 0.1]}`.
        executor: `inline`, which has what this program has registered; `process`, `submitit`, `ray`, whose workers
            have what they can import; or `auto`, which is `process` for a large grid and `inline` otherwise.
        workers: groups at a time, or `auto`.
        options: of the executor, such as `{"slurm_partition": "gpu"}`.
        quiet: show no progress.
        **axes: keys and values.

    Returns:
        The columns of `initlab.load`: the keys of the configuration, then results.

    Raises:
        UserError: a key, a value or a cell cannot be, another process runs this sweep, or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     frame = sweep(init=["zeros", "he_normal"], depth=1, width=4, train__steps=2, sweep__root=root, quiet=True)
    >>> frame[["init", "status", "steps"]].values.tolist()
    [['zeros', 'completed', 2], ['he_normal', 'completed', 2]]
    """
    with use_safe_streams():
        placement = Placement(executor, workers, options or {})
        named = {key.replace("__", "."): value for key, value in axes.items()}
        values = dict(dotted_items(config or {})) | dict(dotted_items(named))
        configs, directory = compose_grid([override_text(key, value) for key, value in values.items()])
        for each in configs:
            refuse_ambiguous_widths(values.get("width"), {"depth": each.depth, "model": each.model["name"]})
        configs = [configs[k] for k in select_cells(configs, repeats=bool(configs[0].sweep.grids))]
        if configs[0].race and configs[0].dry_run:
            return dry_run_race(configs, directory, placement)
        if configs[0].race:
            outcome = run_race(configs, directory, placement, quiet)
        else:
            cells = check_cells(configs, cell_directories(configs, directory))
            if configs[0].dry_run:
                return dry_run(cells, directory, placement)
            outcome = run_sweep(cells, directory, placement, quiet=quiet)
        write_sweep_pictures(outcome, directory)
        return outcome.frame()


def dotted_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested keys with dots, and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
