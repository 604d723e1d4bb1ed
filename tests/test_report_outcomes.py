"""How a network that neither trained nor diverged is told: stuck, or still learning, by its own curve."""

import json
from pathlib import Path

import fake_sweeps as fake
import numpy as np
import pytest

import initlab
from initlab.records import load
from initlab.report import write_report
from initlab.report.heatmaps import OUTCOME_COLORS
from initlab.report.study import OUTCOMES, build_study

SMALL = {"act": "relu", "depth": 2, "width": 16, "quiet": True, "log__tensorboard": False, "log__histograms": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """He's scheme for long enough, for too short a time, and zeros, which never learn."""
    root = tmp_path_factory.mktemp("outcomes")
    for name, steps, rate in (("he_normal", 150, 0.03), ("he_normal", 60, 0.0005), ("zeros", 150, 0.03)):
        initlab.sweep({"optim.lr": rate}, init=name, train__steps=steps, sweep__root=str(root), **SMALL)
    return build_study(load(root)).runs.set_index(["init", "train.steps"])


def test_a_network_that_still_learns_is_not_stuck(runs):
    assert runs["status"].tolist() == ["completed"] * 3
    assert runs["outcome"].to_dict() == {
        ("he_normal", 150): "trained",
        ("he_normal", 60): "learning",
        ("zeros", 150): "stuck",
    }
    assert 0.1 < runs.loc[("he_normal", 60), "val_accuracy"] < 0.55


def test_the_report_says_it_and_advises_more_steps(runs):
    found = write_report([Path(path) for path in runs["path"]], Path(runs["path"].iloc[0]).parents[1] / "page.html")
    told = {runs.index[k]: text for k, text in found.data.payload["diagnoses"].items()}
    assert "train.steps" in told["he_normal", 60]
    assert "never trained" not in told["he_normal", 60]
    assert ("he_normal", 150) not in told
    assert found.path.read_text(encoding="utf-8").count('learning: "#') == 1


def test_the_summary_says_it(runs):
    path = Path(runs.loc[("he_normal", 60), "path"])
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    assert (summary["trained"], summary["learning"]) == (False, True)
    assert json.loads((Path(runs.loc[("he_normal", 150), "path"]) / "summary.json").read_text())["learning"] is None


def test_runs_that_do_not_say_it_are_stuck_as_before(tmp_path):
    fake.write_sweep(tmp_path, fake.grid(["zeros"], ["tanh"], [3], range(2)), steps=40, records=1)
    assert build_study(load(tmp_path)).runs["outcome"].tolist() == ["stuck", "stuck"]


def test_every_outcome_has_a_colour_of_its_own_everywhere():
    assert len(set(OUTCOME_COLORS)) == len(OUTCOMES)
    script = (Path(initlab.__file__).parent / "report" / "assets" / "theme.js").read_text(encoding="utf-8")
    for name, colour in zip(OUTCOMES, OUTCOME_COLORS, strict=True):
        assert f'{name}: "{colour}"' in script


def test_losses_of_a_run_are_those_it_wrote(tmp_path):
    from initlab.records import RunWriter

    run = RunWriter(tmp_path / "a", {}, tensorboard=False)
    assert run.read_losses() == []
    run.add_scalars_block(np.arange(5), {"loss": np.array([3, 2, np.nan, 1, 0.5])})
    run.add_scalars(7, {"val_loss": 9.0})
    np.testing.assert_equal(run.read_losses(), [3, 2, np.nan, 1, 0.5, np.nan])
