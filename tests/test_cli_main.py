"""The `initlab` console script: its verbs, tables, JSON and refusals."""

import json

import pytest

import initlab
from initlab.activations import ACTIVATIONS
from initlab.cli.catalogue import catalogue_entry
from initlab.cli.main import main
from initlab.cli.output import output_json
from initlab.initialize.procedures import PROCEDURES
from initlab.schemes import SCHEMES


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def typed(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["initlab", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capsys.readouterr()
        return int(leaving.value.code or 0), out, err

    return typed


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_the_verbs(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    verbs = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert {"train", "schemes", "activations"} <= set(verbs)
    assert "..." not in out.split("Commands:")[1]


def test_version(run):
    assert run("--version") == (0, f"initlab {initlab.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tarin"], "No such command 'tarin'. Did you mean 'train'?"),
        (["schemes", "--jso"], "No such option: --jso"),
        (["schemes", "extra"], "unexpected extra argument"),
        (["train", "depth=0"], "depth=0 must be a whole number"),
        (["train", "--bogus"], "--bogus is not a flag"),
    ],
)
def test_refusals_are_one_sentence(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("initlab: ")
    assert sentence in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("verb", "registry", "columns"),
    [
        ("schemes", {**SCHEMES, **PROCEDURES}, ["name", "law", "variance", "needs", "year", "reference"]),
        ("activations", ACTIVATIONS, ["name", "formula", "saturated outside", "kinks", "reference"]),
    ],
)
def test_catalogue(run, verb, registry, columns):
    code, out, err = run(verb)
    assert (code, err) == (0, "")
    header, *rows = out.split("\n\n")[0].splitlines()
    assert header.split() == " ".join(columns).split()
    names = [row.split()[0] for row in rows if row[:1].strip()]
    assert names == list(registry)
    rows = json.loads(run(verb, "--json")[1])
    assert [row["name"] for row in rows] == list(registry)
    assert set(columns) <= set(rows[0])


@pytest.mark.parametrize(("init", "code", "word"), [("mup", 0, "mup: flat over"), ("lecun_normal", 1, "not flat over")])
def test_coordinates_end_in_a_verdict(run, init, code, word):
    found, out, _ = run("coordinates", "--init", init, "--widths", "32,128,512")
    assert found == code
    assert word in out.splitlines()[-1]
    found, out, _ = run("coordinates", "--init", init, "--widths", "32,128,512", "--json")
    assert json.loads(out)["flat"] == (code == 0)


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--widths", "64"], ["--widths", "a,b"], ["math:hypot"]])
def test_coordinates_refuse_in_one_sentence(run, arguments):
    code, _, err = run("coordinates", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_schemes_say_what_they_promise(run):
    rows = {row["name"]: row for row in json.loads(run("schemes", "--json")[1])}
    assert rows["he_normal"]["variance"] == pytest.approx(2)
    assert rows["glorot_uniform"]["variance"] == pytest.approx(1)
    assert rows["torch_default"]["variance"] == pytest.approx(1 / 3, abs=1e-4)
    assert rows["he_normal"]["year"] == 2015
    assert "init.mode" in rows["he_normal"]["keys"]
    assert "kaiming_normal" in rows["he_normal"]["aliases"]
    assert "Delving Deep" in rows["he_normal"]["reference"]


def test_activations_say_where_they_saturate(run):
    rows = {row["name"]: row for row in json.loads(run("activations", "--json")[1])}
    assert rows["relu"]["kinks"] == [0]
    assert rows["hardtanh"]["saturated outside"] == [-1, 1]
    assert rows["relu6"]["saturated outside"] == ["-inf", 6]
    assert rows["sin"]["keys"] == ["act.omega"]
    assert "swish" in rows["silu"]["aliases"]


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("verb", ["schemes", "activations"])
def test_catalogue_fits_the_terminal(run, monkeypatch, verb, columns):
    monkeypatch.setenv("COLUMNS", columns)
    table = run(verb)[1].split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= int(columns)
    assert ("reference" in table[0]) == (columns == "120")


def test_cells():
    assert [catalogue_entry(x) for x in (None, [], 1.0, 0.3333, [0.0, float("inf")], "x", 2015)] == [
        "",
        "",
        "1",
        "0.3333",
        "0, inf",
        "x",
        "2015",
    ]
    assert json.loads(output_json({"a": [float("-inf"), 1.5, None]})) == {"a": ["-inf", 1.5, None]}
