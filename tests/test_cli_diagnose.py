"""`initlab diagnose`: what it says of a model from the command line, and what it refuses in one sentence."""

import json

import pandas as pd
import pytest

from initlab.cli.main import main

MODELS = """
import torch
from torch import nn

number = 3


def good():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def zeroed():
    net = good()
    nn.init.zeros_(net[0].weight)
    return net


def boom():
    raise RuntimeError("planted")


def empty():
    return nn.ReLU()


def lazy():
    return nn.LazyLinear(3)


def meta():
    with torch.device("meta"):
        return nn.Linear(3, 3)
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_models.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def typed(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["initlab", "diagnose", *line.split()])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return typed


def test_a_zeroed_layer_is_named(run):
    code, out, err = run("small_models:zeroed --input 1,3 --csv rows.csv")
    assert (code, err) == (0, "")
    assert "fault" in out
    assert "Layer 0" in out
    assert set(pd.read_csv("rows.csv").columns) == {"step", "layer", "index", "stat", "value", "source"}
    found = json.loads(run("small_models:zeroed --input 1,3 --json")[1])
    assert any(verdict["severity"] == "fault" and "0" in verdict["layers"] for verdict in found["verdicts"])
    assert "fault" not in run("small_models:good --input 1,3")[1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nomodule:net -i 1,3", "cannot import module 'nomodule'"),
        ("small_models -i 1,3", "names nothing to import"),
        ("small_models:god -i 1,3", "has no 'god'"),
        ("small_models:number -i 1,3", "must be a torch.nn.Module or a callable"),
        ("small_models:boom -i 1,3", "failed when it was called (RuntimeError: planted"),
        ("small_models:good -i 1,3 --arg x=3", "failed when it was called (TypeError"),
        ("small_models:good -i 1,3 --arg x", "--arg x must be key=value"),
        ("small_models:good", "Missing option '--input'"),
        ("small_models:good -i a", "--input a is not a shape"),
        ("small_models:good -i 1,-3", "--input 1,-3 is not a shape"),
        ("small_models:good -i 1,4", "layer 0 (Linear) expects 3 numbers along the last axis"),
        ("small_models:good -i 1,3 --classes 7", "classes=7"),
        ("small_models:good -i 1,3 --batch 0", "--batch 0 must be at least 1"),
        ("small_models:good -i 1,3 --csv no/rows.csv", "--csv no/rows.csv cannot be written (Cannot save"),
        ("small_models:empty -i 1,3", "has no parameters"),
        ("small_models:lazy -i 1,3", "is lazy and has no shape yet"),
        ("small_models:meta -i 1,3", "is on the meta device"),
    ],
)
def test_bad_input_is_one_sentence(run, line, says):
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert err.startswith("initlab: ")
    assert says in err
    assert len(err.splitlines()) == 1
