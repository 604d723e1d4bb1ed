"""A statistic is one row of `STATS`: a row added from outside the package reaches runs, `diagnose` and the report."""

import pytest
import torch
from torch import nn

import initlab
from initlab.cli.diagnose import run_diagnose
from initlab.config.compose import compose_config
from initlab.diagnostics import STATS, Stat, stats
from initlab.experiment import run
from initlab.report.payload import collect_report_data

LARGEST = Stat(
    "largest",
    "preactivation",
    lambda x: x.flatten(1).abs().amax(1),
    "largest absolute preactivation",
    column="peak",
    show=lambda value: f"{value:.5f}",
)


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setitem(STATS, "largest", LARGEST)


def test_a_row_is_measured_by_diagnose():
    net, x = nn.Linear(4, 3), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    frame = initlab.diagnose(net, x)
    assert frame.value[frame.stat == "largest"].item() == pytest.approx(float(net(x).detach().abs().max()))


def test_a_row_has_a_column_in_the_table_of_diagnose(capsys):
    run_diagnose("torch.nn:Linear", ["8,4"], arg=["in_features=4", "out_features=3"])
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.endswith("peak"))
    row = next(line for line in lines if line.split()[:1] == ["1"])
    assert head.split()[-2:] == ["rank", "peak"]
    assert float(row.split()[-1]) > 0


def test_a_row_is_recorded_and_shown_by_the_report(tmp_path):
    config = compose_config(["depth=2", "width=8", "train.steps=4", "data=gaussian", "threads=1"])
    run([config], [tmp_path / "one"])
    rows = initlab.load_layers([tmp_path / "one"])
    recorded = rows[rows.stat == "largest"]
    assert set(recorded.layer) == {"hidden.0", "hidden.1", "readout"}
    assert (recorded.value > 0).all()
    layers = collect_report_data([tmp_path / "one"]).payload["layers"]
    assert "largest" in layers["stats"]


@pytest.mark.parametrize("name", [name for name in STATS if STATS[name].column])
def test_columns_fit_the_table(name):
    assert len(STATS[name].column) <= 5
    assert len(STATS[name].show(0.5)) <= 9


def test_every_statistic_says_what_it_is():
    assert all(stat.meaning and stat.name == name for name, stat in stats.STATS.items())
