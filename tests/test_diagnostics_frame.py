"""`initlab.diagnose` from Python: the frame carries and shows what the command prints."""

import copy
import json
import pickle
import re

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from initlab.cli.diagnose import run_diagnose
from initlab.diagnostics import DiagnosisFrame
from initlab.errors import UserError
from initlab.report.findings.record import Finding


def net(zero: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    initlab.initialize_(made, "he_normal", act="relu")
    if zero:
        nn.init.zeros_(made[2].weight)
        nn.init.constant_(made[0].weight, 0.1)
    return made


def planted() -> nn.Module:
    """What the command imports."""
    return net()


X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(2))


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_the_frame_carries_what_the_command_prints(capsys):
    target = f"{__name__}:planted"
    run_diagnose(target, ["1,8"], batch=32, as_json=True)
    listed = json.loads(capsys.readouterr().out)["verdicts"]
    run_diagnose(target, ["1,8"], batch=32)
    printed = words(capsys.readouterr().out)
    from initlab.cli.diagnose import make_inputs

    frame = initlab.diagnose(net(), make_inputs(["1,8"], 32, None, 0))
    assert frame.attrs["findings"] == listed
    assert {one["name"] for one in listed} >= {"zero_layer", "copied_units"}
    assert frame.findings.to_dict("records") == listed
    for text in (str(frame), repr(frame), frame._repr_html_()):
        for one in listed:
            assert one["sentence"] in words(text)
            assert one["remedy"] in words(text).replace("&quot;", '"')
            assert one["sentence"] in printed
    assert str(frame).startswith("fault ")
    assert str(frame).index("zeros") < str(frame).index("stat")


def test_it_prints_nothing_by_itself(capsys):
    initlab.diagnose(net(), X, Y)
    assert capsys.readouterr().out == ""


def test_a_healthy_network_is_called_healthy():
    frame = initlab.diagnose(net(zero=False), X, Y)
    assert frame.findings.empty
    assert list(frame.findings) == ["severity", "name", "layers", "sentence", "remedy"]
    assert "Nothing is wrong" in words(str(frame))
    assert "Nothing is wrong" in words(frame._repr_html_())


@pytest.mark.parametrize(
    ("targets", "more", "loss"),
    [
        (Y, {}, lambda out: F.cross_entropy(out, Y)),
        (X[:, :3], {}, lambda out: F.mse_loss(out, X[:, :3])),
        ({"y": Y}, {"loss": lambda out, t: F.cross_entropy(out, t["y"])}, lambda out: F.cross_entropy(out, Y)),
        ([2.0], {"loss": lambda out, t: t[0] * out.square().mean()}, lambda out: 2 * out.square().mean()),
    ],
    ids=["classes", "floats", "mapping", "list"],
)  # fmt: skip
def test_targets_are_the_third_argument(targets, more, loss):
    module = net(zero=False)
    frame = initlab.diagnose(module, X, targets, **more)
    row = frame[(frame["layer"] == "(model)") & (frame["stat"] == "loss")]
    assert row["value"].item() == pytest.approx(float(loss(module(X)).detach()), rel=1e-6)


def test_targets_without_a_loss_for_them_are_refused():
    with pytest.raises(UserError, match="targets are a dict: give a tensor, or a loss"):
        initlab.diagnose(net(), X, {"y": Y})


def frame() -> DiagnosisFrame:
    rows = pd.DataFrame({"layer": ["a", "b"], "stat": ["q", "q"], "value": [0.0, 1.0]})
    return DiagnosisFrame.of(rows, [Finding("fault", "zero_layer", ("a",), "Layer a is <zero>.", "draw it")])


WHOLE = {
    "another column": lambda f: f.assign(seed=1),
    "copy": lambda f: f.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda f: pickle.loads(pickle.dumps(f)),
}
PARTS = {
    "rows": lambda f: f[f["value"] > 0],
    "head": lambda f: f.head(1),
    "columns": lambda f: f[["layer", "value"]],
    "loc": lambda f: f.loc[[1]],
    "query": lambda f: f.query("value > 0"),
    "concat": lambda f: pd.concat([f, f]),
    "merge": lambda f: f.merge(f, on="layer"),
    "pivot": lambda f: f.pivot_table(index="layer", columns="stat", values="value"),
    "drop": lambda f: f.drop(index=0),
    "assign": lambda f: f.assign(value=3.0),
    "set in place": lambda f: f.__setitem__("value", 2.0) or f,
    "plain": pd.DataFrame,
}


@pytest.mark.parametrize("how", WHOLE)
def test_the_whole_frame_keeps_its_findings(how):
    assert WHOLE[how](frame()).attrs["findings"] == frame().attrs["findings"]
    assert "Layer a is <zero>." in str(WHOLE[how](frame()))


@pytest.mark.parametrize("how", PARTS)
def test_a_part_of_the_frame_has_no_findings(how):
    made = PARTS[how](frame())
    assert "Layer a" not in str(made)
    assert made._repr_html_().startswith("<div")
    assert len(getattr(made, "findings", [])) == 0
    if how in ("rows", "head", "columns", "loc", "query", "merge"):
        assert "findings" not in made.attrs


def test_a_sentence_is_no_markup():
    assert "Layer a is &lt;zero&gt;." in frame()._repr_html_()
