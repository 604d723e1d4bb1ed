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

from initlab.errors import UserError
from initlab.records import load
from initlab.report.formats import FORMATS, as_csv, as_latex, as_markdown, as_text, latex_text, markdown_text
from initlab.report.runs import study
from initlab.report.say import say_table
from initlab.report.table import tabulated

NASTY = '=cmd|"/C calc"!A1'


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three schemes, two depths, three seeds; one diverged, one that was never finished."""
    root = tmp_path_factory.mktemp("table") / "sweep"
    cells = fake.grid(("he_normal", "zeros", "glorot_uniform"), ("tanh",), (3, 10), range(3))
    fake.write_sweep(root, cells, {0: "diverged", 4: "unfinished"}, steps=60, records=2)
    return root


def table(path, *arguments, **keywords):
    return tabulated(study(load(path)), *arguments, **keywords)


def read_csv(text):
    return pd.read_csv(io.StringIO(text))


def test_mean_and_deviation_are_numpys_over_completed_runs(sweep):
    runs = load(sweep)
    found = read_csv(as_csv(table(sweep)))
    for row in found.to_dict("records"):
        own = runs[(runs["init"] == row["init"]) & (runs["depth"] == row["depth"]) & (runs["status"] == "completed")]
        assert row["test_accuracy n"] == len(own)
        assert row["test_accuracy mean"] == pytest.approx(np.mean(own["test_accuracy"]), rel=1e-12)
        assert row["test_accuracy std"] == pytest.approx(np.std(own["test_accuracy"], ddof=1), rel=1e-9)
    assert len(found) == 6
    assert found["runs"].tolist().count("3") == 4


def test_failures_stay_visible(sweep):
    text = as_text(table(sweep))
    assert "2 completed, 1 diverged" in text
    assert "2 completed, 1 unfinished" in text


def test_groups_metrics_and_columns_are_the_users_choice(sweep):
    found = table(sweep, ["depth"], ["val_loss", "steps"], "init")
    assert found.keys == ("depth",)
    assert [column[0] for column in found.columns] == ["val_loss", "steps"] * 3
    assert [line.keys for line in found.lines] == [(3,), (10,)]
    head = as_text(found).splitlines()[0]
    assert "init=he_normal val loss" in head
    assert found.mixed == ()


def test_what_a_line_mixes_is_said(sweep, capsys):
    say_table([str(sweep)], ["init"], [], None, "text", False, False)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "depth" in err
    assert "--by" in err


def test_best_is_marked_among_rivals_only(sweep):
    found = table(sweep, best=True)
    for depth in (3, 10):
        lines = [line for line in found.lines if line.keys[1] == depth]
        means = [line.entries[0].mean for line in lines]
        assert [line.entries[0].best for line in lines] == [mean == max(means) for mean in means]


@pytest.mark.parametrize("by", [[], ["init", "depth"], ["depth"], ["depth", "init"]])
def test_schemes_side_by_side_compete_in_each_line(sweep, by):
    found = table(sweep, by, ["test_accuracy", "val_loss"], "init", best=True)
    assert found.keys == ("depth",)
    for line in found.lines:
        for metric, top in (("test_accuracy", max), ("val_loss", min)):
            own = [e for e, (name, _) in zip(line.entries, found.columns, strict=True) if name == metric]
            means = [entry.mean for entry in own]
            assert [entry.best for entry in own] == [mean == top(means) for mean in means]


def test_another_key_across_leaves_the_contest_to_the_first_one(sweep):
    found = table(sweep, [], [], "depth", best=True)
    assert found.keys == ("init",)
    for place in range(2):
        means = [line.entries[place].mean for line in found.lines]
        assert [line.entries[place].best for line in found.lines] == [mean == max(means) for mean in means]


def test_the_first_key_competes_where_it_is_across(sweep):
    (line,) = table(sweep, ["depth"], [], "depth", best=True).lines
    means = [entry.mean for entry in line.entries]
    assert [entry.best for entry in line.entries] == [mean == max(means) for mean in means]


def test_a_single_scheme_across_has_no_rivals_there(tmp_path):
    fake.write_sweep(tmp_path, fake.grid(("he_normal",), ("tanh",), (3, 10), range(2)), steps=10, records=1)
    found = table(tmp_path, ["depth"], [], "init", best=True)
    assert sum(line.entries[0].best for line in found.lines) == 1


def test_the_smallest_loss_is_the_best(sweep):
    found = table(sweep, (), ["val_loss"], best=True)
    lines = [line for line in found.lines if line.keys[1] == 3]
    assert min(lines, key=lambda line: line.entries[0].mean).entries[0].best
    assert sum(line.entries[0].best for line in lines) == 1


def test_ties_are_all_best(tmp_path):
    for name in ("he_normal", "zeros"):
        fake.write_sweep(tmp_path, [fake.Cell(name, "tanh", 3, 0)], steps=10, records=1)
    runs = load(tmp_path).assign(test_accuracy=0.5)
    assert [line.entries[0].best for line in tabulated(study(runs), best=True).lines] == [True, True]


def test_bold_in_every_format(sweep):
    found = table(sweep, best=True)
    assert len(re.findall(r" \*$", as_text(found), re.M)) == 2
    assert len(re.findall(r"\*\*\d", as_markdown(found))) == 2
    assert as_latex(found).count(r"$\mathbf{") == 2
    assert read_csv(as_csv(found))["test_accuracy best"].sum() == 2


def test_halves_are_rounded_alike_however_they_were_summed(tmp_path):
    told = fake.write_halves(tmp_path)
    lines = [line.split() for line in as_text(table(tmp_path)).splitlines()[1:]]
    assert {line[0]: line[2] for line in lines} == told


def test_columns_line_up(sweep):
    lines = as_text(table(sweep)).splitlines()
    ends = {len(line) for line in lines}
    assert len(ends) == 1


def test_latex_is_a_whole_booktabs_table(sweep):
    lines = as_latex(table(sweep)).splitlines()
    assert lines[0] == r"\begin{tabular}{lllr}"
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = lines[2:-2]
    assert {line.count("&") for line in body if line != r"\midrule"} == {3}
    assert all(line.endswith(r"\\") for line in body if line != r"\midrule")


def test_markdown_has_as_many_cells_in_every_line(sweep):
    lines = as_markdown(table(sweep)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert set(lines[1]) <= set("|-: ")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    cells = [fake.Cell(name, "tanh", 3, seed) for name in (*fake.HOSTILE, NASTY, "a|b\nc&d_e") for seed in range(2)]
    fake.write_sweep(root, cells, steps=10, records=1)
    return root


def test_no_text_in_csv_starts_a_formula(hostile):
    rows = list(csv.reader(io.StringIO(as_csv(table(hostile)))))
    names = [row[0] for row in rows[1:]]
    assert "'" + NASTY in names
    assert not [name for name in names if name[0] in "=+-@\t\r"]
    # Numbers stay numbers: none of them is quoted as text.
    assert all(float(row[2]) for row in rows[1:])


def test_hostile_names_stay_one_cell_of_markdown(hostile):
    lines = as_markdown(table(hostile)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert not re.search(r"<(?!/?br)", "".join(lines))


def test_hostile_names_stay_one_cell_of_latex(hostile):
    body = as_latex(table(hostile)).split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(fake.HOSTILE) + 2
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {2}
    assert not [line for line in body if re.search(r"(?<!\\)[%#_]", line)]


def test_a_terminal_is_not_steered(tmp_path):
    fake.write_sweep(tmp_path, [fake.Cell("\x1b[2Jred\x9b", "tanh", 3, 0)], steps=10, records=1)
    shown = as_text(table(tmp_path))
    assert r"\x1b[2Jred\x9b" in shown
    assert not set(shown) & {"\x1b", "\x9b"}


@pytest.mark.parametrize("character", list("\\&%$#_{}~^<>|"))
def test_latex_escapes(character):
    escaped = latex_text(f"a{character}b")
    assert escaped != f"a{character}b"
    assert escaped.startswith("a\\")


@pytest.mark.parametrize("character", list("\\|*`[]~$#<"))
def test_markdown_escapes(character):
    assert markdown_text(f"a{character}b") in (f"a\\{character}b", "a&lt;b")


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
    say_table([str(tmp_path)], [], [], None, "csv", False, True)
    found = read_csv(capsys.readouterr().out)
    runs = load(tmp_path)
    best = runs.groupby("optim.lr")["val_loss"].mean().idxmin()
    assert found["test_accuracy mean"].tolist() == [
        pytest.approx(runs.loc[runs["optim.lr"] == best, "test_accuracy"].mean())
    ]


def run(*arguments):
    code = "from initlab.cli import main; main()"
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
