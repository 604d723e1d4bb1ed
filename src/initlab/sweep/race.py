"""Fair races: the rate of every cell is tuned on seeds of its own, then schemes meet on fresh seeds at those rates.

A comparison at one rate for all compares how well each scheme suits that rate. Here every cell (all but seed and rate)
is first run at rates on a logarithmic grid, on `tune.seeds` seeds that nobody compares on; the rate with the least mean
validation loss is its own. The test set has no part in the choice. Both parts are ordinary sweeps in one directory, so
a race resumes, trains in ensembles and runs on every executor as they do.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from initlab.sweep.run import no_op, run_sweep
from initlab.sweep.summary import separating_keys
from initlab.system.escape import print

TUNING, FINAL = "tuning", "final"  # what `run_race` is in the records of a run: which part it had
FIRST_TUNING_SEED = 1000  # of those that tune
HALF_DECADES = 3  # half decades on each side of optim.lr
EXTENSION_RATES = 2  # half decades that are added where the best rate is at the end of those tried
MAX_NAMED_CELLS = 5  # cells that are named where no rate could be chosen
MAX_EXTENSIONS = 2  # how often they are
TUNING_LABEL, EXTENSION_LABEL, COMPARISON_LABEL = (
    "race 1/2, tuning rates",
    "race 1/2, tuning further rates",
    "race 2/2, comparing schemes",
)


@dataclass(frozen=True)
class TuningResult:
    """What the tuning found: the rate of every cell asked about (None: it cannot exist), and how it was found.

    tried: cell -> rate -> validation losses over the tuning seeds (not finite where one diverged).
    """

    rates: tuple[float | None, ...]
    tried: Mapping[str, Mapping[float, Sequence[float]]]
    seeds: range
    networks: int
    names: Mapping[str, str] = field(default_factory=dict)

    def said(self) -> str:
        """Say it in one line; cells without any validation loss, whose rate could not be chosen, are named."""
        least, most = self.seeds[0], self.seeds[-1]
        lost = [key for key, found in self.tried.items() if not any_finite(found.values())]
        told = ", ".join(f"{self.names.get(key, key)} (at {min(self.tried[key]):g})" for key in lost[:MAX_NAMED_CELLS])
        more = f" and {len(lost) - MAX_NAMED_CELLS} more" if len(lost) > MAX_NAMED_CELLS else ""
        return (
            f"race: {len(self.tried) - len(lost)} rates were chosen by validation loss on {self.networks} networks of "
            f"their own (seeds {least} to {most}); "
            + (f"no rate of {told}{more} gave one, so the least was compared; " if lost else "")
            + "`initlab report` says which scheme is better, and by how much"
        )


def tune_rates(
    configs: Sequence[Config],
    directory: Path,
    how: Placement,
    opened: Callable[[], None] = no_op,
    quiet: bool = False,
) -> TuningResult:
    """Find the rate of every cell of a race; what an earlier launch has found is not run again.

    Raises:
        UserError: it cannot be a race, or the tuning seeds have no validation loss; and what `run_sweep` raises.
        NothingLeft: every network that tuned diverged or failed.
    """
    entrants = race_configs(configs, directory)
    tried = {key: initial_rates(config) for key, config in entrants.items()}
    own = next(iter(entrants.values())).tune.rates is not None if entrants else True
    for extension in range(MAX_EXTENSIONS + 1):
        cells = tuning_cells(entrants, tried, directory)
        label = EXTENSION_LABEL if extension else TUNING_LABEL
        outcome = run_sweep(cells, directory, how, lambda *_: None, opened, quiet=quiet, label=label)
        losses = validation_losses(entrants, cells, outcome)
        chosen = {key: best_rate(found) for key, found in losses.items()}
        more = {key: extra_rates(chosen[key], tried[key]) for key in entrants}
        ends = [outcome.results.rows[cell.directory][1] for cell in cells]
        if (
            own
            or extension == MAX_EXTENSIONS
            or not any(more.values())
            or all(end["status"] == "failed" for end in ends)
        ):
            if not any_finite(rates for found in losses.values() for rates in found.values()):
                raise NoResultsLeft(failed_tuning_message(ends))
            break
        tried = {key: [*tried[key], *more[key]] for key in entrants}
    rates = tuple(chosen.get(race_key(config)) for config in configs)
    return TuningResult(rates, losses, tuning_seeds(configs[0]), len(cells), race_labels(entrants))


def race_labels(entrants: Mapping[str, Config]) -> dict[str, str]:
    """Return what to call each cell of a race: every key that tells it from the others; alone, its readable name."""
    flats = [flatten(config.plain()) for config in entrants.values()]
    known = dict.fromkeys(key for flat in flats for key in flat if not is_incidental(key) and key != "seed")
    keys = separating_keys(list(known), flats)
    told = [" ".join(f"{key}={command_line_text(flat.get(key))}" for key in keys if key in flat) for flat in flats]
    return dict(zip(entrants, told if keys else [run_name(config) for config in entrants.values()], strict=True))


def any_finite(losses: Iterable[Iterable[float]]) -> bool:
    """Is there any loss that is a number?"""
    return any(math.isfinite(loss) for some in losses for loss in some)


def failed_tuning_message(ends: Sequence[Mapping[str, Any]]) -> str:
    """Say why a race stops after its tuning, from how the networks that tuned ended.

    >>> failed_tuning_message([{"status": "diverged"}, {"status": "diverged"}])
    'the race stops, for none of the 2 networks that tune has a validation loss (2 diverged): give smaller tune.rates.'
    """
    counts = Counter(end["status"] for end in ends).most_common()
    told = ", ".join(f"{count} {status}" for status, count in counts)
    first = next((end for end in ends if end["status"] == "failed"), None)
    remedy = (
        "give smaller tune.rates"
        if first is None
        else f"the first error is {first.get('error') or 'unknown'}, in {Path(str(first.get('path', ''))) / 'run.log'}"
    )
    return f"the race stops, for none of the {len(ends)} networks that tune has a validation loss ({told}): {remedy}."


def race_configs(configs: Sequence[Config], directory: Path) -> dict[str, Config]:
    """Return one configuration for each cell that can exist, by what tells it apart from the others.

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
    cells = check_cells(configs, cell_directories(configs, directory))
    found: dict[str, Config] = {}
    for cell in cells:
        if cell.reason is None:
            rival = found.setdefault(race_key(cell.config), cell.config)
            if rival.optim["lr"] != cell.config.optim["lr"]:
                raise UserError(
                    f"{run_name(cell.config)} is given several rates, which a race finds by itself: leave optim.lr "
                    "out, or say which are tried by 'tune.rates=[0.01,0.03,0.1]'."
                )
    return found


def race_key(config: Config) -> str:
    """Return what is equal for all runs of one cell: the hash without seed and rate."""
    return config_hash(replace(config, seed=0, optim={**config.optim, "lr": 0}))


def tuning_seeds(config: Config) -> range:
    """Return the seeds that choose, which nobody compares on."""
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tune.seeds)


def initial_rates(config: Config) -> list[float]:
    """Return the rates to begin with: the user's, or half a decade apart around optim.lr.

    >>> initial_rates(Config(optim={"name": "sgd", "lr": 0.01}))
    [0.00032, 0.001, 0.0032, 0.01, 0.032, 0.1, 0.32]
    """
    if config.tune.rates is not None:
        return [float(rate) for rate in config.tune.rates]
    return [shift_rate(config.optim["lr"], k) for k in range(-HALF_DECADES, HALF_DECADES + 1)]


def shift_rate(rate: float, count: int) -> float:
    """Move a rate by half decades, rounded so that it reads well."""
    return float(f"{rate * 10 ** (count / 2):.2g}")


def extra_rates(best: float, tried: Sequence[float]) -> list[float]:
    """Return what to try next where the best rate is at the end of those tried.

    >>> extra_rates(0.32, [0.1, 0.32]), extra_rates(0.1, [0.03, 0.1, 0.3])
    ([1.0, 3.2], [])
    """
    way = (best == max(tried)) - (best == min(tried))
    return [shift_rate(best, way * k) for k in range(1, EXTENSION_RATES + 1)] if way else []


def tuning_cells(entrants: Mapping[str, Config], tried: Mapping[str, Iterable[float]], directory: Path) -> list[Cell]:
    """Return the cells that tune: every rate of every entrant on every tuning seed."""
    configs = [
        replace(config, seed=seed, optim={**config.optim, "lr": rate}, race=TUNING)
        for key, config in entrants.items()
        for rate in tried[key]
        for seed in tuning_seeds(config)
    ]
    return check_cells(configs, cell_directories(configs, directory))


def validation_losses(
    entrants: Mapping[str, Config], cells: Sequence[Cell], outcome: Outcome
) -> dict[str, dict[float, list[float]]]:
    """Return the validation losses: cell -> rate -> one for each seed, NaN where it diverged.

    Raises:
        UserError: there is none at all.
    """
    found: dict[str, dict[float, list[float]]] = {key: {} for key in entrants}
    ended = []
    for cell in cells:
        _, summary = outcome.results.rows[cell.directory]
        whole = summary["status"] == "completed"
        loss = summary.get("val_loss") if whole else None
        ended += [loss] if whole else []
        rates = found[race_key(cell.config)]
        rates.setdefault(cell.config.optim["lr"], []).append(float("nan") if loss is None else float(loss))
    if ended and not any(loss is not None and loss == loss for loss in ended):
        raise UserError(
            "the data have no validation split, so that a race has nothing to choose rates by: the test set only "
            "reports."
        )
    return found


def final_config(config: Config, rate: float | None) -> Config:
    """Return a run of the comparison at its cell's rate; one that cannot exist keeps its own."""
    return replace(config, optim={**config.optim, "lr": config.optim["lr"] if rate is None else rate}, race=FINAL)


def run_race(configs: Sequence[Config], directory: Path, how: Placement, quiet: bool = False) -> Outcome:
    """Tune and compare; the outcome has the runs of the comparison, the directory those that tuned as well."""
    tuned = tune_rates(configs, directory, how, quiet=quiet)
    finals = [final_config(config, rate) for config, rate in zip(configs, tuned.rates, strict=True)]
    cells = check_cells(finals, cell_directories(finals, directory))
    return run_sweep(cells, directory, how, lambda *_: None, quiet=quiet, label=COMPARISON_LABEL)


def dry_run_race(configs: Sequence[Config], directory: Path, how: Placement) -> Any:
    """Print the plan of the tuning, and how many networks compare afterwards; write nothing."""
    from initlab.sweep.dry_run import dry_run

    entrants = race_configs(configs, directory)
    cells = tuning_cells(entrants, {key: initial_rates(config) for key, config in entrants.items()}, directory)
    frame = dry_run(cells, directory, how)
    fresh = sum(race_key(config) in entrants for config in configs)
    print(
        f"That tunes {len(entrants)} rates, with more where the best one is at the end of those tried; then {fresh} "
        "networks compare on fresh seeds."
    )
    return frame
