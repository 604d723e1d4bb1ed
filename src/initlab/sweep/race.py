"""Fair races: the rate of every cell is tuned on separate seeds, then schemes are compared on fresh seeds at those.

A comparison at one rate for all compares how well each scheme suits that rate. Here every cell (all but seed and rate)
is first run at rates on a logarithmic grid, on `tune.seeds` seeds that take no part in the comparison; the rate with
the least mean validation loss is its own. The test set has no part in the choice. Both parts are ordinary sweeps in one
directory, so a race resumes, trains in ensembles and runs on every executor as they do.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from initlab.config import Config
from initlab.config.checks import command_line_text
from initlab.config.naming import config_hash, is_incidental, run_name
from initlab.errors import NoResultsLeft, UserError
from initlab.records import flatten
from initlab.statistics.comparisons import best_rate
from initlab.sweep.cells import Cell, cell_directories, check_cells
from initlab.sweep.placement import Placement
from initlab.sweep.results import Outcome
from initlab.sweep.run import run_sweep
from initlab.sweep.summary import all_keys, separating_keys

TUNING, FINAL = "tuning", "final"  # the value of `race` in the records of a run: its part
FIRST_TUNING_SEED = 1000
HALF_DECADES = 3  # on each side of optim.lr
EXTENSION_RATES = 2  # half decades that are added where the best rate is at the end of those tried
MAX_EXTENSIONS = 2
MAX_NAMED_CELLS = 5  # where no rate could be chosen
TUNING_LABEL = "race 1/2, tuning rates"
EXTENSION_LABEL = "race 1/2, tuning further rates"
COMPARISON_LABEL = "race 2/2, comparing schemes"


@dataclass(frozen=True)
class TuningResult:
    """The rates that the tuning chose.

    Attributes:
        rates: of every cell asked about; None where it cannot exist.
        losses: cell -> rate -> validation losses over the tuning seeds (not finite where a network diverged).
        seeds: on which rates were tuned.
        networks: how many were trained for it.
        labels: cell -> what it is called.
    """

    rates: tuple[float | None, ...]
    losses: Mapping[str, Mapping[float, Sequence[float]]]
    seeds: range
    networks: int
    labels: Mapping[str, str]

    def summary(self) -> str:
        """Return one line; cells without any validation loss, whose rate could not be chosen, are named."""
        lost = [key for key, by_rate in self.losses.items() if not any_finite(by_rate.values())]
        named = ", ".join(f"{self.labels[key]} (at {min(self.losses[key]):g})" for key in lost[:MAX_NAMED_CELLS])
        more = f" and {len(lost) - MAX_NAMED_CELLS} more" if len(lost) > MAX_NAMED_CELLS else ""
        return (
            f"race: {len(self.losses) - len(lost)} rates were chosen by validation loss on {self.networks} networks of "
            f"their own (seeds {self.seeds[0]} to {self.seeds[-1]}); "
            + (f"no rate of {named}{more} gave one, so the least was compared; " if lost else "")
            + "`initlab report` says which scheme is better, and by how much"
        )


def tune_rates(
    configs: Sequence[Config],
    directory: Path,
    placement: Placement,
    on_open: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> TuningResult:
    """Find the rate of every cell of a race; networks of an earlier launch are not run again.

    Args:
        configs: the grid.
        directory: of the sweep.
        placement: as of `run_sweep`.
        on_open: as of `run_sweep`.
        quiet: show no progress.

    Raises:
        UserError: it cannot be a race, or the tuning seeds have no validation loss; and what `run_sweep` raises.
        NoResultsLeft: every network that tuned diverged or failed.
    """
    entrants = race_configs(configs, directory)
    rates = {key: initial_rates(config) for key, config in entrants.items()}
    for extension in range(MAX_EXTENSIONS + 1):
        cells = tuning_cells(entrants, rates, directory)
        label = EXTENSION_LABEL if extension else TUNING_LABEL
        outcome = run_sweep(cells, directory, placement, on_open=on_open, quiet=quiet, label=label)
        losses = validation_losses(cells, outcome)
        best = {key: best_rate(by_rate) for key, by_rate in losses.items()}
        more = {key: extra_rates(best[key], rates[key]) for key in entrants if entrants[key].tune.rates is None}
        summaries = [outcome.results.rows[cell.directory][1] for cell in cells]
        all_failed = all(summary["status"] == "failed" for summary in summaries)
        if extension == MAX_EXTENSIONS or not any(more.values()) or all_failed:
            break
        rates = {key: [*rates[key], *more[key]] for key in entrants}
    if not any_finite(losses_of for by_rate in losses.values() for losses_of in by_rate.values()):
        raise NoResultsLeft(failed_tuning_message(summaries))
    chosen = tuple(best.get(race_key(config)) for config in configs)
    return TuningResult(chosen, losses, tuning_seeds(configs[0]), len(cells), race_labels(entrants))


def race_labels(entrants: Mapping[str, Config]) -> dict[str, str]:
    """Return what to call each cell of a race: every key that differs from the others'; alone, its readable name."""
    flats = [flatten(config.plain()) for config in entrants.values()]
    keys = separating_keys([key for key in all_keys(flats) if not is_incidental(key) and key != "seed"], flats)
    labels = [" ".join(f"{key}={command_line_text(flat.get(key))}" for key in keys if key in flat) for flat in flats]
    return dict(zip(entrants, labels if keys else [run_name(config) for config in entrants.values()], strict=True))


def any_finite(losses: Iterable[Iterable[float]]) -> bool:
    """Return whether any loss is a finite number."""
    return any(math.isfinite(loss) for group in losses for loss in group)


def failed_tuning_message(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return why a race stops after its tuning, from the summaries of the networks that tuned.

    >>> failed_tuning_message([{"status": "diverged"}, {"status": "diverged"}])
    'the race stops, for none of the 2 networks that tune has a validation loss (2 diverged): give smaller tune.rates.'
    """
    counts = Counter(summary["status"] for summary in summaries).most_common()
    statuses = ", ".join(f"{count} {status}" for status, count in counts)
    remedy = "give smaller tune.rates"
    if first := next((summary for summary in summaries if summary["status"] == "failed"), None):
        log = Path(str(first.get("path", ""))) / "run.log"
        remedy = f"the first error is {first.get('error') or 'unknown'}, in {log}"
    return (
        f"the race stops, for none of the {len(summaries)} networks that tune has a validation loss ({statuses}): "
        f"{remedy}."
    )


def race_configs(configs: Sequence[Config], directory: Path) -> dict[str, Config]:
    """Return one configuration for each cell that can exist, by `race_key`.

    Raises:
        UserError: the cells cannot race.
    """
    first = configs[0]
    if any((config.race, config.tune) != (first.race, first.tune) for config in configs):
        raise UserError("race and tune.* concern the grid as a whole: give each of them a single value.")
    seeds = tuning_seeds(first)
    for config in configs:
        if config.seed in seeds:
            raise UserError(
                f"seed={config.seed} is one that tunes in a race (seeds {seeds[0]} to {seeds[-1]}), so it cannot "
                "compare as well: choose other seeds."
            )
        if config.data.get("validation") == 0:
            raise UserError(
                "data.validation=0 leaves a race nothing to choose rates by, for the test set only reports: "
                "say for example data.validation=0.1."
            )
        if not config.optim["lr"] > 0 and config.tune.rates is None:
            raise UserError(
                f"optim.lr={command_line_text(config.optim['lr'])} has no rates around it: give tune.rates a list."
            )
    entrants: dict[str, Config] = {}
    for cell in check_cells(configs, cell_directories(configs, directory)):
        if cell.reason is None:
            rival = entrants.setdefault(race_key(cell.config), cell.config)
            if rival.optim["lr"] != cell.config.optim["lr"]:
                raise UserError(
                    f"{run_name(cell.config)} is given several rates, which a race finds by itself: leave optim.lr "
                    "out, or say which are tried by 'tune.rates=[0.01,0.03,0.1]'."
                )
    return entrants


def race_key(config: Config) -> str:
    """Return what is equal for all runs of one cell: the hash without seed and rate."""
    return config_hash(replace(config, seed=0, optim={**config.optim, "lr": 0}))


def tuning_seeds(config: Config) -> range:
    """Return the seeds by which rates are chosen, which take no part in the comparison."""
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tune.seeds)


def initial_rates(config: Config) -> list[float]:
    """Return the rates to begin with: the user's, or half a decade apart around optim.lr.

    >>> initial_rates(Config(optim={"name": "sgd", "lr": 0.01}))
    [0.00032, 0.001, 0.0032, 0.01, 0.032, 0.1, 0.32]
    """
    if config.tune.rates is not None:
        return [float(rate) for rate in config.tune.rates]
    return [shift_rate(config.optim["lr"], k) for k in range(-HALF_DECADES, HALF_DECADES + 1)]


def shift_rate(rate: float, half_decades: int) -> float:
    """Return a rate moved by half decades, rounded so that it reads well."""
    return float(f"{rate * 10 ** (half_decades / 2):.2g}")


def extra_rates(best: float, tried: Sequence[float]) -> list[float]:
    """Return what to try next where the best rate is at the end of those tried.

    >>> extra_rates(0.32, [0.1, 0.32]), extra_rates(0.1, [0.03, 0.1, 0.3])
    ([1.0, 3.2], [])
    """
    direction = (best == max(tried)) - (best == min(tried))
    return [shift_rate(best, direction * k) for k in range(1, EXTENSION_RATES + 1)] if direction else []


def tuning_cells(entrants: Mapping[str, Config], rates: Mapping[str, Iterable[float]], directory: Path) -> list[Cell]:
    """Return the cells that tune: every rate of every entrant on every tuning seed."""
    configs = [
        replace(config, seed=seed, optim={**config.optim, "lr": rate}, race=TUNING)
        for key, config in entrants.items()
        for rate in rates[key]
        for seed in tuning_seeds(config)
    ]
    return check_cells(configs, cell_directories(configs, directory))


def validation_losses(cells: Sequence[Cell], outcome: Outcome) -> dict[str, dict[float, list[float]]]:
    """Return the validation losses: cell -> rate -> one for each seed, NaN where the network did not complete.

    Raises:
        UserError: no completed network has one.
    """
    losses: dict[str, dict[float, list[float]]] = {}
    completed = 0
    for cell in cells:
        _, summary = outcome.results.rows[cell.directory]
        completed += summary["status"] == "completed"
        loss = summary.get("val_loss") if summary["status"] == "completed" else None
        by_rate = losses.setdefault(race_key(cell.config), {})
        by_rate.setdefault(cell.config.optim["lr"], []).append(math.nan if loss is None else float(loss))
    if completed and all(math.isnan(loss) for by_rate in losses.values() for each in by_rate.values() for loss in each):
        raise UserError(
            "the data have no validation split, so that a race has nothing to choose rates by: the test set only "
            "reports."
        )
    return losses


def final_config(config: Config, rate: float | None) -> Config:
    """Return a run of the comparison at its cell's rate; one that cannot exist keeps its own."""
    return replace(config, optim={**config.optim, "lr": config.optim["lr"] if rate is None else rate}, race=FINAL)


def run_race(configs: Sequence[Config], directory: Path, placement: Placement, quiet: bool = False) -> Outcome:
    """Tune and compare; the outcome has the runs of the comparison, the directory those that tuned as well."""
    tuned = tune_rates(configs, directory, placement, quiet=quiet)
    finals = [final_config(config, rate) for config, rate in zip(configs, tuned.rates, strict=True)]
    cells = check_cells(finals, cell_directories(finals, directory))
    return run_sweep(cells, directory, placement, quiet=quiet, label=COMPARISON_LABEL)
