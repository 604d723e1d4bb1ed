"""TensorBoard's files are a view: that they are there, or gone, decides nothing; CSV, summary and configuration do."""

import re
import shutil
from pathlib import Path

import pytest
from fake_sweeps import Cell, grid, write_run, write_sweep

import initlab
from initlab.cli.report import print_run_table, run_report
from initlab.cli.train import run_train as train
from initlab.records import RunWriter, load, load_metrics
from initlab.records.writer import EVENT_FILE_NAME
from initlab.report import write_sweep_run

SOURCE = Path(initlab.__file__).parent
TINY = ["depth=1", "width=4", "data=gaussian", "data.train_size=60", "data.test_size=20", "train.batch_size=20"]
TINY += ["train.steps=2", "log.histograms=2"]


@pytest.mark.parametrize("viewed", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_the_screen_names_tensorboard_only_where_it_was_on(tmp_path, capsys, viewed, several):
    options = [*TINY, f"log.tensorboard={str(viewed).lower()}"]
    if several:
        code = train(["-m", "init=zeros,ones", f"sweep.root={tmp_path}", "sweep.name=s", *options])
    else:
        code = train([*options, f"hydra.run.dir={tmp_path}/s"])
    out = capsys.readouterr().out
    assert code == 0
    assert ("tensorboard --logdir" in out) == viewed
    assert bool(list(tmp_path.rglob("*tfevents*"))) == viewed
    if not viewed:
        assert re.search(r"initlab report \S*s\b", out)
    run_report([str(tmp_path / "s")], None)
    assert "tensorboard" not in capsys.readouterr().out


def test_a_cell_of_a_grid_with_tensorboard_is_enough(tmp_path, capsys):
    grids = "sweep.grids=[{seed: '0', log.tensorboard: 'false'}, {seed: '1', log.tensorboard: 'true'}]"
    assert train(["-m", "init=zeros", f"sweep.root={tmp_path}", "sweep.name=s", grids, *TINY]) == 0
    assert "tensorboard --logdir" in capsys.readouterr().out


def told(root, out, capsys):
    """What report and table print of a sweep, without where the page is and how large."""
    run_report([str(root)], str(out))
    print_run_table([str(root)], [], [], None, "text", False, False)
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("report ")]


def test_report_and_table_are_the_same_without_any_event_file(tmp_path, capsys):
    root = tmp_path / "sweep"
    write_sweep(root, grid(["zeros", "he_normal"], ["tanh"], [2], range(2)), {0: "failed", 1: "unfinished"}, steps=10)
    stranger = root / "stranger"
    for place in (*(Path(path) for path in load(root)["path"]), stranger):
        place.mkdir(exist_ok=True)
        RunWriter(tmp_path / "view", {}).flush()
        shutil.copy(tmp_path / "view" / EVENT_FILE_NAME, place / EVENT_FILE_NAME)
    write_sweep_run(root)
    before = told(root, tmp_path / "page.html", capsys)
    assert any("stranger: no run" in line for line in before)  # whatever TensorBoard shows of it
    assert not any(line.startswith("sweep: no run") for line in before)
    for path in root.rglob("*tfevents*"):
        path.unlink()
    assert told(root, tmp_path / "page.html", capsys) == before


@pytest.mark.parametrize("viewed", [True, False])
def test_a_run_whose_tables_alone_are_left_is_a_damaged_run(tmp_path, capsys, viewed):
    run = tmp_path / "sweep" / "run"
    write_run(run, Cell("zeros", "tanh", 2, 0), steps=5, records=2)
    write_run(tmp_path / "sweep" / "whole", Cell("zeros", "tanh", 2, 1), steps=5, records=2)
    for name in ("summary.json", "config.yaml"):
        (run / name).unlink()
    if viewed:
        (run / EVENT_FILE_NAME).write_bytes(b"")
    found = load(tmp_path).set_index("path").loc[str(run)]
    assert found["status"] == "damaged"
    assert found["problem"].startswith("config.yaml cannot be read")
    run_report([str(tmp_path / "sweep")], str(tmp_path))
    assert "run: damaged: config.yaml cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["gone", "shorter", "empty", "longer", "none"])
def test_a_run_goes_on_whatever_became_of_its_event_file(tmp_path, harm):
    run = RunWriter(tmp_path, {"depth": 1})
    run.add_scalars_block(range(10), {"loss": [1.0] * 10})
    position = run.position()
    events = tmp_path / EVENT_FILE_NAME
    size = events.stat().st_size
    if harm == "gone":
        events.unlink()
    elif harm != "none":
        data = events.read_bytes()
        events.write_bytes({"shorter": data[:-9], "empty": b"", "longer": data + b"x" * 9}[harm])
    run = RunWriter.resume(tmp_path, position, {"depth": 1})
    run.add_scalars(10, {"loss": 0.5})
    run.finish("completed")
    assert load_metrics(tmp_path)["loss"].tolist() == [1.0] * 10 + [0.5]
    assert load(tmp_path)["problem"].tolist() == [""]
    assert events.stat().st_size > size or harm not in ("longer", "none")
    assert 10 in steps_of(events)


def steps_of(path):
    """The steps of the scalars in an event file, every record of which must be whole."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [event.step for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]


def test_tensorboard_may_be_switched_off_between_two_launches(tmp_path):
    run = RunWriter(tmp_path, {"depth": 1})
    run.add_scalars(0, {"loss": 1.0})
    run = RunWriter.resume(tmp_path, run.position(), {"depth": 1}, tensorboard=False)
    run.add_scalars(1, {"loss": 0.5})
    run.finish("completed")
    assert not (tmp_path / EVENT_FILE_NAME).exists()
    assert load_metrics(tmp_path)["step"].tolist() == [0, 1]


WRITERS = {
    "records/writer.py",
    "records/event_file.py",
    "records/tensorboard.py",
    "records/repair.py",
    "report/tensorboard.py",
}
LOOKS = re.compile(r"tfevents|\bEVENTS\b|EventAccumulator|EventFileLoader|event_accumulator|summary_iterator")


@pytest.mark.parametrize("path", sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")))
def test_only_what_writes_event_files_knows_their_name(path):
    found = LOOKS.findall((SOURCE / path).read_text(encoding="utf-8"))
    assert path in WRITERS or not found


def test_nothing_reads_event_files_back():
    for path in WRITERS:
        assert not re.search(r"EventAccumulator|EventFileLoader|summary_iterator", (SOURCE / path).read_text())
