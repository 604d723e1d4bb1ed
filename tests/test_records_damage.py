"""What a kill, a full disk or a damaged file does to a run directory: whole lines stay, reasons are given."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest

from initlab.errors import UserError
from initlab.records import RunWriter, load, load_histograms, load_layers, load_metrics, write_sweep
from initlab.records.checksums import RECORDS
from initlab.statistics.histograms import histogram

CONFIG = {"init": {"name": "he_normal"}, "act": {"name": "relu"}, "depth": 3, "width": [128, 64], "seed": 7}
EVENTS = "events.out.tfevents.initlab"


def a_run(directory):
    """A finished run with a little of everything."""
    run = RunWriter(directory, CONFIG)
    run.write_parameters(pd.DataFrame({"name": ["hidden.0.weight"], "shape": ["128x784"], "std": [0.05]}))
    run.add_scalars_block(range(5), {"loss": np.linspace(2, 1, 5, dtype=np.float32), "lr": np.full(5, 0.01)})
    run.add_scalars(4, {"val_loss": 1.5})
    run.add_layers([(0, "hidden.0", 1, "q", 1.25, "measured"), (0, "hidden.0", 1, "q", 1.0, "predicted")])
    run.add_histograms(0, {("weight", 1, "hidden.0"): histogram(np.array([0.0, 1.0, np.nan]))})
    run.finish("completed", loss=1.0, seconds=3.5, steps=5)
    return directory


@pytest.mark.parametrize("seed", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_a_run_that_cannot_be_read_rounds_no_number_of_another(tmp_path, seed):
    RunWriter(tmp_path / "a", {**CONFIG, "data": {"name": "gaussian", "seed": seed}}).finish("completed")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("{")
    runs = load(tmp_path)
    assert runs["status"].tolist() == ["completed", "damaged"]
    assert int(runs["data.seed"].iloc[0]) == seed
    assert pd.isna(runs["data.seed"].iloc[1])


KILLED = """
import sys, numpy as np
from initlab.statistics.histograms import histogram
from initlab.records import RunWriter
run = RunWriter(sys.argv[1], {"init": {"name": "zeros"}, "seed": 1}, flush_seconds=0.0)
for step in range(0, 10**7, 10):
    run.add_scalars_block(range(step, step + 10), {"loss": np.arange(step, step + 10.0)})
    run.add_layers([(step, "hidden.0", i, "q", float(step), "measured") for i in range(20)])
    run.add_histograms(step, {("weight", 1, "hidden.0"): histogram(np.arange(100))})
    if step % 200 == 190:
        print(step + 10, run.position(), flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.07, 0.15])
def test_kill_9_leaves_files_that_can_be_read_and_gone_on_with(tmp_path, delay):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        said = [child.stdout.readline()]
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    steps, position = [line for line in said if line.endswith("}\n")][-1].split(" ", 1)
    steps = int(steps)
    assert load(tmp_path).loc[0, "status"] == "unfinished"
    metrics = load_metrics(tmp_path)
    assert metrics["step"].tolist() == list(range(len(metrics)))
    assert len(metrics) >= steps
    assert len(load_histograms(tmp_path)) >= steps // 10

    run = RunWriter.resume(tmp_path / "run", eval(position), {"init": {"name": "zeros"}, "seed": 1})
    run.add_scalars_block(range(steps, steps + 10), {"loss": np.arange(steps, steps + 10.0)})
    run.finish("completed")
    assert load_metrics(tmp_path)["loss"].tolist() == [float(step) for step in range(steps + 10)]
    assert load(tmp_path)[["status", "problem"]].values.tolist() == [["completed", ""]]


# disks


def test_a_directory_that_cannot_be_made_is_one_sentence_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"{tmp_path}/file/run cannot be written .*choose another directory") as caught:
        RunWriter(tmp_path / "file" / "run", CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some"), (errno.EACCES, "permissions"), (errno.EROFS, "permissions"), (errno.EMFILE, "ulimit"),
     (errno.EIO, "choose another")],
)  # fmt: skip
def test_what_the_system_refuses_is_translated_at_every_method(tmp_path, monkeypatch, number, remedy):
    run = RunWriter(tmp_path, CONFIG)

    def refuse(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("initlab.system.files.open", refuse, raising=False)
    run.add_scalars(0, {"loss": 1.0})
    with pytest.raises(UserError, match=rf"{tmp_path}.*{remedy}"):
        run.flush()
    with pytest.raises(UserError, match=remedy):
        run.finish("completed")
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("full", ["layers.csv", "metrics.csv"])
def test_a_full_disk_costs_no_row_and_doubles_none(tmp_path, full):
    run = RunWriter(tmp_path, CONFIG, tensorboard=False)
    (tmp_path / full).symlink_to("/dev/full")
    run.add_scalars(1, {"loss": 0.5})
    run.add_layers([(1, "hidden.0", 1, "q", 1.0, "measured")])
    for _ in range(2):
        with pytest.raises(UserError, match=rf"No space is left for {tmp_path}.*free some"):
            run.flush()
    (tmp_path / full).unlink()
    run.finish("completed")
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == ["1,0.5,,,,,,,"]
    assert (tmp_path / "layers.csv").read_text().splitlines()[1:] == ["1,hidden.0,1,q,1.0,measured"]


FULL = """
import resource, sys
from initlab.errors import UserError
from initlab.records import RunWriter
run = RunWriter(sys.argv[1], {"init": {"name": "zeros"}}, tensorboard=False)
run.add_scalars_block(range(1000), {"loss": [0.5] * 1000})
run.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_003, 20_003))
run.add_scalars_block(range(1000, 9000), {"loss": [0.5] * 8000})
ended = RunWriter(sys.argv[1] + "/../b", {"init": {"name": "zeros"}}, tensorboard=False)
for attempt in (run.flush, lambda: ended.finish("completed", note="x" * 50_000)):
    try:
        attempt()
    except UserError as error:
        print(error)
"""


def test_what_was_written_in_part_is_cut_off_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run")], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("No space is left for") == 2
    assert (tmp_path / "run" / "metrics.csv").read_bytes().endswith(b"\n")
    assert len(load_metrics(tmp_path / "run")) == 1000
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["config.yaml"]
    assert load(tmp_path)["status"].tolist() == ["unfinished"] * 2


# damage


@pytest.mark.parametrize(
    ("name", "content", "status", "problem"),
    [
        ("summary.json", b"", "damaged", "summary.json cannot be read"),
        ("summary.json", b'{"status": "comp', "damaged", "summary.json cannot be read"),
        ("summary.json", b"[1, 2]", "damaged", "it has no keys"),
        ("summary.json", b"\xff\xfe\x00", "damaged", "summary.json cannot be read"),
        ("summary.json", b'{"status": "fine"}', "damaged", "its status is not one of completed"),
        ("summary.json", b'{"status": "completed", "config": 3}', "completed", ""),
        ("summary.json", None, "unfinished", ""),
        ("config.yaml", b"{", "completed", "config.yaml has 1 bytes where"),
        ("metrics.csv", None, "completed", "metrics.csv is missing"),
        ("metrics.csv", b"", "completed", "metrics.csv has 0 bytes where"),
        ("layers.csv", b"step,layer\n0,hid", "completed", "layers.csv has 16 bytes where"),
    ],
)
def test_damage_is_a_row_with_its_reason(tmp_path, name, content, status, problem):
    a_run(tmp_path / "good")
    a_run(tmp_path / "bad")
    assert_said(tmp_path, name, content, status, problem)


def assert_said(tmp_path, name, content, status, problem):
    (tmp_path / "bad" / name).unlink()
    if content is not None:
        (tmp_path / "bad" / name).write_bytes(content)
    runs = load(tmp_path).set_index("path")
    assert runs["status"].tolist() == [status, "completed"]
    assert runs["problem"].iloc[1] == ""
    found = runs["problem"].iloc[0]
    assert problem in found if problem else not found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", b"{", ""),
        ("metrics.csv", None, "metrics.csv is missing"),
        ("metrics.csv", b"", "metrics.csv is empty"),
        ("metrics.csv", b"step,loss\n0,1.0\n1,0", "metrics.csv ends in the middle of a line"),
        ("layers.csv", b"step,layer\n0,hid", "layers.csv ends in the middle of a line"),
    ],
)
def test_damage_of_a_run_without_checksums_is_seen_at_its_end(tmp_path, name, content, problem):
    for run in ("good", "bad"):
        a_run(tmp_path / run)
        summary = json.loads((tmp_path / run / "summary.json").read_text())
        for key in ("format", "crc32", "files"):
            del summary[key]
        (tmp_path / run / "summary.json").write_text(json.dumps(summary))
    assert_said(tmp_path, name, content, "completed", problem)


def test_a_run_without_a_readable_word_is_still_listed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{")
    row = load(tmp_path).iloc[0]
    assert row["status"] == "damaged"
    assert row["problem"].startswith("config.yaml cannot be read")


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_raises(tmp_path, seed):
    rng = random.Random(seed)
    run = a_run(tmp_path / "run")
    for path in rng.sample(sorted(path for path in run.iterdir() if path.name != EVENTS), 2):
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(data))
            junk = bytes(rng.choice([rng.randrange(256), *b'",\n\r\0 -e.=']) for _ in range(rng.randint(0, 9)))
            data[place : place + rng.randint(0, 20)] = junk
        path.write_bytes(data)
    runs = load(tmp_path)
    assert len(runs) == 1
    for read in (load_metrics, load_layers, load_histograms):
        assert (read(runs)["path"] == str(run)).all()
    write_sweep(tmp_path, runs)


def test_no_flip_of_a_bit_in_a_record_goes_unseen(tmp_path):
    run, rng = a_run(tmp_path / "run"), random.Random(0)
    records = sorted(path for path in run.iterdir() if path.name not in (EVENTS, "run.log"))
    assert [path.name for path in records] == sorted([*RECORDS[:5], "summary.json"])
    assert load(run)["problem"].tolist() == [""]
    for path in records:
        intact = path.read_bytes()
        for _ in range(60):
            data = bytearray(intact)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            assert path.name in load(run)["problem"].iloc[0], data
        path.unlink()
        path.mkdir()  # nor is what is no file
        assert path.name in load(run)["problem"].iloc[0]
        path.rmdir()
        path.write_bytes(intact)


def test_a_table_that_no_checksum_speaks_of_is_none_of_the_run(tmp_path):
    run = RunWriter(tmp_path, CONFIG, tensorboard=False)
    run.add_scalars(0, {"loss": 1.0})
    run.finish("completed")
    assert load(tmp_path)["problem"].tolist() == [""]
    (tmp_path / "layers.csv").write_text("step,layer,index,stat,value,source\n")
    assert load(tmp_path)["problem"].tolist() == ["layers.csv was not written by this run"]


@pytest.mark.parametrize("files", [3, {"metrics.csv": 3}, {"metrics.csv": {"bytes": "9" * 5000}}, {"metrics.csv": {}}])
def test_checksums_that_are_none_are_a_problem(tmp_path, files):
    a_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for key in ("format", "crc32"):
        del summary[key]
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"files": files}))
    assert "checksum" in load(tmp_path)["problem"].iloc[0]


def test_a_torn_last_line_is_no_value(tmp_path):
    run = a_run(tmp_path)
    data = (run / "metrics.csv").read_bytes()
    assert data.endswith(b"4,1.0,,0.01,,1.5,,,\n")
    (run / "metrics.csv").write_bytes(data[: -len("5,,,\n")])
    assert load_metrics(run)["step"].tolist() == [0, 1, 2, 3]


def test_a_broken_line_costs_that_line_alone(tmp_path):
    run = a_run(tmp_path)
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    lines[2] = '1,"0.9,,0.01,,,,,\n'
    lines[4] = "3,what,,0.01,,,,,\n"
    (run / "metrics.csv").write_text("".join(lines))
    metrics = load_metrics(run)
    assert metrics["step"].tolist() == [0, 2, 3, 4]
    assert np.isnan(metrics["loss"].iloc[2])
