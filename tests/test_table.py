"""`initlab table`: right numbers, grouped as asked, in four formats, none of which a name can break out of."""

import csv
import io
import re
import subprocess
import sys

import fake_sweeps as fake
import numpy as np
import pandas as pd
import pytest

from initlab.cli.report import print_run_table
from initlab.errors import UserError
from initlab.records import load
from initlab.report.formats import (
    FORMATS,
    escape_latex,
    escape_markdown,
    table_to_csv,
    table_to_latex,
    table_to_markdown,
    table_to_text,
)
from initlab.report.study import build_study
from initlab.report.table import build_table

NASTY = '=cmd|"/C calc"!A1'


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three schemes, two depths, three seeds; one diverged, one that was never finished."""
    root = tmp_path_factory.mktemp("table") / "sweep"
    cells = fake.grid(("he_normal", "zeros", "glorot_uniform"), ("tanh",), (3, 10), range(3))
    fake.write_sweep(root, cells, {0: "diverged", 4: "unfinished"}, steps=60, records=2)
    return root


def table(path, *arguments, **keywords):
    return build_table(build_study(load(path)), *arguments, **keywords)


def read_csv(text):
    return pd.read_csv(io.StringIO(text))


def test_mean_and_deviation_are_numpys_over_completed_runs(sweep):
    runs = load(sweep)
    found = read_csv(table_to_csv(table(sweep)))
    for row in found.to_dict("records"):
        own = runs[(runs["init"] == row["init"]) & (runs["depth"] == row["depth"]) & (runs["status"] == "completed")]
        assert row["test_accuracy n"] == len(own)
        assert row["test_accuracy mean"] == pytest.approx(np.mean(own["test_accuracy"]), rel=1e-12)
        assert row["test_accuracy std"] == pytest.approx(np.std(own["test_accuracy"], ddof=1), rel=1e-9)
    assert len(found) == 6
    assert found["runs"].tolist().count("3") == 4


def test_failures_stay_visible(sweep):
    text = table_to_text(table(sweep))
    assert "2 completed, 1 diverged" in text
    assert "2 completed, 1 unfinished" in text


def test_groups_metrics_and_columns_are_the_users_choice(sweep):
    found = table(sweep, ["depth"], ["val_loss", "steps"], "init")
    assert found.keys == ("depth",)
    assert [column[0] for column in found.columns] == ["val_loss", "steps"] * 3
    assert [line.keys for line in found.lines] == [(3,), (10,)]
    head = table_to_text(found).splitlines()[0]
    assert "init=he_normal val loss" in head
    assert found.mixed == ()


def test_what_a_line_mixes_is_said(sweep, capsys):
    print_run_table([str(sweep)], ["init"], [], None, "text", False, False)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "depth" in err
    assert "--by" in err


SHIFTS = {"glorot_uniform": 0.0, "he_normal": 0.1, "zeros": -0.3}


def planted(seeds=6, shifts=SHIFTS, depths=(3, 10), noise=0.01, **columns):
    """A study in which schemes differ by known shifts, the same at every depth: accuracy up, loss down."""
    generator = np.random.default_rng(1)
    rows = [
        {
            "init": name, "act": "tanh", "depth": depth, "seed": seed, "optim.lr": 0.01, "data": "d",
            "status": "completed", "problem": "", "test_accuracy": 0.7 + shift + noise * generator.standard_normal(),
            "val_loss": 1 - shift + noise * generator.standard_normal(), "loss": 1.0, "trained": True,
            "hash": f"{name}{depth}{seed}", "path": f"/x/{name}-{depth}-{seed}",
        }
        for name, shift in shifts.items() for depth in depths for seed in range(seeds)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    order = [*list(frame.columns[:6]), *load([]).columns, *frame.columns]
    return build_study(frame.reindex(columns=list(dict.fromkeys(order))).assign(**columns))


def marked(found):
    """The schemes of the marked entries, wherever schemes are."""
    names = []
    for line in found.lines:
        for entry, (_, value) in zip(line.entries, found.columns, strict=True):
            if entry is not None and entry.best:
                names.append(value if found.across == "init" else line.keys[found.keys.index("init")])
    return names


@pytest.mark.parametrize("by", [[], ["init", "depth"], ["depth"], ["depth", "init"]])
@pytest.mark.parametrize("metrics", [["test_accuracy"], ["val_loss"], ["test_accuracy", "val_loss"]])
def test_what_beats_all_its_rivals_is_marked_wherever_schemes_are(by, metrics):
    found = build_table(planted(), by, metrics, "init", best=True)
    assert found.keys == ("depth",)
    assert marked(found) == ["he_normal"] * 2 * len(metrics)


@pytest.mark.parametrize("across", [None, "depth"])
def test_schemes_compete_at_each_depth(across):
    assert marked(build_table(planted(), best=True, across=across)) == ["he_normal"] * 2


def test_another_key_competes_where_it_comes_first():
    found = build_table(planted(depths=(3,)), ["act", "init"], best=True)
    assert marked(found) == []
    deep = {(s, d): 0.2 * (d == 10) for s in SHIFTS for d in (3, 10)}
    runs = planted()
    shifted = runs.runs["test_accuracy"] + [
        deep[row] for row in zip(runs.runs["init"], runs.runs["depth"], strict=True)
    ]
    found = build_table(planted(test_accuracy=shifted.tolist()), ["depth"], [], "depth", best=True)
    assert [[entry.best for entry in line.entries] for line in found.lines] == [[False, True]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shifts": {"he_normal": 0.1, "orthogonal": 0.1, "zeros": -0.3}}, "the best two are tied"),
        ({"noise": 0.0, "shifts": {"he_normal": 0.0, "zeros": 0.0}}, "equal numbers"),
        ({"seeds": 4}, "too few seeds"),
        ({"noise": 0.3}, "all within seed noise"),
        ({"shifts": {"he_normal": 0.1}, "depths": (3,)}, "no rival"),
    ],
)
def test_what_is_tied_is_not_marked(options, why):
    assert marked(build_table(planted(**options), ["init", "depth"], best=True)) == [], why


def test_survivors_of_a_scheme_that_diverges_are_not_marked():
    runs = planted().runs
    bad = (runs["init"] == "he_normal") & (runs["seed"] > 1)
    status = runs["status"].where(~bad, "diverged").tolist()
    found = build_table(planted(status=status, test_accuracy=runs["test_accuracy"].where(~bad).tolist()), best=True)
    top = max(found.lines, key=lambda line: line.entries[0].mean)
    assert top.keys[0] == "he_normal"
    assert marked(found) == []


def test_bold_in_every_format():
    found = build_table(planted(), best=True)
    assert len(re.findall(r" \*$", table_to_text(found), re.M)) == 2
    assert len(re.findall(r"\*\*\d", table_to_markdown(found))) == 2
    assert table_to_latex(found).count(r"$\mathbf{") == 2
    assert read_csv(table_to_csv(found))["test_accuracy best"].sum() == 2


@pytest.mark.parametrize("write", FORMATS.values())
def test_every_format_names_metric_and_unit(write):
    for metric, words in (("test_accuracy", ("test", "accuracy")), ("val_loss", ("val", "loss"))):
        for across in (None, "depth", "init"):
            text = write(build_table(planted(), metrics=[metric], across=across))
            head = next(line for line in text.splitlines() if words[1] in line)
            assert words[0] in head
            assert ("%" in head) == (metric == "test_accuracy" and write is not table_to_csv)


def test_runs_are_counted_as_the_means_are(sweep):
    found = build_table(planted(), across="depth")
    assert [line.ended for line in found.lines] == ["6"] * 3
    assert "runs each" in table_to_text(found)
    uneven = table(sweep, across="depth")
    told = {line.keys[0]: line.ended for line in uneven.lines}
    assert told == {
        "glorot_uniform": "3",
        "he_normal": "2 completed, 1 diverged / 2 completed, 1 unfinished",
        "zeros": "3",
    }
    accuracy = planted().runs["test_accuracy"].where(planted().runs["seed"] > 0).tolist()
    for write in (table_to_text, table_to_markdown, table_to_latex):
        assert write(build_table(planted(test_accuracy=accuracy))).count("(n=5)") == 6


def test_halves_are_rounded_alike_however_they_were_summed(tmp_path):
    told = fake.write_halves(tmp_path)
    lines = [line.split() for line in table_to_text(table(tmp_path)).splitlines()[1:]]
    assert {line[0]: line[2] for line in lines} == told


def test_columns_line_up(sweep):
    lines = table_to_text(table(sweep)).splitlines()
    ends = {len(line) for line in lines}
    assert len(ends) == 1


def test_latex_is_a_whole_booktabs_table(sweep):
    lines = table_to_latex(table(sweep)).splitlines()
    assert lines[0] == r"\begin{tabular}{lllr}"
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = lines[2:-2]
    assert {line.count("&") for line in body if line != r"\midrule"} == {3}
    assert all(line.endswith(r"\\") for line in body if line != r"\midrule")


def test_markdown_has_as_many_cells_in_every_line(sweep):
    lines = table_to_markdown(table(sweep)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert set(lines[1]) <= set("|-: ")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    cells = [fake.Cell(name, "tanh", 3, seed) for name in (*fake.HOSTILE, NASTY, "a|b\nc&d_e") for seed in range(2)]
    fake.write_sweep(root, cells, steps=10, records=1)
    return root


def test_no_text_in_csv_starts_a_formula(hostile):
    rows = list(csv.reader(io.StringIO(table_to_csv(table(hostile)))))
    names = [row[0] for row in rows[1:]]
    assert "'" + NASTY in names
    assert not [name for name in names if name[0] in "=+-@\t\r"]
    # Numbers stay numbers: none of them is quoted as text.
    assert all(float(row[2]) for row in rows[1:])


def test_hostile_names_stay_one_cell_of_markdown(hostile):
    lines = table_to_markdown(table(hostile)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert not re.search(r"<(?!/?br)", "".join(lines))


def test_hostile_names_stay_one_cell_of_latex(hostile):
    body = table_to_latex(table(hostile)).split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(fake.HOSTILE) + 2
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {2}
    assert not [line for line in body if re.search(r"(?<!\\)[%#_]", line)]


def test_a_terminal_is_not_steered(tmp_path):
    fake.write_sweep(tmp_path, [fake.Cell("\x1b[2Jred\x9b", "tanh", 3, 0)], steps=10, records=1)
    shown = table_to_text(table(tmp_path))
    assert r"\x1b[2Jred\x9b" in shown
    assert not set(shown) & {"\x1b", "\x9b"}


@pytest.mark.parametrize("character", list("\\&%$#_{}~^<>|"))
def test_latex_escapes(character):
    escaped = escape_latex(f"a{character}b")
    assert escaped != f"a{character}b"
    assert escaped.startswith("a\\")


@pytest.mark.parametrize("character", list("\\|*`[]~$#<"))
def test_markdown_escapes(character):
    assert escape_markdown(f"a{character}b") in (f"a\\{character}b", "a&lt;b")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"by": ["detph"]}, ("--by", "detph", "depth")),
        ({"metrics": ["test_acuracy"]}, ("--metric", "test_acuracy", "test_accuracy")),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(sweep, keywords, words):
    with pytest.raises(UserError) as caught:
        table(sweep, **keywords)
    assert all(word in str(caught.value) for word in words)


def test_best_rate_leaves_the_others_out(tmp_path, capsys):
    cells = [fake.Cell("he_normal", "tanh", 3, seed, lr) for lr in (0.001, 0.01, 0.03) for seed in range(2)]
    fake.write_sweep(tmp_path, cells, steps=100, records=1)
    print_run_table([str(tmp_path)], [], [], None, "csv", False, True)
    found = read_csv(capsys.readouterr().out)
    runs = load(tmp_path)
    best = runs.groupby("optim.lr")["val_loss"].mean().idxmin()
    assert found["test_accuracy mean"].tolist() == [
        pytest.approx(runs.loc[runs["optim.lr"] == best, "test_accuracy"].mean())
    ]


def run(*arguments):
    code = "from initlab.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("form", FORMATS)
def test_the_verb_prints_every_format(sweep, form):
    done = run("table", str(sweep), "--format", form, "--best")
    assert done.returncode == 0, done.stderr
    assert "he" in done.stdout
    assert done.stdout == FORMATS[form](table(sweep, best=True))


@pytest.mark.parametrize("arguments", [("--format", "latx"), ("--by", "detph"), ("--metric", "lss")])
def test_the_verb_refuses_in_one_sentence(sweep, arguments):
    done = run("table", str(sweep), *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("initlab: ")
    assert "Did you mean" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_an_empty_directory_is_one_sentence_and_exit_code_2(tmp_path):
    done = run("table", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"initlab: There is no run .*\.\n", done.stderr)
