"""TensorBoard of a grid: its cells can be told apart, a run has one loss everywhere, a hundred runs open."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import browser as pages
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

import initlab
from initlab.config.grid import compose_grid
from initlab.experiment.run_recorder import DEFAULT_HPARAMS, shown_hparams
from initlab.records import RunWriter, load
from initlab.records.tensorboard import HISTOGRAM_GROUPS, LOG_STATS, TAGS
from initlab.report.study import build_study
from initlab.statistics.histograms import Histogram

ROOT = Path(__file__).parents[1]
SMALL = {"depth": 1, "width": 4, "data": "gaussian", "train__steps": 3, "log__histograms": 1, "quiet": True}


def read(path):
    found = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    return found


def session(events):
    """The hyperparameters of a run, and the names of those that the page shows without being asked."""
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(plugin)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    plugin = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(plugin)
    assert {info.name for info in experiment.hparam_infos} == set(values)
    return values, {info.name for info in experiment.hparam_infos if info.differs}


GRIDS = {
    "usual": ({"init": ["he_normal", "zeros"], "seed": [0, 1]}, {"init", "seed"}),
    "width": ({"width": [4, 8], "seed": [0, 1]}, {"width", "seed"}),
    "nested": ({"model__norm": ["none", "batch"], "optim__momentum": [0.0, 0.9]}, {"model.norm", "optim.momentum"}),
    "batch": ({"train__batch_size": [16, 32], "data__seed": [0, 1]}, {"train.batch_size", "data.seed"}),
    "gain": ({"init": "he_normal", "init__gain": ["paper", 0.5]}, {"init.gain"}),
    "optimizers": ({"optim": ["sgd", "adam"]}, {"optim"}),
    "sub-grids": (
        {"sweep__grids": [{"train.batch_size": "16,32"}, {"optim.lr": "0.1,0.2"}]},
        {"train.batch_size", "optim.lr"},
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_what_a_grid_sweeps_tells_its_cells_apart(tmp_path, name):
    axes, swept = GRIDS[name]
    runs = initlab.sweep(**{**SMALL, **axes}, sweep__root=str(tmp_path))
    found = [session(read(path)) for path in runs["path"]]
    told = [tuple(str(values.get(key)) for key in sorted(swept)) for values, _ in found]
    assert len(set(told)) == len(runs)
    # An option brings its own defaults along (adam has no momentum): what follows from it need not be shown.
    assert all(first >= swept and len(first) <= 5 for _, first in found)
    assert all(set(DEFAULT_HPARAMS) <= set(values) for values, _ in found)


def test_a_grid_that_grew_by_a_key_can_be_told_apart(tmp_path):
    grid = {**SMALL, "sweep__root": str(tmp_path), "sweep__name": "grown"}
    initlab.sweep(**grid, seed=[0, 1])
    runs = initlab.sweep(**{**grid, "width": [4, 8]}, seed=[0, 1])
    found = [session(read(path))[0] for path in runs["path"]]
    assert len({(values["width"], values["seed"]) for values in found}) == 4


def test_every_key_that_has_a_say_is_there():
    (config,), _ = compose_grid(["depth=2"])
    found = shown_hparams(config.plain())
    assert {"width", "train.batch_size", "precision", "data.seed", "optim.lr"} <= set(found)
    assert not {"device", "sweep.name", "log.every", "dry_run"} & set(found)


def test_a_single_run_shows_the_keys_that_were_typed(tmp_path):
    words = ["width=4", "depth=1", "data=gaussian", "train.steps=2", "optim.weight_decay=0.1", "log.histograms=0"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = load(tmp_path)["path"]
    values, first = session(read(path))
    assert {"width", "optim.weight_decay"} <= first
    assert (values["width"], values["optim.weight_decay"]) == (4.0, 0.1)


def test_a_run_has_one_loss_everywhere(tmp_path, capsys):
    frame = initlab.sweep(**{**SMALL, "train__steps": 80}, init=["he_normal", "zeros"], sweep__root=str(tmp_path))
    loaded = load(tmp_path).set_index("path")
    reported = build_study(load(tmp_path)).runs.set_index("path")
    table = next(tmp_path.rglob("sweep.csv")).read_text()
    for row in frame.to_dict("records"):
        events = read(row["path"])
        summary = json.loads((Path(row["path"]) / "summary.json").read_text())
        last = {
            name: events.Scalars(f"summary/{name}")[-1].value
            for name in ("loss", "accuracy", "val_loss", "test_accuracy")
        }
        for name, value in last.items():
            others = [summary[name], row[name], loaded.loc[row["path"], name], reported.loc[row["path"], name]]
            assert others == pytest.approx([value] * 4, rel=1e-6)
            assert str(summary[name]) in table
        # The last batch alone has another one: of the two this test can tell.
        assert events.Scalars("loss/train")[-1].value != pytest.approx(last["loss"], rel=1e-6)


def test_weights_come_before_gradients():
    groups = sorted({*HISTOGRAM_GROUPS.values(), *(tag.split("/")[0] for tag in TAGS.values())})
    assert groups[-len(HISTOGRAM_GROUPS) :] == list(HISTOGRAM_GROUPS.values())
    assert next(iter(HISTOGRAM_GROUPS)) == "weight"
    assert list(HISTOGRAM_GROUPS)[-1] == "gradient"


def write_runs(root, count, depth=10, steps=40):
    """Runs as large as those of a real grid, in a second: the statistics and histograms of every layer."""
    generator = np.random.default_rng(0)
    stats = ("q", "c", "mean", "std", "grad_mean_square", "saturated_fraction", "dead_fraction", "update_ratio")
    stats += ("weight_norm", "grad_norm", "effective_rank", "duplicate_units", "jacobian_mean")
    bell = (10,) * 64
    for k in range(count):
        run = RunWriter(root / f"run-{k:03d}", {"seed": k}, hparams={"seed": k}, first=["seed"], flush_seconds=1e9)
        loss = 0.5 + np.exp(-np.arange(steps) / (k + 5)) + 0.05 * generator.standard_normal(steps)
        run.add_scalars_block(np.arange(steps), {"loss": loss, "accuracy": 1 - loss / 3})
        for step in (0, 1, 5, steps):
            rows = [(step, f"hidden.{i}", i + 1, s, 0.9**i, "measured") for i in range(depth) for s in stats]
            run.add_layers(
                rows + [(0, f"hidden.{i}", i + 1, "q", 0.8**i, "predicted") for i in range(depth) if not step]
            )
            record = Histogram(-1.0, 1.0, bell, sum(bell), 0.0, 1.0)
            run.add_histograms(
                step, {(kind, i + 1, f"hidden.{i}"): record for i in range(depth) for kind in HISTOGRAM_GROUPS}
            )
        run.add_scalars(steps, {"val_loss": float(loss[-1]), "val_accuracy": 0.5})
        run.finish("completed", loss=float(loss.mean()), steps=steps)


def test_the_page_of_a_hundred_runs_asks_for_little(tmp_path):
    """What Custom Scalars asks for is one request for each run and chart of the open category, a line for each tag."""
    write_runs(tmp_path, 2)
    events = read(tmp_path / "run-000")
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    tags = events.Tags()["scalars"]
    opened = [category for category in layout.category if not category.closed]
    assert sum(len(category.chart) for category in opened) <= 2
    assert 3 <= len(layout.category) <= 4
    for category in layout.category:
        assert len(category.chart) <= 5
        for chart in category.chart:
            lines = [tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)]
            assert 1 <= len(lines) <= 2, chart.title
            # Words for what a chart shows; where logarithms are drawn its title says so.
            assert len(chart.title.split()) >= 3
            assert ("log10" in chart.title) == all("log10" in tag for tag in lines) == any("log10" in t for t in lines)
    values = {point.step: point.value for point in events.Scalars("profile/log10_q measured")}
    assert values == pytest.approx({k + 1: k * np.log10(0.9) for k in range(10)}, abs=1e-6)
    assert {"q", "grad_mean_square", "update_ratio"} <= LOG_STATS
    assert set(TAGS.values()) >= {"loss/val", "accuracy/val"}


TOGGLE = """
const all = [];
(function walk(node) {
  for (const child of node.childNodes) {
    if (child.tagName === "PAPER-BUTTON" && /toggle all runs/i.test(child.textContent)) all.push(child);
    walk(child);
  }
  if (node.shadowRoot) walk(node.shadowRoot);
})(document.body);
if (all.length) all[0].click();
return all.length;
"""


def shown_text(driver) -> str:
    """Return the words of a page, each parted by one blank."""
    return " ".join(" ".join(driver.execute_script(pages.WORDS)).split())


def until(condition, seconds=240):
    """Wait generously: on a busy machine too, and the test asks for no time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.3)
    return condition()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_runs_open_in_a_browser(tmp_path):
    if not pages.CHROMIUM or not pages.DRIVER:
        pytest.skip("there is no chromium with its chromedriver")
    write_runs(tmp_path / "logs", 100)
    log = tmp_path / "tensorboard.log"
    words = ["--logdir", str(tmp_path / "logs"), "--port", "0", "--host", "127.0.0.1"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *words], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())).group()

        def tags():
            return json.loads(opener.open(f"{address}data/plugin/scalars/tags", timeout=60).read()).values()

        assert until(lambda: sum("summary/loss" in some for some in tags()) == 100)
        driver = pages.start()
        try:
            driver.get(f"{address}#custom_scalars")
            assert until(lambda: driver.execute_script(TOGGLE))
            assert until(
                lambda: " ".join(" ".join(driver.execute_script(pages.WORDS)).split()).count("Matches (100)") == 2
            )
            asked = [url for url in pages.requests(driver) if "plugin/custom_scalars/scalars" in url]
            assert len(asked) == 200
            severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
            assert severe == []
        finally:
            driver.quit()
    finally:
        child.terminate()
        child.wait()
