"""The run directory: what goes in comes back, whatever the values, the disk or a kill did in between."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from initlab.errors import UserError
from initlab.records import (
    RunWriter,
    describe_environment,
    load,
    load_histograms,
    load_layers,
    load_metrics,
    run_directories,
    write_sweep,
)
from initlab.records.columns import escape_formula, unescape_formula
from initlab.statistics.histograms import histogram

NAN, INF = float("nan"), float("inf")
CONFIG = {
    "init": {"name": "he_normal", "gain": "paper", "sigma_b": 0.0},
    "act": {"name": "relu"},
    "model": {"name": "mlp", "norm": "none"},
    "data": {"name": "fashion_mini", "root": None},
    "optim": {"name": "sgd", "lr": 1e-5},
    "depth": 3,
    "width": [128, 64, 32],
    "seed": 7,
}
EVENTS = "events.out.tfevents.initlab"


def a_run(directory, config=CONFIG, status="completed", **fields):
    """A finished run with a little of everything."""
    run = RunWriter(directory, config, hparams={"init": "he_normal", "depth": 3})
    run.write_parameters(pd.DataFrame({"name": ["hidden.0.weight"], "shape": ["128x784"], "std": [0.05]}))
    run.add_scalars_block(range(5), {"loss": np.linspace(2, 1, 5, dtype=np.float32), "lr": np.full(5, 0.01)})
    run.add_scalars(4, {"val_loss": 1.5})
    run.add_layers([(0, "hidden.0", 1, "q", 1.25, "measured"), (0, "hidden.0", 1, "q", 1.0, "predicted")])
    run.add_histograms(0, {("weight", 1, "hidden.0"): histogram(np.array([0.0, 1.0, NAN]))})
    run.finish(status, **{"loss": 1.0, "seconds": 3.5, "steps": 5, "hash": "abcd1234", **fields})
    return directory


# what goes in comes back


def test_a_run_comes_back_as_one_row(tmp_path):
    a_run(tmp_path / "a")
    row = load(tmp_path).iloc[0]
    expected = {"init": "he_normal", "init.gain": "paper", "act": "relu", "optim": "sgd", "optim.lr": 1e-5, "depth": 3}
    expected |= {"width": "[128, 64, 32]", "seed": 7, "status": "completed", "problem": "", "loss": 1.0, "steps": 5}
    expected |= {"seconds": 3.5, "hash": "abcd1234", "path": str(tmp_path / "a")}
    assert {key: row[key] for key in expected} == expected


def test_an_unfinished_run_has_the_same_configuration_as_a_finished_one(tmp_path):
    config = {
        **CONFIG,
        "flag": True,
        "texts": ["1e-3", "no", "null", "=x", "naïve"],
        "tiny": 1e-30,
        "when": "2026-01-01",
    }
    RunWriter(tmp_path / "a", config)
    RunWriter(tmp_path / "b", config).finish("skipped", reason="none of it")
    runs = load(tmp_path)
    assert runs["status"].tolist() == ["unfinished", "skipped"]
    keys = [key for key in runs if key not in ("status", "path", "reason", "environment")]
    first, second = runs[keys].astype(object).where(runs[keys].notna(), None).values.tolist()
    assert first == second


def test_metrics_of_one_step_are_one_row_and_blank_where_absent(tmp_path):
    a_run(tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss,accuracy,lr,grad_norm,val_loss,val_accuracy,test_loss,test_accuracy"
    assert lines[1] == "0,2.0,,0.01,,,,,"
    assert lines[-1] == "4,1.0,,0.01,,1.5,,,"
    assert len(lines) == 6


def test_metrics_of_one_step_on_both_sides_of_a_flush_are_one_row_when_read(tmp_path):
    run = RunWriter(tmp_path, CONFIG)
    run.add_scalars(3, {"loss": 1.0})
    run.flush()
    run.add_scalars(3, {"val_loss": 2.0})
    run.flush()
    metrics = load_metrics(tmp_path)
    assert metrics[["step", "loss", "val_loss"]].values.tolist() == [[3, 1.0, 2.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_keep_every_bit(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal(2000).astype(dtype) * dtype(1e-3)
    run = RunWriter(tmp_path, CONFIG, tensorboard=False)
    for start in range(0, 2000, 333):
        part = values[start : start + 333]
        run.add_scalars_block(np.arange(start, start + len(part)), {"grad_norm": part, "loss": part})
        run.flush()
    run.finish("completed")
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2001
    metrics = load_metrics(tmp_path)
    assert metrics["step"].tolist() == list(range(2000))
    np.testing.assert_array_equal(metrics["loss"].to_numpy().astype(dtype), values)


def test_layer_rows_come_back_with_the_run_beside_them(tmp_path):
    for seed, layer in enumerate(["hidden.0", "=1+1", 'a,"b', "null"]):
        run = RunWriter(tmp_path / str(seed), {**CONFIG, "seed": seed})
        run.add_layers([(step, layer, 1, "q", seed + step / 4, "measured") for step in range(seed + 1)])
        run.finish("completed")
    layers = load_layers(tmp_path)
    assert len(layers) == 1 + 2 + 3 + 4
    assert set(zip(layers["path"], layers["seed"], layers["layer"], strict=True)) == {
        (str(tmp_path / "0"), 0, "hidden.0"), (str(tmp_path / "1"), 1, "=1+1"),
        (str(tmp_path / "2"), 2, 'a,"b'), (str(tmp_path / "3"), 3, "null"),
    }  # fmt: skip
    assert layers["value"].tolist() == (layers["seed"] + layers["step"] / 4).tolist()
    assert layers[["init", "act", "depth", "index", "stat", "source"]].drop_duplicates().values.tolist() == [
        ["he_normal", "relu", 3, 1, "q", "measured"]
    ]
    assert "\n0,'=1+1,1,q,1.0,measured\n" in (tmp_path / "1" / "layers.csv").read_text()
    assert len(load_layers(load(tmp_path).query("seed == 3"))) == 4


def test_histograms_come_back(tmp_path):
    record = histogram(np.array([0.0, 0.5, 1.0, INF, NAN]))
    run = RunWriter(tmp_path, CONFIG)
    run.add_histograms(2, {("gradient", 1, "a,b"): record, ("weight", 2, "=c"): histogram(np.full(3, NAN))})
    run.finish("diverged")
    rows = load_histograms(tmp_path)
    first, second = rows.iloc[0], rows.iloc[1]
    assert first[["step", "layer", "index", "kind", "low", "high", "num", "nonfinite"]].tolist() == [
        2, "a,b", 1, "gradient", 0.0, 1.0, 3, 2,
    ]  # fmt: skip
    assert tuple(first["counts"]) == record.counts
    assert second["layer"] == "=c"
    assert (second["num"], second["nonfinite"]) == (0, 3)


def test_parameters_are_a_table_whose_text_is_harmless(tmp_path):
    run = RunWriter(tmp_path, CONFIG)
    run.write_parameters(pd.DataFrame({"name": ["=cmd()", None], "fan_in": [784, 3], "std": [-0.5, NAN]}))
    assert (tmp_path / "parameters.csv").read_text() == "name,fan_in,std\n'=cmd(),784,-0.5\n,3,\n"


def test_the_log_has_a_time_before_each_line(tmp_path):
    run = RunWriter(tmp_path, CONFIG)
    run.log("first")
    run.finish("completed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d first\n", (tmp_path / "run.log").read_text())


# values that loggers choke on


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38, -1e38, 1e300, 1e-45, 5e-324])
def test_no_value_raises_anywhere(tmp_path, value):
    run = RunWriter(tmp_path, CONFIG, hparams={"lr": value})
    run.add_scalars(0, {"loss": value, "lr": np.float32(1)})
    run.add_scalars_block([1, 2, 3], {"loss": np.array([value] * 3), "accuracy": [value] * 3})
    run.add_layers([(s, "hidden.0", 1, "q", value, source) for s in (0, 1) for source in ("measured", "predicted")])
    run.add_histograms(3, {("weight", 1, "x"): histogram(np.array([value, value, 0.0]))})
    run.add_histograms(4, {("weight", 1, "x"): histogram(np.array([value]))})
    run.finish("diverged", loss=value, worst={"deep": [value]})
    np.testing.assert_equal(load(tmp_path).loc[0, "loss"], value)
    np.testing.assert_equal(load_metrics(tmp_path)["loss"].tolist(), [value] * 4)
    np.testing.assert_equal(load_layers(tmp_path)["value"].tolist(), [value] * 4)


def test_the_summary_is_json_to_any_reader(tmp_path):
    a_run(tmp_path, loss=NAN, accuracy=-INF, widest=INF)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert (summary["loss"], summary["accuracy"]) == ("NaN", "-Infinity")
    assert load(tmp_path)["widest"].tolist() == [INF]
    assert summary["config"]["optim"]["lr"] == 1e-5
    assert summary["environment"]["versions"]["torch"]


# files


def test_the_configuration_is_there_first_and_the_summary_last(tmp_path):
    run = RunWriter(tmp_path / "deep" / "a", CONFIG)
    run.add_scalars(0, {"loss": 1.0})
    assert (tmp_path / "deep" / "a" / "config.yaml").exists()
    assert load(tmp_path).loc[0, "status"] == "unfinished"
    run.finish("completed")
    ages = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "deep" / "a").iterdir()}
    assert max(ages, key=ages.__getitem__) == "summary.json"
    assert not [name for name in ages if name.endswith(".tmp")]


def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    runs = [RunWriter(tmp_path / str(seed), CONFIG) for seed in range(50)]
    for run in runs:
        run.add_scalars(0, {"loss": 1.0})
        run.flush()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_rows_are_written_without_being_asked_for_after_a_while(tmp_path):
    run = RunWriter(tmp_path, CONFIG, flush_seconds=0.0)
    run.add_scalars_block(range(10), {"loss": [1.0] * 10})
    assert load_metrics(tmp_path)["step"].tolist() == list(range(9))  # the last row is still open


def test_a_second_attempt_leaves_nothing_of_the_first(tmp_path):
    a_run(tmp_path)
    RunWriter(tmp_path, CONFIG, tensorboard=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_an_unknown_metric_is_refused_with_its_neighbours(tmp_path):
    with pytest.raises(UserError, match="val_loss"):
        RunWriter(tmp_path, CONFIG).add_scalars(0, {"valloss": 1.0})


def test_hparams_name_only_the_metrics_a_run_measures(tmp_path):
    # the page hides runs that lack one of them
    RunWriter(tmp_path / "a", CONFIG, hparams={"seed": 1}, metrics=("loss", "test_loss"))
    events = (tmp_path / "a" / EVENTS).read_bytes()
    assert b"summary/test_loss" in events
    assert b"summary/test_accuracy" not in events


# going on


def fill(run, steps):
    for step in steps:
        run.add_scalars(step, {"loss": 1 / (step + 1)})
        if step % 5 == 0:
            run.add_layers([(step, "hidden.0", 1, "q", float(step), "measured")])
            run.add_histograms(step, {("weight", 1, "hidden.0"): histogram(np.arange(step + 1))})
            run.log(f"step {step}")


def tables(directory):
    return {name: (directory / name).read_bytes() for name in ("metrics.csv", "layers.csv", "histograms.csv")}


@pytest.mark.parametrize("checkpoint", [0, 1, 7, 20])
def test_a_resumed_run_equals_one_that_was_never_interrupted(tmp_path, checkpoint):
    whole = RunWriter(tmp_path / "whole", CONFIG)
    fill(whole, range(20))
    whole.finish("completed")

    first = RunWriter(tmp_path / "cut", CONFIG)
    fill(first, range(checkpoint))
    position = json.loads(json.dumps(first.position()))
    fill(first, range(checkpoint, 18))
    first.finish("failed")

    second = RunWriter.resume(tmp_path / "cut", position, CONFIG)
    assert load(tmp_path / "cut").loc[0, "status"] == "unfinished"
    fill(second, range(checkpoint, 20))
    second.finish("completed")
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")
    assert load(tmp_path)["status"].tolist() == ["completed"] * 2
    assert (tmp_path / "cut" / "run.log").read_text().count("step 5") == 1


def test_a_file_shorter_than_its_checkpoint_is_refused(tmp_path):
    run = RunWriter(tmp_path, CONFIG)
    fill(run, range(10))
    position = run.position()
    os.truncate(tmp_path / "layers.csv", 10)
    with pytest.raises(UserError, match=r"layers\.csv has 10 bytes"):
        RunWriter.resume(tmp_path, position, CONFIG)


# finding runs, tables, facts


def test_every_directory_with_a_configuration_is_a_run_and_hidden_ones_are_not(tmp_path):
    a_run(tmp_path / "x" / "b")
    a_run(tmp_path / "a")
    (tmp_path / "a" / ".hydra").mkdir()
    (tmp_path / "a" / ".hydra" / "config.yaml").write_text("a: 1")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: 1")
    assert run_directories(tmp_path) == [tmp_path / "a", tmp_path / "x" / "b"]
    assert run_directories([tmp_path / "a", str(tmp_path)]) == [tmp_path / "a", tmp_path / "x" / "b"]
    assert run_directories(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(UserError, match="There is no directory"):
        load(tmp_path / "nowhere")


def test_nothing_is_an_empty_table_with_its_columns(tmp_path):
    assert load(tmp_path).empty
    assert {"init", "status", "loss", "path"} <= set(load(tmp_path).columns)
    assert {"path", "step", "stat", "value"} <= set(load_layers(tmp_path).columns)
    assert load_metrics(tmp_path).empty
    assert load_histograms(tmp_path).empty


@pytest.mark.parametrize("text", ["=1+1", "+a", "-x", "@y", "'=z", "\tq", "plain", "", "-0.5", 'he, "n"\n', "π <b>"])
def test_text_cannot_start_a_formula_and_comes_back(text):
    cell = escape_formula(text)
    assert unescape_formula(cell) == text
    assert not cell.startswith(("=", "+", "@", "\t")) or cell.lstrip("+").replace(".", "").isdigit()


def test_the_sweep_table_is_whole_and_harmless(tmp_path):
    a_run(tmp_path / "a", {**CONFIG, "note": "=HYPERLINK()", "shift": -0.5}, first_bad_step=4, first_bad_layer="-x")
    path = write_sweep(tmp_path, load(tmp_path))
    assert path == tmp_path / "sweep.csv"
    table = pd.read_csv(path)
    assert table.loc[0, ["note", "shift", "first_bad_step", "first_bad_layer"]].tolist() == [
        "'=HYPERLINK()",
        -0.5,
        4,
        "'-x",
    ]
    assert ",4," in path.read_text()


def test_the_environment_knows_this_checkout():
    facts = describe_environment()
    assert facts["python"] == sys.version.split()[0]
    assert facts["versions"]["torch"]
    assert facts["commit"] is None or re.fullmatch("[0-9a-f]{40}", facts["commit"])


def test_reading_and_writing_runs_import_neither_torch_nor_tensorflow(tmp_path):
    code = (
        "import sys; from initlab.records import RunWriter, load; "
        f"RunWriter({str(tmp_path / 'a')!r}, {{}}).finish('completed'); "
        "assert 'pandas' not in sys.modules, 'pandas is for readers'; "
        f"load({str(tmp_path)!r}); print({{'torch', 'tensorflow'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
