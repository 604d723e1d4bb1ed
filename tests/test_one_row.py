"""A scheme, an activation and a model are one row and one option file each: everything else reads them from there.

The rows and files stand in tests/one_row, outside the package, and are registered for the time of each test.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

import initlab
from initlab import initialize_
from initlab.activations import ACTIVATIONS
from initlab.audit import audit
from initlab.config import checks, compose, option_files
from initlab.diagnostics.rules.remedy import init_remedy
from initlab.ensemble import stack
from initlab.errors import UserError
from initlab.experiment import run
from initlab.initialize import plan, request, stream
from initlab.inspection import Fans
from initlab.models import MODELS, build
from initlab.prediction import rank
from initlab.report.page import write_report
from initlab.schemes import SCHEMES
from initlab.schemes.law_checks import violations

ROWS = Path(__file__).parent / "one_row"
CACHES = [value for value in vars(option_files).values() if hasattr(value, "cache_clear")]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Register the rows, beside copies of the package's option files; return their module."""
    monkeypatch.syspath_prepend(str(ROWS))
    import own_rows

    for registry, row in ((SCHEMES, own_rows.SCHEME), (ACTIVATIONS, own_rows.ACTIVATION), (MODELS, own_rows.MODEL)):
        monkeypatch.setitem(registry, row.name, row)
    conf = tmp_path / "conf"
    shutil.copytree(option_files.conf_dir(), conf)
    shutil.copytree(ROWS / "conf", conf, dirs_exist_ok=True)
    for module in (option_files, compose):
        monkeypatch.setattr(module, "conf_dir", lambda: conf)
    clear_caches()
    yield own_rows
    clear_caches()
    sys.modules.pop("own_rows")


def clear_caches():
    for cached in CACHES:
        cached.cache_clear()


OVERRIDES = (
    "init=signs", "act=half_leaky", "model=funnel", "depth=3", "width=32", "data=gaussian", "data.train_size=200",
    "data.test_size=100", "train.steps=3", "train.batch_size=20", "log.histograms=2", "log.tensorboard=false",
)  # fmt: skip


def config(*more: str):
    return compose.compose_config([*OVERRIDES, *more])


def network():
    return build("funnel", depth=3, width=256, act="half_leaky", input_shape=(300,), classes=10)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_options_compose_with_their_keys_and_defaults():
    found = config("model.ratio=4", "act.negative_slope=0.25")
    assert found.init["name"] == "signs"
    assert found.act == {"name": "half_leaky", "negative_slope": 0.25}
    assert found.model == {"name": "funnel", "ratio": 4}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("init.mode=fan_in", "init"),
        ("act.alpha=1", "act"),
        ("model.norm=batch", "model"),
        ("depth=null", "depth=null cannot be for model=funnel"),
    ],
)
def test_configurations_are_checked_as_those_of_every_option(override, words):
    with pytest.raises(UserError, match=words):
        config(override)


@pytest.mark.parametrize(("group", "name"), [("init", "signs"), ("act", "half_leaky"), ("model", "funnel")])
def test_options_are_listed(group, name):
    assert name in option_files.option_names(group)
    with pytest.raises(UserError, match=f"Did you mean.*{name}"):
        compose.compose_config([f"{group}={name}x"])


def test_a_family_without_norms_has_none_in_the_check():
    assert option_files.option_choices("model", "funnel", "norm") == ()
    assert "funnel" not in checks.MODEL_NORMS


@pytest.mark.parametrize(("verb", "name"), [("schemes", "signs"), ("activations", "half_leaky")])
def test_catalogues_list_the_rows(verb, name, capsys):
    from initlab.cli import catalogue

    getattr(catalogue, f"print_{verb}")(True)
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == name]
    assert row["reference"] == "none"


# --- schemes and activations ------------------------------------------------------------------------------------------


def test_the_scheme_fills_what_its_law_promises(own):
    net = network()
    initialize_(net, "signs", act="half_leaky", seed=1)
    for task in plan(net, request("signs", act="half_leaky")):
        for law in task.promised_laws():
            assert violations(task.parameter.tensor.detach(), law) == []
    weight = own.SCHEME.fill_(torch.empty(8, 16), fans=Fans(16, 8), generator=stream(0, "w"))
    assert set(weight.unique().tolist()) == {-0.25, 0.25}


@pytest.mark.parametrize(("wrong", "ok"), [(1.0, True), (1.1, False)])
def test_the_audit_knows_the_law(wrong, ok):
    net = network()
    initialize_(net, "signs", act="half_leaky")
    with torch.no_grad():
        net.steps[1].weight.mul_(wrong)
    rows = audit(net, "signs", act="half_leaky")
    assert bool(rows.set_index("name").ok["steps.1.weight"]) is ok


def test_the_rectifier_gets_the_gain_and_the_remedy_of_rectifiers(own):
    assert SCHEMES["he_normal"].gain(own.ACTIVATION, Fans(8, 8)) == pytest.approx(math.sqrt(1.6))
    assert "he_normal" in init_remedy(own.ACTIVATION)
    assert '{"negative_slope": 0.5}' in init_remedy(own.ACTIVATION)
    assert initlab.theory.critical("half_leaky").sigma_w == pytest.approx(math.sqrt(1.6))


# --- theory and ensembles ---------------------------------------------------------------------------------------------


def test_theory_predicts_every_layer():
    frame = initlab.predict("half_leaky", "signs", depth=3, width=64, model="funnel", input_shape=(100,))
    q = frame[frame.stat == "q"].set_index("layer").value
    # E[φ²] = q (1 + a²)/2 = 0.625 q behind each layer, and fan_in · Var[W] = 1
    assert q.tolist() == pytest.approx([1, 0.625, 0.625**2, 0.625**3])
    assert q.index.tolist() == ["steps.0", "steps.1", "steps.2", "out"]
    assert "grad_mean_square" in set(frame.stat)
    assert rank("half_leaky", ["signs", "he_normal"], 4, 64, model="funnel").init.tolist() == ["he_normal", "signs"]


def test_networks_are_stacked():
    nets = [network() for _ in range(3)]
    for seed, net in enumerate(nets):
        initialize_(net, "signs", act="half_leaky", seed=seed)
    x = torch.randn(5, 300, generator=stream(0, "x"))
    expected = torch.stack([net(x) for net in nets]).detach()
    (part,) = stack(nets).parts
    assert part.stacked
    assert torch.allclose(part.module(x.expand(3, -1, -1)).detach(), expected, atol=1e-5)


# --- runs and the report ----------------------------------------------------------------------------------------------


def test_runs_have_predictions_and_a_page(tmp_path):
    directories = [tmp_path / "runs" / name for name in ("a", "b")]
    summaries = run([config("seed=0"), config("seed=1")], directories)
    assert [summary["status"] for summary in summaries] == ["completed"] * 2
    layers = initlab.load_layers(tmp_path / "runs")
    assert set(layers[layers.source == "predicted"].layer) == {"steps.0", "steps.1", "steps.2", "out"}
    page = write_report([tmp_path / "runs"], tmp_path / "report.html").path.read_text(encoding="utf-8")
    for name in ("signs", "half_leaky", "funnel"):
        assert name in page
