"""An experiment: a question with a paper behind it, the grid that answers it, and criteria fixed before any run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from initlab.config.option_files import conf_dir, option_names
from initlab.errors import UserError, did_you_mean
from initlab.reproduce.measures import MEASURES
from initlab.system.yaml_text import load_yaml

MODES = ("quick", "full")
MIN_SEEDS = {"quick": 6, "full": 10}
"""The least number of seeds per cell for a verdict; a file may give more."""


@dataclass(frozen=True)
class Criterion:
    """One number that the runs give, and where it must lie for the claim to hold.

    Attributes:
        says: the criterion in words.
        measure: a row of `MEASURES`.
        arguments: of the measure.
        above: the number must be more than this; None: no bound.
        below: the number must be less than this; None: no bound.
        why: the reason for the bound.
    """

    says: str
    measure: str
    arguments: Mapping[str, Any]
    above: float | None
    below: float | None
    why: str

    def holds(self, value: float) -> bool:
        """Return whether a value lies within the bounds; NaN (could not be measured) does not.

        >>> Criterion("", "median", {}, None, 1.5, "").holds(1.2), Criterion("", "median", {}, 0.5, None, "").holds(0.2)
        (True, False)
        """
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


@dataclass(frozen=True)
class Experiment:
    """What `conf/experiment/<name>.yaml` asks: the grid is Hydra's, the rest stands in its section `verdict`.

    Attributes:
        name: of the file.
        paper: the source.
        question: that it answers.
        claim: of the paper.
        criteria: fixed before any run.
        axes: keys that the grid varies, except the seed.
        printed: what the paper printed.
        vary: a command that varies it.
        quick: overrides of the file in this mode.
        full: overrides of the file in this mode.
        seeds: how many per cell, by mode.
        tune: values of `optim.lr` among which each cell chooses its own; empty where the claim compares no schemes by
            training.
        remarks: about the result.
    """

    name: str
    paper: str
    question: str
    claim: str
    criteria: tuple[Criterion, ...]
    axes: tuple[str, ...]
    printed: str = ""
    vary: str = ""
    quick: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    tune: tuple[float, ...] = ()
    remarks: str = ""

    def seeds_in(self, mode: str) -> int:
        """Return the number of seeds per cell."""
        return max(self.seeds.get(mode, 0), MIN_SEEDS[mode])

    def overrides(self, mode: str) -> dict[str, Any]:
        """Return what the mode changes in the file."""
        return dict(self.quick if mode == "quick" else self.full)


def experiment_names() -> list[str]:
    """List the experiments that carry a verdict.

    >>> "he_2015" in experiment_names()
    True
    """
    return [name for name in option_names("experiment") if "verdict" in _read_yaml(name)]


def load_experiment(name: str) -> Experiment:
    """Read an experiment's file.

    Raises:
        UserError: no experiment has this name.
        ValueError: its section `verdict` has a key or a measure that does not exist.

    >>> load_experiment("he_2015").paper[:8]
    'He, Zhan'
    """
    known = experiment_names()
    if name not in known:
        raise UserError(
            f"There is no experiment {name}.{did_you_mean(name, known)} `initlab reproduce` lists them all."
        )
    values = _read_yaml(name)
    verdict = dict(values["verdict"])
    criteria = tuple(_parse_criterion(name, row) for row in verdict.pop("criteria"))
    tune = tuple(float(rate) for rate in verdict.pop("tune", None) or ())
    swept = [*values["hydra"]["sweeper"]["params"]]
    swept += [key for grid in values.get("sweep", {}).get("grids", []) for key in grid]
    axes = tuple(key for key in dict.fromkeys(swept) if key != "seed")
    if unknown := set(verdict) - set(Experiment.__dataclass_fields__):
        raise ValueError(f"conf/experiment/{name}.yaml: verdict.{min(unknown)} is not a key")
    return Experiment(name=name, criteria=criteria, axes=axes, tune=tune, **verdict)


def _read_yaml(name: str) -> dict[str, Any]:
    values: dict[str, Any] = load_yaml((conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def _parse_criterion(name: str, row: Mapping[str, Any]) -> Criterion:
    arguments = dict(row)
    own = {key: arguments.pop(key, None) for key in ("says", "measure", "above", "below", "why")}
    if own["measure"] not in MEASURES:
        raise ValueError(f"conf/experiment/{name}.yaml: there is no measure {own['measure']}")
    if not own["why"] or own["above"] is own["below"] is None:
        raise ValueError(f"conf/experiment/{name}.yaml: {own['says']!r} needs a bound and its reason")
    return Criterion(**own, arguments=arguments)
