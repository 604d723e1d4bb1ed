"""Experiments: files that say what they mean, measures against hand counts, verdicts that can go either way."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from initlab.cli.reproduce import COSTS
from initlab.cli.reproduce import experiment_row as listed
from initlab.config.grid import compose_grid, override_text
from initlab.reproduce.judge import decide, headline, judge, split_seeds, weakest_verdict
from initlab.reproduce.measures import MEASURES
from initlab.reproduce.pages import experiment_page, judge_record, read_verdict, summary_table, write_pages
from initlab.reproduce.run import FIRST_SEED
from initlab.reproduce.selection import Frames
from initlab.reproduce.specification import MIN_SEEDS, MODES, Criterion, experiment_names, load_experiment
from initlab.sweep.race import FIRST_TUNING_SEED
from initlab.system.terminal import format_duration

ROOT = Path(__file__).parents[1]
SCIENCE = {
    *("wandb_five_methods", "glorot_2010", "saxe_2014", "he_2015", "poole_2016", "schoenholz_2017", "pennington_2017"),
    *("xiao_2018", "hanin_2018", "hayou_2019", "lsuv_2016", "rezero_2021", "gelu_silu_critical"),
    *("folklore", "sinusoidal_2025", "zero_2022", "rescue", "norm_vs_init", "depth_residual"),
}


def test_every_experiment_is_there():
    assert set(experiment_names()) >= SCIENCE


@pytest.mark.parametrize("name", experiment_names())
@pytest.mark.parametrize("mode", MODES)
def test_files_say_what_they_mean(name, mode):
    about = load_experiment(name)
    assert about.question.endswith("?")
    assert about.paper
    assert about.claim
    assert about.vary
    assert len(about.criteria) >= 2
    assert all(c.says and c.why for c in about.criteria)
    assert len(about.tune) in (0, 5), "rates are tuned over five values"
    assert about.seeds_in(mode) >= MIN_SEEDS[mode]
    given = {"experiment": name, **about.overrides(mode), "seed": [4000, 4001]}
    configs, _ = compose_grid([override_text(key, value) for key, value in given.items()])
    cells = {json.dumps([config.plain() | {"seed": 0}], default=str) for config in configs}
    assert 2 * len(cells) == len(configs), "every cell has every seed"


def test_judged_seeds_tune_nothing():
    assert FIRST_SEED > FIRST_TUNING_SEED + 100


@pytest.mark.parametrize("name", [name for name in experiment_names() if load_experiment(name).tune])
def test_rates_are_a_factor_three_apart(name):
    rates = np.array(load_experiment(name).tune)
    assert np.allclose(rates[1:] / rates[:-1], 3.16, atol=0.4)


def frame(**values):
    """Four seeds each of two cells."""
    rows = {"init": ["a"] * 4 + ["b"] * 4, "seed": [1, 2, 3, 4] * 2, "depth": [3] * 4 + [9] * 4}
    rows |= {"status": ["completed"] * 8, "path": [f"r{k}" for k in range(8)], "width": [10] * 8}
    return pd.DataFrame(rows | values)


LOSS = {"loss": [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0], "val_accuracy": [0.5] * 4 + [0.1] * 4}


@pytest.mark.parametrize(
    ("measure", "given", "expected"),
    [
        ("median", {"metric": "loss", "at": {"init": "a"}}, 2.5),
        ("median_at_largest", {"metric": "loss", "key": "depth"}, 25.0),
        ("largest", {"metric": "loss", "cells": [{"init": "a"}, {"init": "b"}]}, 25.0),
        ("smallest", {"metric": "loss", "cells": [{"init": "a"}, {"init": "b"}]}, 2.5),
        ("spread", {"metric": "loss", "cells": [{"init": "a"}, {"init": "b"}]}, 22.5),
        ("difference", {"metric": "loss", "at": {"init": "a"}, "than": {"init": "b"}}, -22.5),
        ("ratio", {"metric": "loss", "at": {"init": "b"}, "than": {"init": "a"}}, 10.0),
        ("distance", {"metric": "loss", "to": 2.0, "at": {"init": "a"}}, 2.0),
        ("least_over", {"metric": "val_accuracy", "key": "init"}, 0.1),
        ("rank_correlation", {"metric": "val_accuracy", "key": "depth"}, -1.0),
        ("best_key_at_largest_depth", {"metric": "loss", "key": "depth"}, 9.0),
    ],
)
def test_measures_of_runs(measure, given, expected):
    assert MEASURES[measure](Frames(frame(**LOSS), pd.DataFrame()), **given) == pytest.approx(expected)


def test_a_diverged_run_is_a_result():
    runs = frame(**LOSS)
    runs.loc[2:3, "status"] = "diverged"
    assert MEASURES["median"](Frames(runs, runs), metric="loss", at={"init": "a"}) == math.inf
    assert MEASURES["median"](Frames(runs, runs), metric="val_accuracy", at={"init": "a"}) == pytest.approx(0.25)


def layers(q, source="measured", init="a"):
    """One network's rows of q over hidden layers and a readout."""
    rows = [("r", init, 0, f"hidden.{k}", k + 1, "q", value, source) for k, value in enumerate(q)]
    rows.append(("r", init, 0, "readout", len(q) + 1, "q", 1e9, source))
    return pd.DataFrame(rows, columns=["path", "init", "step", "layer", "index", "stat", "value", "source"])


@pytest.mark.parametrize(
    ("measure", "given", "expected"),
    [
        ("recursion", {}, 0.5),
        ("across_layers", {}, 4.0),
        ("last_layer", {}, 1.0),
        ("log_slope", {}, -math.log(2)),
        ("extreme", {"largest": True}, 4.0),
        ("extreme", {"largest": False}, 1.0),
    ],
)
def test_measures_of_layers(measure, given, expected):
    rows = pd.concat([layers([4.0, 2.0, 1.0]), layers([4.0, 2.0, 2.0], "predicted")])
    assert MEASURES[measure](Frames(frame(), rows), stat="q", **given) == pytest.approx(expected)


def test_variance_of_log_lengths_is_counted_per_layer_over_width():
    logs = np.random.default_rng(0).normal(size=4000) * np.sqrt(5 * 2 / 10)
    rows = pd.concat(layers([1.0, 7.0, math.exp(log)]).assign(path=f"r{k}") for k, log in enumerate(logs))
    found = MEASURES["log_variance_per"](Frames(frame(), rows), stat="q")
    # The standard error of a variance of n Gaussian numbers is √(2/n) = 2.2 %; 5 of them: one false alarm in 10⁶.
    assert found == pytest.approx(5, rel=0.11)


def test_trainable_depth_is_theorys():
    runs = pd.DataFrame(
        {"act": "tanh", "init.gain": [1.0, 1.0], "init.sigma_b": 0.05**0.5, "depth": [10, 60], "status": "completed"}
    ).assign(val_accuracy=[0.8, 0.1])
    # SCIENCE.md: ξ_c = 3.6270 at σ_w² = 1, σ_b² = 0.05: 6 ξ_c = 21.8.
    for factor, expected in ((0.5, 0.8), (0.45, math.nan)):
        given = {"metric": "val_accuracy", "side": "shallower", "factor": factor}
        assert MEASURES["beside_trainable_depth"](Frames(runs, runs), **given) == pytest.approx(expected, nan_ok=True)
    deeper = MEASURES["beside_trainable_depth"](Frames(runs, runs), metric="val_accuracy", side="deeper", factor=1.8)
    assert deeper == pytest.approx(0.1)
    assert MEASURES["rank_with_trainable_depth"](Frames(runs, runs), metric="val_accuracy") == pytest.approx(-1)


def judged(losses, above=None, below=1.5):
    runs = frame(loss=[*losses, *losses], val_accuracy=0.5)
    criterion = Criterion("", "median", {"metric": "loss", "at": {"init": "a"}}, above, below, "because")
    about = replace(load_experiment("he_2015"), criteria=(criterion,))
    return judge(about, Frames(runs, runs))


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0], "holds"),
        ([2.0, 2.0, 2.0, 2.0], "does not hold"),
        ([1.0, 2.0, 1.0, 2.0], "undecided"),  # seeds 1 and 3 say yes, 2 and 4 no
        ([1.0, 1.45, 1.0, 1.45], "undecided"),  # both halves say yes, one of them by less than their distance
        ([1.0, 1.3, 1.0, 1.3], "holds"),
        ([1.6, 2.4, 1.6, 2.4], "undecided"),
        ([math.inf] * 4, "does not hold"),
        ([1.0, math.inf, 1.0, math.inf], "undecided"),
    ],
)
def test_a_verdict_that_flips_between_halves_is_undecided(losses, verdict):
    found = judged(losses)
    assert found[0].verdict == weakest_verdict([each.verdict for each in found]) == verdict


def test_machines_that_differ_by_what_seeds_do_hardly_ever_decide_in_opposite_ways():
    """A claim whose truth is the bound itself, and two machines: half of the seeds' noise is common to them."""
    generator = np.random.default_rng(0)
    criterion = Criterion("", "median", {}, None, 0.0, "because")

    def verdicts(common):
        return [decide(criterion, common + generator.normal(size=2)) for _ in range(2)]

    pairs = [verdicts(generator.normal(size=2)) for _ in range(20_000)]
    opposite = np.mean([set(pair) == {"holds", "does not hold"} for pair in pairs])
    # Without clearance it is 5 %. Three standard errors of 20,000 pairs above 2 %: one false alarm in 740.
    assert opposite <= 0.02 + 3 * np.sqrt(0.02 * 0.98 / 20_000)
    bare = np.mean([decide(criterion, generator.normal(size=2)) != "undecided" for _ in range(20_000)])
    assert bare == pytest.approx(0.295, abs=3 * np.sqrt(0.295 * 0.705 / 20_000))


def test_stored_verdicts_follow_from_their_numbers():
    for name in experiment_names():
        record = read_verdict(PAGES, name)
        assert record == judge_record(record), "run scripts/write_pages.py"


def test_the_list_shows_what_each_experiment_cost(tmp_path):
    costs = json.loads(COSTS.read_text())
    assert costs == {name: read_verdict(PAGES, name)["seconds"] for name in experiment_names()}, (
        "run scripts/write_pages.py"
    )
    rows = {
        row["name"]: row["cost"] for row in (listed(load_experiment(name), tmp_path) for name in experiment_names())
    }
    assert all(rows[name] == f"{format_duration(seconds)} on two cores" for name, seconds in costs.items())
    (tmp_path / "he_2015-quick").mkdir()
    (tmp_path / "he_2015-quick" / "verdict.json").write_text('{"seconds": 75, "verdict": "holds"}')
    assert listed(load_experiment("he_2015"), tmp_path)["cost"] == "1 min 15 s here"


def test_halves_are_disjoint_and_whole():
    first, second = split_seeds(list(range(7)))
    assert sorted(first + second) == list(range(7))
    assert not set(first) & set(second)


def test_a_criterion_about_runs_that_are_not_there_does_not_hold():
    criterion = Criterion("", "median", {"metric": "loss", "at": {"init": "nobody"}}, None, 1.5, "because")
    runs = frame(**LOSS)
    (found,) = judge(replace(load_experiment("he_2015"), criteria=(criterion,)), Frames(runs, runs))
    assert found.verdict == "does not hold"
    assert "nobody" in found.problem


def test_headlines():
    assert headline("holds", "does not hold") == "holds only at the untuned rate"
    assert headline("does not hold", "undecided") == "undecided"
    assert headline("holds", None) == "holds"


def call(*arguments, cwd, env=None):
    code = "from initlab.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "reproduce", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_list_and_refusals(tmp_path):
    found = call("--json", cwd=tmp_path)
    assert {row["name"] for row in json.loads(found.stdout)} >= SCIENCE
    wrong = call("he_2016", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Did you mean 'he_2015'" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


MINE = """
# @package _global_
depth: 1
width: 4
data: {train_size: 60, test_size: 20}
defaults:
  - override /data: gaussian
train: {batch_size: 20, steps: 2}
sweep: {name: mine}
hydra:
  mode: MULTIRUN
  sweeper: {params: {init: "he_normal,zeros", seed: range(2)}}
verdict:
  paper: none
  question: Does one file add an experiment?
  claim: It does.
  criteria:
    - {says: zeros keep their loss, measure: median, metric: loss, at: {init: zeros}, above: 0, why: a loss is positive}
    - {says: the signal keeps its size, measure: last_layer, stat: q, at: {init: he_normal}, above: 0, why: He 2015}
"""


def test_one_file_adds_an_experiment(tmp_path):
    (tmp_path / "src").mkdir()
    for package in ("initlab", "hydra_plugins"):
        (tmp_path / "src" / package).symlink_to(ROOT / "src" / package)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(MINE)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = call("mine", "--json", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert (record["verdict"], record["runs"], record["question"]) == ("holds", 12, "Does one file add an experiment?")


@pytest.mark.slow
def test_one_experiment_from_the_command_line(tmp_path):
    found = call("glorot_2010", "--root", str(tmp_path), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    directory = tmp_path / "glorot_2010-quick"
    record = json.loads((directory / "verdict.json").read_text())
    assert record["verdict"] == "holds"
    assert record["runs"] == 24
    assert len(record["seeds"]) == 6
    assert {"report.html", "figure.svg", "verdict.json", "untuned"} == {path.name for path in directory.iterdir()}
    assert "<h1>glorot_2010, quick: " in (directory / "report.html").read_text(encoding="utf-8")
    assert "→ holds" in found.stdout
    again = call("glorot_2010", "--root", str(tmp_path), cwd=tmp_path)
    assert "24 of 24 networks are done already" in again.stderr


PAGES = ROOT / "docs" / "experiments"


@pytest.mark.parametrize("name", experiment_names())
def test_pages_say_what_the_files_say(name):
    assert (PAGES / f"{name}.md").read_text() == experiment_page(load_experiment(name), read_verdict(PAGES, name)), (
        "run scripts/write_pages.py"
    )


def test_the_table_is_that_of_the_verdicts():
    assert summary_table(PAGES) in (PAGES / "README.md").read_text(), "run scripts/write_pages.py"


def test_a_page_tells_the_verdict_and_where_it_came_from(tmp_path):
    about = load_experiment("zero_2022")
    criteria = [{"says": c.says, "value": 0.5, "halves": [0.4, "inf"], "verdict": "undecided"} for c in about.criteria]
    record = {"name": about.name, "claim": about.claim, "verdict": "undecided", "untuned": "undecided", "tuned": None}
    record |= {"criteria": criteria, "tuned_criteria": None, "seeds": [1, 2], "runs": 4, "seconds": 75.0}
    source = tmp_path / "measured" / "zero_2022-quick"
    source.mkdir(parents=True)
    (source / "verdict.json").write_text(json.dumps(record | {"mode": "quick", "date": "2026-01-02"}))
    written = write_pages(tmp_path / "measured", tmp_path / "pages")
    told = (tmp_path / "pages" / "zero_2022.md").read_text()
    assert "**undecided** (2026-01-02, quick, 2 fresh seeds per cell, 4 networks, took 1 min 15 s)" in told
    assert "0.5 | 0.4 / inf | undecided" in told
    assert all(c.why in told for c in about.criteria)
    assert "[zero_2022](zero_2022.md)" in (tmp_path / "pages" / "README.md").read_text()
    assert len(written) == len(experiment_names()) + 1
