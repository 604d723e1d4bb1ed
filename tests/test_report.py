"""The report's page and what it rests on: damaged runs listed, names as text, comparisons that count every seed."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import fake_sweeps as fake
import numpy as np
import pandas as pd
import pytest

import initlab
from initlab.errors import UserError
from initlab.records import load
from initlab.report import write_report
from initlab.report.curves import expected_steps, steps_to_targets, thin_curve, thin_steps
from initlab.report.diagnosis import explain_run
from initlab.report.layers import layer_arrays
from initlab.report.page import inline_script
from initlab.report.pairs import compare_schemes, rate_windows, run_scores
from initlab.report.payload import collect_report_data
from initlab.report.study import at_best_rate, build_study, fresh_seeds
from initlab.system.escape import printable


class Scripts(HTMLParser):
    """What an HTML parser takes for scripts, and every address that an element names."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.scripts, self.addresses, self.tags, self.inside = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href") and value]
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attributes), ""))

    def handle_data(self, text):
        if self.inside:
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + text)

    def handle_endtag(self, tag):
        self.inside = False


def payload_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Thirty runs of every kind, hostile names and damage among them."""
    root = tmp_path_factory.mktemp("report") / "sweep <b>"
    fake.write_large(root, 40, steps=60, records=3)
    return root


@pytest.fixture(scope="module")
def page(sweep):
    return write_report([sweep])


def test_the_page_is_html_that_asks_for_nothing(page):
    found = Scripts(page.path.read_text(encoding="utf-8"))
    assert [address for address in found.addresses if not address.startswith(("#", "data:"))] == []
    assert len(found.scripts) == 3
    assert not found.tags & {"img", "b", "iframe", "object", "embed"}


def test_only_our_own_scripts_may_run(page):
    text = page.path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    named = set(re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy))
    running = [body for attributes, body in Scripts(text).scripts if attributes.get("type") != "application/json"]
    hashes = {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in running}
    assert hashes == named
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_no_character_of_the_data_is_markup(page):
    text = page.path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert not re.search(r"[<>&\u2028\u2029]", data)
    assert set(map(printable, fake.HOSTILE)) <= set(payload_of(page.path)["runs"]["scheme"]["texts"])


def test_the_title_is_text(page):
    assert "<h1>sweep &lt;b&gt;</h1>" in page.path.read_text(encoding="utf-8")


def test_every_damage_is_listed_with_its_reason(page, sweep):
    found = {row["name"]: row for row in payload_of(page.path)["unread"]}
    assert found["no <run> at all"]["status"] == "no run"
    reasons = [(row["status"], row["reason"]) for row in found.values()]
    assert any(status == "damaged" and "summary.json" in reason for status, reason in reasons)
    assert any("metrics.csv has" in reason and "were written" in reason for _, reason in reasons)
    assert any(status == "failed" and "cable" in reason for status, reason in reasons)
    assert any(status == "unfinished" and "no summary.json" in reason for status, reason in reasons)
    assert any(status == "skipped" for status, _ in reasons)
    assert all(reason for _, reason in reasons)


def test_all_that_can_be_counted_is_counted(page, sweep):
    runs = load(sweep)
    assert payload_of(page.path)["runs"]["count"] == (runs["status"] != "damaged").sum()


DAMAGE = {
    "empty files": lambda run: [path.write_bytes(b"") for path in run.glob("*.csv")],
    "no files": lambda run: [path.unlink() for path in run.glob("*.csv")],
    "noise": lambda run: [path.write_bytes(bytes(range(256)) * 9) for path in run.glob("*.csv")],
    "directories": lambda run: [(path.unlink(), path.mkdir()) for path in run.glob("*.csv")],
    "a summary that is a number": lambda run: (run / "summary.json").write_text("3"),
    "an unknown status": lambda run: (run / "summary.json").write_text('{"status": "odd", "val_loss": "x"}'),
    "metrics of text": lambda run: (run / "metrics.csv").write_text("step,loss\nabc,def\n"),
    "metrics of one column": lambda run: (run / "metrics.csv").write_text("step\n0\n1\n"),
    "layers without steps": lambda run: (run / "layers.csv").write_text("layer,value\na,1\n"),
}


def test_a_lost_configuration_is_that_of_the_summary(tmp_path):
    paths = fake.write_sweep(tmp_path, fake.grid(("he_normal",), ("tanh",), (3,), range(3)), steps=20, records=2)
    (paths[0] / "config.yaml").unlink()
    (paths[1] / "config.yaml").write_text("[1, 2]")
    found = payload_of(write_report([tmp_path]).path)
    assert [row["status"] for row in found["unread"]] == ["completed"] * 2
    assert [row["reason"].split()[0] for row in found["unread"]] == ["config.yaml"] * 2
    assert found["runs"]["count"] == 3
    assert found["runs"]["scheme"]["texts"] == ["he_normal"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_never_stops_the_report(tmp_path, damage):
    paths = fake.write_sweep(tmp_path, fake.grid(("he_normal",), ("tanh",), (3,), range(3)), steps=20, records=2)
    DAMAGE[damage](paths[1])
    found = payload_of(write_report([tmp_path]).path)
    assert found["runs"]["count"] + sum(row["status"] == "damaged" for row in found["unread"]) == 3
    assert paths[1].name in [row["name"] for row in found["unread"]]


def test_a_run_without_any_record_of_layers_or_curves(tmp_path):
    paths = fake.write_sweep(tmp_path, fake.grid(("he_normal", "zeros"), ("tanh",), (3,), range(2)), steps=5, records=1)
    for path in paths:
        for name in ("layers.csv", "histograms.csv", "metrics.csv"):
            (path / name).unlink()
    assert write_report([tmp_path]).path.stat().st_size > 1e6


def test_several_sweeps_together_count_a_run_once(tmp_path):
    cells = fake.grid(("he_normal",), ("tanh",), (3, 10), range(2))
    first = fake.write_sweep(tmp_path / "a", cells, steps=20, records=1)
    fake.write_sweep(tmp_path / "b", fake.grid(("zeros",), ("tanh",), (3,), range(2)), steps=20, records=1)
    shutil.copytree(first[0], tmp_path / "b" / first[0].name)
    found = payload_of(write_report([tmp_path / "a", tmp_path / "b"], out=tmp_path).path)
    assert found["runs"]["count"] == 6
    assert found["twice"] == 1
    assert found["runs"]["sweep"]["texts"] == ["a", "b"]
    assert (tmp_path / "report.html").is_file()


def test_what_still_runs_is_shown_as_unfinished(tmp_path):
    fake.write_sweep(tmp_path, fake.grid(("he_normal",), ("tanh",), (3,), range(2)), {1: "unfinished"}, steps=20)
    found = collect_report_data([tmp_path])
    assert sorted(found.study.runs["outcome"]) == ["trained", "unfinished"] or "unfinished" in set(
        found.study.runs["outcome"]
    )
    assert len(found.payload["curves"]["metrics"]["loss"]["run"]) == 2


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    fake.write_sweep(tmp_path, [fake.Cell("he_normal", "tanh", 3, 0)], steps=5, records=1)
    first = write_report([tmp_path]).path.read_bytes()
    monkeypatch.setattr("initlab.report.write.render_report", lambda *_: (_ for _ in ()).throw(RuntimeError("cut")))
    with pytest.raises(RuntimeError):
        write_report([tmp_path])
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_script_that_ends_itself_is_refused():
    with pytest.raises(ValueError, match="ends its own element"):
        inline_script("'</SCRIPT>'")


def run(*arguments):
    code = "from initlab.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, "report", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("place", ["empty", "missing"])
def test_nothing_to_report_is_one_sentence_and_exit_code_2(tmp_path, place):
    (tmp_path / "empty").mkdir()
    done = run(str(tmp_path / place))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"initlab: There is no .*\.\n", done.stderr)
    assert not (tmp_path / "empty" / "report.html").exists()


def test_the_verb_prints_table_verdicts_and_place(tmp_path):
    cells = fake.grid(("he_normal", "zeros", "orthogonal"), ("tanh",), (3,), range(5))
    fake.write_sweep(tmp_path, cells, {7: "failed"}, steps=60, records=1)
    done = run(str(tmp_path), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^zeros +4 completed, 1 failed", done.stdout, re.M)
    assert re.search(
        r"tanh, depth 3: he_normal against orthogonal: (smaller than seed noise|cannot tell), ", done.stdout
    )
    assert done.stdout.count("2 pairs of schemes cannot be compared: 4 common seeds, and it takes 5") == 1
    assert "zeros against" not in done.stdout
    assert "the interval holds the true one:" in done.stdout
    assert (tmp_path / "page.html").is_file()


# ---- what is compared


def frame(scores, **columns):
    """A frame of `load` from scheme -> seed -> test accuracy (None: diverged)."""
    rows = [
        {
            "init": name, "act": "tanh", "depth": 3, "seed": seed, "optim.lr": 0.01, "data": "d",
            "status": "diverged" if value is None else "completed", "problem": "", "test_accuracy": value,
            "val_loss": None if value is None else 1 - value, "loss": 1.0, "hash": f"{name}{seed}",
            "trained": value is not None, "path": f"/x/{name}-{seed}",
        }
        for name, own in scores.items()
        for seed, value in own.items()
    ]  # fmt: skip
    found = pd.concat([load([]), pd.DataFrame(rows)], ignore_index=True) if rows else load([])
    return (
        pd.DataFrame(rows).reindex(columns=list(dict.fromkeys([*list(rows[0])[:6], *found.columns]))).assign(**columns)
    )


def test_a_diverged_run_counts_as_the_worst():
    runs = build_study(frame({"a": {0: 0.9, 1: None}, "b": {0: 0.2, 1: 0.8}})).runs
    assert run_scores(runs, "test_accuracy").tolist() == [0.9, 0.2, 0.2, 0.8]


def test_pairs_are_paired_by_seed():
    shift = {seed: 0.5 + 0.08 * seed for seed in range(6)}
    runs = build_study(frame({"a": {s: v + 0.01 + 0.0005 * s for s, v in shift.items()}, "b": shift})).runs
    row = compare_schemes(runs, "test_accuracy").iloc[0]
    # Unpaired, a difference of 1 point drowns in seeds that span 40.
    assert (row["verdict"], row["n"]) == ("better", 6)
    assert row["difference"] == pytest.approx(0.01125)


def test_losses_are_better_when_smaller():
    scores = {"a": {s: 0.5 + 0.001 * s for s in range(6)}, "b": {s: 0.2 + 0.002 * s for s in range(6)}}
    row = compare_schemes(build_study(frame(scores)).runs, "val_loss").iloc[0]
    assert (row["first"], row["verdict"]) == ("a", "better")


def tuned():
    """Seeds 0 and 1 at three rates, seeds 2 to 6 at the best of them."""
    cells = [(seed, rate) for rate in (0.001, 0.01, 0.1) for seed in (0, 1)] + [(seed, 0.01) for seed in range(2, 7)]
    rows = [frame({"a": {seed: 0.9 - abs(math.log10(rate) + 2) * 0.4}}, **{"optim.lr": rate}) for seed, rate in cells]
    return build_study(pd.concat(rows, ignore_index=True).assign(hash=[str(k) for k in range(len(rows))])).runs


def test_seeds_that_chose_are_known_without_a_mark():
    runs = tuned()
    assert fresh_seeds(runs).tolist() == [False] * 6 + [True] * 5
    assert runs.loc[at_best_rate(runs), "seed"].tolist() == [2, 3, 4, 5, 6]


def test_the_mark_of_a_race_is_believed():
    runs = tuned().assign(race=["tuning"] * 6 + ["final"] * 5)
    one = runs[(runs["rate"] == 0.01) | (runs["race"] == "final")].reset_index(drop=True)
    assert fresh_seeds(one).tolist() == [False, False] + [True] * 5


def test_the_window_of_usable_rates():
    runs = tuned()
    runs["outcome"] = ["trained" if rate > 0.005 else "stuck" for rate in runs["rate"]]
    row = rate_windows(runs).iloc[0]
    assert (row["low"], row["high"], row["usable"], row["tried"], row["best"]) == (0.01, 0.1, 2, 3, 0.01)
    assert row["decades"] == pytest.approx(1)
    assert row["edge"]


# ---- curves


def test_time_to_a_target_is_that_of_the_slow_way():
    generator = np.random.default_rng(0)
    for _ in range(20):
        steps = np.arange(200)
        losses = 2 * np.exp(-steps / generator.uniform(10, 100)) + 0.1 * generator.standard_normal(200)
        levels = [1.5, 0.5, 0.1, -1.0]
        slow = []
        for level in levels:
            means = [losses[k - 9 : k + 1].mean() for k in range(9, 200)]
            slow.append(next((9.0 + k for k, m in enumerate(means) if m <= level), float("nan")))
        assert steps_to_targets(steps, losses, levels) == pytest.approx(slow, nan_ok=True)


def test_thinning_keeps_the_ends_and_every_value():
    steps = np.arange(10_001)
    values = np.random.default_rng(1).random(10_001)
    grid = thin_steps(10_000)
    at, means = thin_curve(steps, values, grid)
    assert len(at) <= 64
    assert (at[0], at[-1]) == (0, 10_000)
    counts = np.diff([-1, *at])
    assert np.dot(counts, means) == pytest.approx(values.sum())


# ---- plain words for failures


def rows_of(**stats):
    """Layer rows of step 0: stat -> its values over the layers."""
    rows = [
        (0, f"hidden.{k}", k + 1, stat, value, "measured")
        for stat, values in stats.items()
        for k, value in enumerate(values)
    ]
    return layer_arrays(pd.DataFrame(rows, columns=["step", "layer", "index", "stat", "value", "source"]))


STUCK = {"outcome": "stuck", "status": "completed", "val_accuracy": 0.1}
BLOWN = {"outcome": "diverged", "status": "diverged", "first_bad_step": 3.0, "first_bad_layer": "hidden.2", "rate": 0.5}


@pytest.mark.parametrize(
    ("row", "stats", "words"),
    [
        (STUCK, {"weight_norm": [0, 0, 0, 0]}, "Every layer is all zeros"),
        (STUCK, {"weight_norm": [1, 0, 1, 1]}, "Layer hidden.1 is all zeros"),
        (STUCK, {"duplicate_units": [7, 7, 7, 3]}, "All hidden layers cannot break symmetry: in hidden.0 all 8 units"),
        (STUCK, {"grad_mean_square": [0, 0, 0, 0]}, "No gradient reaches"),
        (STUCK, {"q": [1, 0.01, 1e-4, 1e-8, 1]}, "signal dies"),
        (STUCK, {"q": [1, 100, 1e4, 1e6, 1]}, "signal explodes"),
        (STUCK, {"q": [1, 1, 1, 1, 1], "c": [0.5, 0.9, 0.99, 0.99999, 1]}, "look the same from layer hidden.3 on"),
        (STUCK, {"q": [1, 1, 1, 1], "dead_fraction": [0, 0.95, 0.2, 0]}, "hidden.1 is dead: 95% of the units"),
        (STUCK, {"q": [1, 1, 1, 1], "saturated_fraction": [0, 0.2, 0.97, 0]}, "hidden.2 is saturated: 97% of"),
        (STUCK, {"q": [1, 1, 1], "grad_mean_square": [1e-12, 1e-6, 1, 1]}, "gradient dies"),
        (STUCK, {"q": [1, 1, 1, 1]}, "Nothing is wrong at step 0"),
        (BLOWN, {"q": [1, 100, 1e4, 1e6, 1]}, "signal explodes"),
        (BLOWN, {"q": [1, 1, 1, 1], "grad_mean_square": [1e6, 1e3, 1, 1]}, "gradient explodes"),
        (BLOWN, {"q": [1, 1, 1, 1]}, "in order, so the rate 0.5 is too large"),
        (BLOWN, {"q": [1, 1, 1, 1], "grad_mean_square": [1, 0.5, 0, 1]}, "rate 0.5 is too large"),
        (BLOWN, {"grad_norm": [1]}, "at step 3, first in hidden.2"),
    ],
)  # fmt: skip
def test_a_failure_is_said_in_plain_words(row, stats, words):
    assert words in explain_run(row, rows_of(**stats))


def test_a_network_that_trained_has_no_diagnosis():
    assert explain_run({"outcome": "trained", "status": "completed"}, rows_of(q=[1, 0, 0])) == ""


def test_unknown_places_are_refused(tmp_path):
    fake.write_sweep(tmp_path, [fake.Cell("he_normal", "tanh", 3, 0)], steps=5, records=1)
    with pytest.raises(UserError, match="There is no directory"):
        write_report([tmp_path], out=tmp_path / "no" / "such.html")


@pytest.mark.parametrize("unset", [[None, None], [None, 100.0], [float("nan"), 100.0]])
def test_runs_of_epochs_are_as_long_as_their_like(unset):
    runs = pd.DataFrame({"train.steps": unset, "train.epochs": 1, "data": "a", "steps": [7, 9]})
    assert expected_steps(runs) == ([9, 9] if unset == [None, None] else [7, 9])


def test_the_depth_to_which_theory_lets_a_network_train_comes_from_its_records(tmp_path):
    own = {"width": 8, "depth": [2, 4], "act": "tanh", "init": ["lecun_normal", "torch_default", "lsuv"]}
    own |= {"train.steps": 2, "data": "gaussian"}
    initlab.sweep({**own, "sweep.root": str(tmp_path), "sweep.name": "s"}, quiet=True)
    runs = load(tmp_path).groupby("init")["trainable_depth"]
    assert runs.get_group("lecun_normal").tolist() == [math.inf] * 2
    assert runs.get_group("torch_default").between(1, 20).all()
    assert runs.get_group("lsuv").isna().all()
    told = collect_report_data([tmp_path]).payload["runs"]["trainable_depth"]
    assert sorted(value for value in told if value is not None)[-2:] == [1e4] * 2
    assert told.count(None) == 2
