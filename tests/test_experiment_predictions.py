"""Forecasts where users meet them: rows in every run, beside what is measured on the same batch."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import initlab
from initlab.config.compose import compose_config
from initlab.diagnostics import jacobians
from initlab.errors import UserError
from initlab.experiment import run
from initlab.experiment.build import build_activation, build_module, load_data, make_plan
from initlab.experiment.predictions import first_batch, predict_first_steps
from initlab.training import train

BASE = ("train.steps=2", "train.batch_size=32", "depth=3", "width=16", "log.tensorboard=false", "log.histograms=2")


def configured(*overrides: str):
    return compose_config([*BASE, *overrides])


def trained(directory: Path, *cells: str) -> list[pd.DataFrame]:
    """Train cells together; return the layer rows of each."""
    configs = [configured(*cell.split()) for cell in cells]
    places = [directory / str(k) for k in range(len(cells))]
    summaries = run(configs, places)
    assert {s["status"] for s in summaries} <= {"completed", "diverged"}
    return [pd.read_csv(place / "layers.csv") for place in places]


def predicted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.source == "predicted"].reset_index(drop=True)


# ---- rows in runs


FAMILIES = {
    "mlp": "model=mlp width=[48,24,32]",
    "cnn": "model=cnn width=8",
    "resmlp": "model=resmlp width=24",
    "resnet": "model=resnet model.norm=none depth=1 width=4",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_predicted_layer_is_a_measured_one(tmp_path, family):
    (rows,) = trained(tmp_path, f"init=he_normal act=relu {FAMILIES[family]}")
    assert set(predicted(rows)["step"]) == {0}
    keys = ["layer", "index", "stat"]
    both = predicted(rows).merge(rows[(rows.source == "measured") & (rows.step == 0)], on=keys, how="left")
    assert not both.stat.str.startswith("jacobian").any()
    assert both["value_y"].notna().all()
    layers = rows[(rows.source == "measured") & (rows.step == 0) & (rows.stat == "q")]
    first = both[(both["index"] == 1) & (both.stat == "q")]
    assert len(first) == 1
    assert len(layers) >= 3
    # 8 to 48 units average q, with a relative spread of √(2/units) for each: five of them at 4 units is the loosest
    assert np.log(first.value_x / first.value_y).abs().item() < 1.2


def jacobian_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.stat.isin(["jacobian_mean", "jacobian_var"])].pivot_table(
        index=["step", "layer", "index", "stat"], columns="source", values="value", sort=False
    )


def test_jacobians_are_measured_beside_their_forecast_where_they_are_asked_for(tmp_path):
    frames = trained(
        tmp_path, *(f"seed={s} init=orthogonal act=tanh depth=3 width=64 log.jacobian=true" for s in (1, 2))
    )
    one, two = (jacobian_rows(rows) for rows in frames)
    assert len(one) == len(two) == 8  # three hidden layers and the readout
    assert one.notna().all(axis=None)
    assert one.predicted.tolist() == two.predicted.tolist()
    assert (one.measured != two.measured).all()
    assert set(one.reset_index()["step"]) == {0}
    means = one.xs("jacobian_mean", level="stat").drop(index="readout", level="layer")
    assert means.measured.tolist() == pytest.approx(means.predicted.tolist(), rel=0.1)


def test_no_jacobian_is_forecast_where_none_can_be_measured(tmp_path, monkeypatch):
    line = "init=orthogonal act=tanh depth=3 width=64 log.jacobian=true"
    (alone,) = trained(tmp_path / "a", line)
    assert len(jacobian_rows(alone)) == 8
    monkeypatch.setattr("initlab.experiment.predictions.jacobians", partial(jacobians, budget=5e6))
    (some,) = trained(tmp_path / "b", line)
    assert len(jacobian_rows(some)) == 2 * 1
    assert jacobian_rows(some).notna().all(axis=None)
    (none,) = trained(tmp_path / "c", line + " model.norm=batch")
    assert not len(jacobian_rows(none))
    assert "no single sample" in (tmp_path / "c" / "0" / "run.log").read_text()


def test_a_measurement_of_jacobians_that_fails_costs_no_training(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("initlab.experiment.predictions.jacobians", fail)
    (rows,) = trained(tmp_path, "depth=2 width=16 log.jacobian=true")
    assert not len(jacobian_rows(rows))
    assert len(predicted(rows))
    assert "out of memory" in (tmp_path / "0" / "run.log").read_text()


@pytest.mark.parametrize(
    "cell", ["model.norm=batch act=tanh init=he_normal", "init=ones act=tanh", "init=identity width=16"]
)
def test_where_theory_has_no_answer_there_are_no_rows(tmp_path, cell):
    (rows,) = trained(tmp_path, cell)
    assert not len(predicted(rows).query("stat == 'q' and layer == 'hidden.1'"))
    assert len(rows.query("stat == 'q' and layer == 'hidden.1' and source == 'measured'"))


def test_a_network_has_the_same_forecast_alone_and_among_others(tmp_path):
    cells = [f"init={init} seed={seed}" for init in ("he_normal", "orthogonal", "zeros") for seed in (0, 1)]
    together = trained(tmp_path / "together", *cells)
    for k, cell in enumerate(cells):
        (alone,) = trained(tmp_path / f"alone{k}", cell)
        lines = [
            [line for line in (place / "layers.csv").read_text().splitlines() if line.endswith("predicted")]
            for place in (tmp_path / f"alone{k}" / "0", tmp_path / "together" / str(k))
        ]
        assert lines[0] == lines[1]
        assert len(lines[0]) > 20
        assert len(alone) == len(together[k])
    pd.testing.assert_frame_equal(predicted(together[0]), predicted(together[1]))  # seeds share one
    assert not predicted(together[0])["value"].equals(predicted(together[2])["value"])


def test_seeds_share_one_forecast(monkeypatch):
    calls = []

    def counting(module, tasks, inputs, **_):
        calls.append(len(inputs))
        return pd.DataFrame([(0, "a", 1, "q", 1.0, "predicted")])

    monkeypatch.setattr("initlab.experiment.predictions.predicted_rows", counting)
    configs = [configured(f"init={i}", f"seed={s}") for i in ("zeros", "he_normal") for s in range(5)]
    data, act = load_data(configs[0], torch.device("cpu")), build_activation(configs[0])
    modules = [build_module(config, data, act) for config in configs]
    found = predict_first_steps(configs, modules, data, act, make_plan(configs, data, act))
    assert calls == [32, 32]
    assert len(found) == 10
    assert all(len(one.rows) == 1 for one in found)


def test_the_forecast_is_fed_what_the_network_is_fed(monkeypatch):
    """Data order, normalisation and all: the batch of step 0 is the one that the first layer is given."""
    config = configured("data.seed=7", "data.normalize=false")
    data, act = load_data(config, torch.device("cpu")), build_activation(config)
    module, plan = build_module(config, data, act), make_plan([config], data, act)
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append((module.training, inputs[0].clone())))
    from initlab.ensemble import stack

    for _ in train(stack([module]), data, plan):
        pass
    first = next(x for training, x in seen if training and len(x) == plan.batch_size)
    assert torch.equal(first_batch(data, plan), first)


def test_no_record_of_step_0_no_forecast(tmp_path):
    run([configured("log.histograms=0")], [tmp_path / "run"])
    assert not (tmp_path / "run" / "layers.csv").exists() or not len(pd.read_csv(tmp_path / "run" / "layers.csv"))


@pytest.mark.parametrize(
    ("error", "said"), [("UserError('φ jumps')", "no forecast: φ jumps"), ("KeyError('planted')", "planted")]
)
def test_a_forecast_that_fails_costs_no_training(tmp_path, monkeypatch, error, said):
    def failing(*_, **__):
        raise eval(error, {"UserError": UserError})

    monkeypatch.setattr("initlab.experiment.predictions.predicted_rows", failing)
    (rows,) = trained(tmp_path, "init=he_normal")
    assert not len(predicted(rows))
    assert len(rows)
    assert said in (tmp_path / "0" / "run.log").read_text()


def test_a_model_that_theory_cannot_describe_trains_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, inputs, classes):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(inputs, 8), nn.Linear(8, classes)\n\n"
        "    def forward(self, x):\n        return self.b(self.a(x.flatten(1)).relu().cumsum(1))\n\n\n"
        "def net(depth, width, act, input_shape, classes):\n    return Net(784, classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (rows,) = trained(tmp_path, "model=custom model.target=own_model:net")
    assert not len(predicted(rows))
    assert len(rows)
    assert "theory has no answer" in (tmp_path / "0" / "run.log").read_text()


def test_zeros_are_forecast_to_the_last_statistic(tmp_path):
    (rows,) = trained(tmp_path, "init=zeros act=tanh")
    both = predicted(rows).merge(rows[(rows.source == "measured")], on=["step", "layer", "index", "stat"])
    both = both[both.layer != "readout"]
    assert {"q", "std", "dead_fraction", "grad_mean_square", "saturated_fraction"} <= set(both.stat)
    assert (both.value_x == both.value_y).all()


def test_a_list_where_a_number_belongs_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"depth=\(3, 4\) must be a whole number"):
        initlab.predict("relu", "he_normal", depth=[3, 4])
    with pytest.raises(UserError, match="norm"):
        initlab.predict("relu", "he_normal", depth=3, norm=["batch"])
