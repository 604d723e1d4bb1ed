"""`initlab audit`: exit codes, JSON, JUnit XML, rules from a file, saved values."""

import json
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import initlab
from initlab.cli.main import main

HOME = """
import torch
from torch import nn
import initlab

def net(scheme="he_normal", head=True):
    model = nn.Sequential()
    model.add_module("body", nn.Linear(40, 60))
    model.add_module("head", nn.Linear(60, 50))
    initlab.initialize_(model, scheme, skip=() if head else "head.*", seed=1)
    return model

def untouched():
    return nn.Sequential(nn.Linear(40, 60))

def state():
    return net().state_dict()

def nothing():
    return 3

def failing():
    raise RuntimeError("no weights here")

model = net()
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "audited_home.py").write_text(HOME)

    def typed(*arguments):
        monkeypatch.setattr("sys.argv", ["initlab", "audit", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return typed


HERE = "audited_home:"


def test_exit_code_0_where_all_is_as_promised(run):
    code, out, err = run(HERE + "net", "--init", "he_normal")
    assert (code, out, err) == (0, "4 parameters: all as promised\n", "")
    assert run(HERE + "model", "--init", "he_normal")[0] == 0
    assert run(HERE + "state", "--init", "he_normal")[0] == 0


def test_exit_code_1_where_a_promise_is_broken(run):
    code, out, err = run(HERE + "net", "--init", "he_normal", "--arg", "head=false")
    assert (code, err) == (1, "")
    first, second, last = out.splitlines()
    assert first.startswith("BROKEN head.weight")
    assert "default of torch.nn.Linear, never touched" in first
    assert second.startswith("BROKEN head.bias")
    assert last == "4 parameters: 2 not as promised"
    assert run(HERE + "untouched", "--init", "he_normal")[0] == 1
    assert run(HERE + "untouched", "--init", "torch_default")[0] == 0


def test_arguments_of_the_promise(run):
    assert run(HERE + "net", "--init", "he_normal", "--mode", "fan_out")[0] == 1
    given = ("--arg", "scheme=lecun_normal")
    assert run(HERE + "net", "--init", "he_normal", "--gain", "1", *given)[0] == 0
    assert run(HERE + "net", "--init", "variance_scaling", "--set", "distribution=normal", *given)[0] == 0
    assert run(HERE + "net", "--init", "he_normal", "--arg", "head=false", "--skip", "head.*")[0] == 0
    assert run(HERE + "net", "--init", "he_normal", "--arg", "head=false", "--only", "body.*")[0] == 0


def test_a_line_for_every_parameter(run):
    code, out, _ = run(HERE + "net", "--init", "he_normal", "--all")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [
        ["ok", name] for name in ("body.weight", "body.bias", "head.weight", "head.bias")
    ]


def test_json_has_every_column(run):
    code, out, _ = run(HERE + "net", "--init", "he_normal", "--json", "--arg", "head=false")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    rows = {row["name"]: row for row in found["parameters"]}
    assert [name for name, row in rows.items() if not row["ok"]] == ["head.weight", "head.bias"]
    assert tuple(rows["body.weight"]) == initlab.audit.COLUMNS
    assert rows["body.weight"]["fan_in"] == 40
    assert rows["head.weight"]["default"] is True
    assert rows["head.weight"]["p"] < 1e-9


def test_junit_for_a_ci_job(run, tmp_path):
    code, _, _ = run(HERE + "net", "--init", "he_normal", "--junit", "found.xml", "--arg", "head=false")
    assert code == 1
    suite = ElementTree.parse(tmp_path / "found.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "0")
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures["body.weight"] is None
    assert "never touched" in failures["head.weight"].get("message")
    run(HERE + "net", "--init", "he_normal", "--junit", "found.xml", "--skip", "head.*")
    suite = ElementTree.parse(tmp_path / "found.xml").getroot()
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "2")


def test_rules_from_a_file(run, tmp_path):
    (tmp_path / "rules.yaml").write_text(
        "head.weight: {name: normal, std: 0.5}\n'*': {name: he_normal, mode: fan_out}\n"
    )
    code, out, _ = run(HERE + "net", "--rules", "rules.yaml")
    assert code == 1
    assert [line.split()[1] for line in out.splitlines()[:-1]] == ["body.weight", "head.weight"]
    (tmp_path / "rules.yaml").write_text("'body.*': he_normal\n")
    code, out, _ = run(HERE + "net", "--rules", "rules.yaml")
    assert code == 0
    assert "nothing is promised of 2 (head.weight, head.bias)" in out
    assert run(HERE + "net", "--rules", "rules.yaml", "--strict")[0] == 1


@pytest.mark.parametrize("nested", [False, True])
def test_saved_values(run, tmp_path, nested):
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 50))
    initlab.initialize_(net, "he_normal")
    found = net.state_dict()
    torch.save({"model": found, "epoch": 3} if nested else found, tmp_path / "values.pt")
    save_file({f"module.{name}" if nested else name: t for name, t in found.items()}, tmp_path / "values.safetensors")
    for file in ("values.pt", "values.safetensors"):
        assert run(file, "--init", "he_normal")[0] == 0
        assert run(file, "--init", "glorot_uniform")[0] == 1


def test_a_files_own_module_says_what_bare_tensors_cannot(run, tmp_path):
    (tmp_path / "grouped_home.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(16, 64, 3, groups=4))\n"
    )
    net = nn.Sequential(nn.Conv2d(16, 64, 3, groups=4))
    initlab.initialize_(net, "he_normal", parameters={"mode": "fan_out"})
    save_file(net.state_dict(), tmp_path / "values.safetensors")
    given = ("values.safetensors", "--init", "he_normal", "--mode", "fan_out")
    assert run(*given)[0] == 1
    assert run(*given, "--module", "grouped_home:net")[0] == 0


BAD = {
    "no promise": (("net",), "give either --init SCHEME or --rules FILE"),
    "two promises": (("net", "--init", "he_normal", "--rules", "x"), "give either --init SCHEME or --rules FILE"),
    "unknown scheme": (("net", "--init", "he_norml"), "he_norml is unknown"),
    "unknown mode": (("net", "--init", "he_normal", "--mode", "fan_inn"), "fan_inn must be one of"),
    "no such module": (("net", "--init", "he_normal", "--module", "a:b"), "leave it out"),
    "no callable": (("nett", "--init", "he_normal"), "nett"),
    "no module": (("nothing", "--init", "he_normal"), "gives a int"),
    "fails": (("failing", "--init", "he_normal"), "no weights here"),
    "argument": (("net", "--init", "he_normal", "--arg", "heads"), "--arg heads must be key=value"),
    "role": (("net", "--init", "he_normal", "--role", "first"), "--role first must be ROLE=GLOB"),
    "only": (("net", "--init", "he_normal", "--only", "haed.*"), "only: 'haed.*' matches no parameter"),
    "rules": (("net", "--rules", "none.yaml"), "--rules none.yaml cannot be read"),
    "junit": (
        ("net", "--init", "he_normal", "--junit", "no/where.xml"),
        "cannot be written (No such file or directory): give a file in",
    ),
    "impossible": (("net", "--init", "dirac"), "needs convolutions"),
}


@pytest.mark.parametrize("case", BAD)
def test_exit_code_2_for_what_the_user_got_wrong(run, case):
    (target, *rest), words = BAD[case]
    code, out, err = run(HERE + target, *rest)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.pt", None, "is no file"),
        ("bad.safetensors", b"x", "cannot be read as safetensors"),
        ("bad.pt", b"x", "cannot be read as a saved state_dict"),
    ],
)
def test_exit_code_2_for_a_file_that_cannot_be_read(run, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = run(name, "--init", "he_normal")
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
