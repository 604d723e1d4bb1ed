"""Races: the rate is chosen by validation loss on seeds of its own, the comparison is on fresh ones, ties are ties."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_sweeps import write_summary

import initlab
from initlab.cli.report import print_run_table
from initlab.config import Config
from initlab.config.grid import compose_grid
from initlab.errors import NoResultsLeft, UserError
from initlab.records import load
from initlab.report import write_report
from initlab.report.pairs import cell_summaries as cell_table
from initlab.report.pairs import compare_schemes
from initlab.report.study import build_study
from initlab.statistics.comparisons import best_rate
from initlab.sweep import race as racing
from initlab.sweep.placement import Placement
from initlab.sweep.progress import SweepProgressLine

ROOT = Path(__file__).parents[1]
SMALL = {"act": "relu", "depth": 1, "width": 8, "train__steps": 30, "data": "gaussian", "log__histograms": 1}


def run_race(root, **keywords):
    return initlab.sweep(race=True, sweep__root=str(root), sweep__name="race", quiet=True, **{**SMALL, **keywords})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A race of three schemes, two of them one law under two names; five fresh seeds."""
    root = tmp_path_factory.mktemp("race")
    run_race(root, init=["lecun_normal", "normal_rule", "zeros"], seed=range(5), tune__rates=[0.01, 0.1])
    return root


@pytest.fixture(scope="module")
def runs(root):
    return load(root)


def test_tuning_and_comparing_seeds_are_disjoint(runs):
    tuning, final = (runs[runs["race"] == part] for part in (racing.TUNING, racing.FINAL))
    assert len(tuning) == 3 * 2 * 3
    assert len(final) == 3 * 5
    assert set(tuning["seed"]) == {1000, 1001, 1002}
    assert set(final["seed"]) == set(range(5))


def test_every_cell_compares_at_the_rate_with_the_least_validation_loss(runs):
    for name, own in runs.groupby("init"):
        tuning = own[own["race"] == racing.TUNING]
        best = tuning.groupby("optim.lr")["val_loss"].mean().idxmin()
        assert set(own.loc[own["race"] == racing.FINAL, "optim.lr"]) == {best}, name


def test_equal_schemes_tie(runs):
    found = compare_schemes(build_study(runs).runs, "test_accuracy")
    pair = found[(found["first"] == "lecun_normal") & (found["second"] == "normal_rule")].iloc[0]
    assert pair["verdict"] == "smaller than seed noise"
    assert pair["difference"] == 0
    assert pair["n"] == 5


def test_a_scheme_that_cannot_learn_loses(runs):
    found = compare_schemes(build_study(runs).runs, "test_accuracy")
    assert set(found.loc[found["second"] == "zeros", "verdict"]) == {"better"}
    assert set(found["seeds"]) == {"fresh seeds"}


def test_the_report_tells_cells_from_fresh_seeds_only(runs):
    found = cell_table(build_study(runs).runs, "test_accuracy")
    best = found[found["best_rate"]]
    assert best["n"].tolist() == [5, 5, 5]
    for row in best.to_dict("records"):
        own = runs[(runs["init"] == row["scheme"]) & (runs["race"] == racing.FINAL)]
        assert row["mean"] == pytest.approx(own["test_accuracy"].mean())


def test_a_run_that_is_there_is_not_run_again(root, runs):
    before = {path: (Path(path) / "summary.json").stat().st_mtime_ns for path in runs["path"]}
    run_race(root, init=["lecun_normal", "normal_rule", "zeros"], seed=range(5), tune__rates=[0.01, 0.1])
    assert {path: (Path(path) / "summary.json").stat().st_mtime_ns for path in load(root)["path"]} == before


def doctor(runs, part, change):
    for path in runs.loc[runs["race"] == part, "path"]:
        summary = json.loads((Path(path) / "summary.json").read_text())
        change(summary, load(path)["optim.lr"].iloc[0])
        write_summary(Path(path), summary)


def rates_of(frame):
    return set(frame["optim.lr"])


def test_the_test_set_takes_no_part_in_the_choice(tmp_path):
    axes = {"init": "he_normal", "seed": range(1), "tune__rates": [0.01, 0.1], "tune__seeds": 2}
    first = rates_of(run_race(tmp_path, **axes))
    other = {0.01, 0.1} - first

    def contrary(key, good):
        def change(summary, rate):
            summary[key] = good if rate in other else 1 - good

        return change

    for key, good in (("test_accuracy", 1.0), ("test_loss", 0.0), ("val_accuracy", 1.0), ("accuracy", 1.0)):
        doctor(load(tmp_path), racing.TUNING, contrary(key, good))
    assert rates_of(run_race(tmp_path, **axes)) == first
    # The same lie about the validation loss is believed.
    doctor(load(tmp_path), racing.TUNING, contrary("val_loss", 0.0))
    assert rates_of(run_race(tmp_path, **axes)) == other


def test_a_race_that_was_stopped_goes_on(tmp_path):
    axes = {"init": ["he_normal", "zeros"], "seed": range(2), "tune__rates": [0.01, 0.1], "tune__seeds": 2}
    whole = run_race(tmp_path, **axes)
    runs = load(tmp_path)
    for path in [*runs.loc[runs["race"] == racing.TUNING, "path"][1:3], *whole["path"][:1]]:
        (Path(path) / "summary.json").unlink()
    again = run_race(tmp_path, **axes)
    columns = ["init", "seed", "optim.lr", "status", "test_loss", "path"]
    pd.testing.assert_frame_equal(again[columns], whole[columns])
    assert set(load(tmp_path)["status"]) == {"completed"}


def test_new_seeds_join_without_tuning_again(tmp_path):
    axes = {"init": "he_normal", "tune__rates": [0.01, 0.1], "tune__seeds": 2}
    run_race(tmp_path, seed=[0], **axes)
    run_race(tmp_path, seed=range(3), **axes)
    assert load(tmp_path)["race"].value_counts().to_dict() == {racing.TUNING: 4, racing.FINAL: 3}


def test_progress_names_the_phases(tmp_path, monkeypatch):
    told = []

    class Line(SweepProgressLine):
        def __init__(self, label, **more):
            told.append(label)
            super().__init__(label, **more)

    monkeypatch.setattr("initlab.sweep.run.SweepProgressLine", Line)
    axes = {**SMALL, "init": "he_normal", "train__steps": 2}
    initlab.sweep(race=True, tune__rates=[0.01, 0.1], tune__seeds=1, sweep__root=str(tmp_path / "race"), **axes)
    assert told == [racing.TUNING_LABEL, racing.COMPARISON_LABEL]
    told.clear()
    initlab.sweep(**axes, sweep__root=str(tmp_path))
    assert told == ["sweep"]
    assert len({racing.TUNING_LABEL, racing.EXTENSION_LABEL, racing.COMPARISON_LABEL}) == 3


def test_few_seeds_cannot_tell(tmp_path):
    run_race(tmp_path, init=["he_normal", "zeros"], seed=range(4), tune__rates=[0.01, 0.1], tune__seeds=1)
    found = write_report([tmp_path]).data
    assert (found.payload["pairs"], found.payload["few"]) == ([], [4])


# ---- the choice itself, with a sweep that only says what it would have found


@pytest.fixture
def found(monkeypatch):
    """Let every run of the tuning end as `ending(config)` says, and return what was run."""
    asked = []

    def pretend(ending):
        def run_sweep(cells, directory, how, *_, **__):
            asked.append([(cell.config.init["name"], cell.config.optim["lr"], cell.config.seed) for cell in cells])
            rows = {cell.directory: ({}, ending(cell.config)) for cell in cells}
            return SimpleNamespace(results=SimpleNamespace(rows=rows))

        monkeypatch.setattr(racing, "run_sweep", run_sweep)
        return asked

    return pretend


def ended(loss):
    return {"status": "completed", "val_loss": loss} if math.isfinite(loss) else {"status": "diverged"}


def config(**keywords):
    return Config(**{"data": {"name": "gaussian", "validation": 0.1}, "optim": {"name": "sgd", "lr": 0.01}, **keywords})


def valley(at):
    """A validation loss that is least at a rate, and diverges a decade above it."""
    return lambda config: ended(
        abs(math.log10(config.optim["lr"] / at)) if config.optim["lr"] < 10 * at else float("nan")
    )


@pytest.mark.parametrize(("at", "tried"), [(0.01, 7), (0.1, 7), (1.0, 9), (1e-4, 9), (1e-6, 11), (1e9, 11)])
def test_a_best_rate_at_the_end_is_followed_further(found, at, tried):
    found(valley(at))
    tuned = racing.tune_rates([config()], Path("/nowhere"), Placement())
    rates = next(iter(tuned.losses.values()))
    assert len(rates) == tried
    assert tuned.rates == (min(rates, key=lambda rate: abs(math.log10(rate / at))),)


def test_rates_of_the_users_own_are_all_that_is_tried(found):
    asked = found(valley(10.0))
    mine = config()
    mine.tune.rates = [0.1, 1]
    assert racing.tune_rates([mine], Path("/nowhere"), Placement()).rates == (1.0,)
    assert len(asked) == 1
    assert {rate for _, rate, _ in asked[0]} == {0.1, 1.0}


def test_every_cell_has_a_rate_of_its_own(found):
    found(lambda config: valley(0.1 if config.init["name"] == "zeros" else 0.01)(config))
    configs = [config(init={"name": name}, seed=seed) for name in ("zeros", "ones") for seed in range(2)]
    assert racing.tune_rates(configs, Path("/nowhere"), Placement()).rates == (0.1, 0.1, 0.01, 0.01)


def test_a_rate_that_loses_fewer_seeds_is_better():
    nan = float("nan")
    assert best_rate({0.1: [0.1, nan, 0.1], 0.01: [0.9, 0.9, 0.9]}) == 0.01
    assert best_rate({0.1: [nan, nan], 0.01: [0.9, nan]}) == 0.01
    assert best_rate({0.1: [nan], 0.01: [float("inf")]}) == 0.01
    assert best_rate({0.1: [0.2], 0.01: [0.2]}) == 0.01


FAILED = {"status": "failed", "error": "RuntimeError: the cable was cut", "path": "/x/a-run"}


@pytest.mark.parametrize(
    ("ends", "words", "sweeps"),
    [
        ((ended(math.nan),), ("diverged)", "tune.rates"), 3),
        ((FAILED,), ("failed)", "RuntimeError: the cable was cut", "/x/a-run/run.log"), 1),
        ((FAILED, ended(math.nan)), ("failed", "diverged", "the cable was cut"), 3),
        ((ended(math.inf),), ("diverged)",), 3),
    ],
)
def test_a_race_without_a_single_loss_stops_and_says_why(found, ends, words, sweeps):
    calls = iter(range(10**6))
    asked = found(lambda _: ends[next(calls) % len(ends)])
    with pytest.raises(NoResultsLeft) as caught:
        racing.tune_rates([config(init={"name": name}) for name in ("zeros", "ones")], Path("/nowhere"), Placement())
    assert all(word in str(caught.value) for word in ("race stops", *words)), caught.value
    assert "\n" not in str(caught.value)
    assert len(asked) == sweeps


def test_cells_whose_rate_could_not_be_chosen_are_named_by_what_differs(found):
    lost = lambda c: c.width == 8 and c.init["name"] == "zeros"  # noqa: E731
    found(lambda c: ended(math.nan) if lost(c) else valley(0.01)(c))
    configs = [config(init={"name": name}, width=width) for name in ("zeros", "ones") for width in (8, 16)]
    said = racing.tune_rates(configs, Path("/nowhere"), Placement()).summary()
    assert "3 rates were chosen" in said
    assert "no rate of init=zeros width=8 (at 3.2e-06) gave one" in said
    found(valley(0.01))
    said = racing.tune_rates(configs, Path("/nowhere"), Placement()).summary()
    assert "4 rates were chosen" in said
    assert "gave one" not in said


def test_no_validation_loss_is_said(found):
    found(lambda config: {"status": "completed", "val_loss": None})
    with pytest.raises(UserError, match="validation split"):
        racing.tune_rates([config()], Path("/nowhere"), Placement())


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"seed": [0, 1001]}, ("seed=1001", "1000 to 1002", "other seeds")),
        ({"data__validation": 0}, ("data.validation=0", "data.validation=0.1")),
        ({"optim__lr": [0.01, 0.1]}, ("optim.lr", "tune.rates")),
        ({"optim__lr": 0}, ("optim.lr=0", "tune.rates")),
        ({"tune__seeds": 0}, ("tune.seeds=0", "tune.seeds=3")),
        ({"tune__rates": [0.1, -1]}, ("tune.rates", "positive", "tune.rates=[0.01,0.03,0.1]")),
        ({"tune__rates": [0.1]}, ("tune.rates", "two")),
        ({"tune__rates": [0.1, 0.1]}, ("tune.rates", "different")),
        ({"race": "tuning"}, ("race=tuning", "true or false")),
    ],
)
def test_what_cannot_race_is_refused_before_anything_is_written(tmp_path, axes, words):
    with pytest.raises(UserError) as caught:
        initlab.sweep(**{"race": True, **SMALL, **axes}, sweep__root=str(tmp_path), quiet=True)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cells_must_agree_about_the_race():
    other = config(seed=1)
    other.tune.seeds = 2
    with pytest.raises(UserError, match="single value"):
        racing.race_configs([config(), other], Path("/nowhere"))


def test_the_experiment_is_a_race_of_fresh_seeds():
    configs, directory = compose_grid(["experiment=race", "act=tanh"])
    assert {c.race for c in configs} == {True}
    assert {c.act["name"] for c in configs} == {"tanh"}
    assert len({c.seed for c in configs}) >= 10
    assert directory.name == "race"


# ---- from the command line


def door(*arguments, cwd):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


GRID = ("-m", "race=true", "init=he_normal,zeros,dirac", "act=relu", "depth=1", "width=8", "train.steps=20")
GRID += ("data=gaussian", "seed=range(2)", "tune.seeds=1", "sweep.name=r", "log.histograms=0")


@pytest.mark.timeout(1200)
def test_the_command_line_races_resumes_and_reports(tmp_path):
    planned = door(*GRID, "dry_run=true", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "tunes 2 rates" in planned.stdout
    assert "4 networks compare" in planned.stdout
    assert list(tmp_path.iterdir()) == []
    first = door(*GRID, "hydra.output_subdir=.hydra", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "race: 2 rates were chosen by validation loss" in first.stdout
    assert "skipped: 2 × init=dirac" in first.stdout
    sweep = tmp_path / "outputs" / "sweeps" / "r"
    runs = load(sweep)
    finals = runs[(runs["race"] == "final") & (runs["status"] == "completed")]
    assert len(finals) == 4
    # Hydra's own files say what was run, at the rate that was found.
    for row in finals.to_dict("records"):
        overrides = (Path(row["path"]) / ".hydra" / "overrides.yaml").read_text()
        assert f"optim.lr={row['optim.lr']!r}" in overrides
    assert (sweep / "sweep").is_dir()
    second = door(*GRID, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "4 of 4 networks are done already" in second.stderr + second.stdout
    code = "from initlab.cli.main import main; main()"
    told = subprocess.run([sys.executable, "-c", code, "report", str(sweep)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "1 pair of schemes cannot be compared: 2 common seeds, and it takes 5" in told.stdout


def test_the_command_line_stops_a_race_whose_networks_all_fail(tmp_path):
    (tmp_path / "broken.py").write_text("def fill(*args, **kwargs):\n    raise RuntimeError('cut')\n")
    given = [word for word in GRID if not word.startswith(("init=", "act="))]
    done = door(*given, "init=custom", "init.target=broken:fill", "act=relu,tanh", "tune.rates=[0.1,1]", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (last,) = [line for line in done.stderr.splitlines() if "race stops" in line]
    assert "RuntimeError: cut" in last
    assert "rates were chosen" not in done.stdout
    runs = load(tmp_path / "outputs" / "sweeps" / "r")
    assert set(runs["race"]) == {"tuning"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("race=true",), "add -m"),
        ((*GRID, "hydra/launcher=basic"), "hydra/launcher"),
        ((*GRID, "optim.lr=0.1,0.01"), "tune.rates"),
        ((*GRID, "tune.sedes=1"), "tune.seeds"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tmp_path, arguments, words):
    done = door(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.startswith("initlab: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_the_table_of_a_race_is_of_its_comparison(root, capsys):
    print_run_table([str(root)], [""], ["val_loss"], None, "csv", False, False)
    said = capsys.readouterr()
    assert ["5" in line.split(",") for line in said.out.splitlines()[1:]] == [True] * 3
    assert "18 runs that tuned the rates of a race are left out" in said.err
