"""What TensorBoard itself makes of the event files: asked over HTTP, and looked at in a browser."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import WORDS

import initlab
from initlab.records import EventFile, RunWriter
from initlab.statistics.histograms import histogram

MESSAGES = {
    "tensorboard.compat.proto.event_pb2": ["Event"],
    "tensorboard.compat.proto.histogram_pb2": ["HistogramProto"],
    "tensorboard.compat.proto.summary_pb2": ["Summary", "SummaryMetadata"],
    "tensorboard.compat.proto.tensor_pb2": ["TensorProto"],
    "tensorboard.compat.proto.tensor_shape_pb2": ["TensorShapeProto"],
    "tensorboard.compat.proto.types_pb2": ["DT_FLOAT", "DT_STRING"],
    "tensorboard.plugins.custom_scalar.layout_pb2": ["Layout"],
    "tensorboard.plugins.hparams.api_pb2": ["Experiment", "HParamInfo", "MetricInfo", "MetricName", "STATUS_SUCCESS"],
    "tensorboard.plugins.hparams.plugin_data_pb2": ["HParamsPluginData", "SessionStartInfo", "SessionEndInfo"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MESSAGES.items() for name in names])
def test_tensorboard_has_the_messages_that_event_files_are_made_of(module, name):
    assert hasattr(importlib.import_module(module), name), (
        f"this TensorBoard has no {module}.{name}, with which records/event_file.py writes events (seen in 2.21)"
    )


def test_one_file_imports_tensorboard():
    source = Path(initlab.__file__).parent
    importing = re.compile(r"^\s*(from|import) tensorboard\b", re.M)
    files = [path for path in source.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert files == [source / "records" / "event_file.py"]


RUNS = ("he_normal-tanh-s0", "zeros-relu-s1")
STEPS = np.arange(20)
LOSS = {RUNS[0]: np.linspace(2.5, 0.5, 20), RUNS[1]: np.full(20, np.nan)}
WEIGHTS = np.random.default_rng(0).uniform(-0.5, 0.5, 3000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# The server is on this machine: no proxy between.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def a_png(side=4):
    """The smallest honest PNG: one grey square."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress((b"\0" + b"\x80" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write(root):
    for seed, name in enumerate(RUNS):
        init, act, _ = name.split("-")
        config = {"init": {"name": init}, "act": {"name": act}, "seed": seed, "note": "a|b <script>alert(1)</script>"}
        run = RunWriter(
            root / name,
            config,
            hparams={"init": init, "act": act, "seed": seed, "lr": 0.01, "big": True},
            first=["seed", "lr"],
        )
        run.add_scalars_block(STEPS, {"loss": LOSS[name], "lr": np.full(20, 0.01)})
        run.add_scalars(19, {"val_loss": 0.75, "val_accuracy": 0.5, "test_loss": 1e300, "test_accuracy": 0.25})
        run.add_layers(
            [(0, f"hidden.{k}", k + 1, "q", 1.0 + k, s) for k in range(12) for s in ("measured", "predicted")]
        )
        run.add_layers([(19, f"hidden.{k}", k + 1, stat, 2.0, "measured") for k in range(12) for stat in ("q", "std")])
        run.add_histograms(0, {("weight", 1, "hidden.0"): histogram(WEIGHTS if init != "zeros" else np.zeros(100))})
        run.add_histograms(19, {("weight", 1, "hidden.0"): histogram(np.append(WEIGHTS * 2, np.inf))})
        run.add_histograms(19, {("gradient", 1, "hidden.0"): histogram(np.full(9, np.nan))})
        done = np.isfinite(LOSS[name]).all()
        final = {"loss": LOSS[name][-10:].mean(), "val_loss": 0.75, "test_accuracy": 0.25, "steps": 20}
        run.finish("completed" if done else "diverged", **final)
    sweep = EventFile(root / "sweep" / "events.out.tfevents.initlab")
    sweep.path.parent.mkdir()
    sweep.add_image("accuracy", a_png())
    sweep.flush()


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast loader", "python loader"])
def server(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("logdir")
    write(root)
    words = ["--logdir", str(root), "--port", "0", "--host", "127.0.0.1", "--load_fast", request.param]
    command = [sys.executable, "-m", "tensorboard.main", *words]
    log = root.parent / f"tensorboard-{request.param}.log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as child:
        try:
            address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()), log, child).group()
            wait_for(lambda: set(ask(address, "runs")) >= {*RUNS, "sweep"}, log, child)
            wait_for(lambda: all("loss/test" in tags for tags in ask(address, SCALARS).values()), log, child)
            yield address
        finally:
            child.terminate()


SCALARS = "plugin/scalars/tags"


def wait_for(condition, log, child):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and child.poll() is None:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"TensorBoard did not get there:\n{log.read_text()}")


def ask(address, path, body=None, **query):
    url = f"{address}data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with OPENER.open(request, timeout=30) as answer:
        return json.loads(answer.read())


KINDS = ("tensor_1_weight", "tensor_4_gradient")


def test_scalars(server):
    tags = ask(server, SCALARS)[RUNS[0]]
    layers = {f"per_layer_log10_{stat}/{k + 1:02d}-hidden.{k}" for k in range(12) for stat in ("q", "std")}
    layers |= {f"per_layer_ends/log10_q {end}" for end in ("first", "last")}
    training = {"loss/train", "loss/val", "loss/test", "accuracy/val", "accuracy/test", "optim/lr"}
    training |= {"summary/loss", "summary/val_loss", "summary/test_accuracy"}
    profiles = {"profile/log10_q measured", "profile/log10_q predicted"}
    assert set(tags) == layers | training | profiles | {f"per_layer_nonfinite/{k}/01-hidden.0" for k in KINDS}
    points = ask(server, "plugin/scalars/scalars", run=RUNS[0], tag="loss/train")
    assert [step for _, step, _ in points] == STEPS.tolist()
    np.testing.assert_allclose([value for *_, value in points], LOSS[RUNS[0]], rtol=1e-6)
    times = [moment for moment, *_ in points]
    assert times == sorted(times)
    assert times[-1] - times[0] < 60


def test_a_diverged_run_shows_its_steps(server):
    points = ask(server, "plugin/scalars/scalars", run=RUNS[1], tag="loss/train")
    assert [value for *_, value in points] == ["NaN"] * 20


def test_the_forecast_lies_over_the_measurement_layer_by_layer(server):
    for source in ("measured", "predicted"):
        points = ask(server, "plugin/scalars/scalars", run=RUNS[0], tag=f"profile/log10_q {source}")
        assert [step for _, step, _ in points] == list(range(1, 13))
        np.testing.assert_allclose([value for *_, value in points], np.log10(np.arange(1, 13)), atol=1e-6)


def test_histograms_keep_their_range_and_their_counts(server):
    points = ask(server, "plugin/histograms/histograms", run=RUNS[0], tag="tensor_1_weight/01-hidden.0")
    assert [step for _, step, _ in points] == [0, 19]
    for factor, (_, _, buckets) in zip((1, 2), points, strict=True):
        left, right, counts = np.array([bucket for bucket in buckets if bucket[2]]).T
        expected, edges = np.histogram(WEIGHTS * factor, 64)
        np.testing.assert_array_equal(counts, expected)
        np.testing.assert_allclose(left, edges[:-1], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(right, edges[1:], rtol=1e-6, atol=1e-7)
    assert "tensor_4_gradient/01-hidden.0" not in ask(server, "plugin/histograms/tags")[RUNS[0]]


def test_equal_weights_are_a_spike_at_their_value(server):
    (_, step, buckets), *_ = ask(server, "plugin/histograms/histograms", run=RUNS[1], tag="tensor_1_weight/01-hidden.0")
    assert step == 0
    assert [bucket for bucket in buckets if bucket[2]] == [[0.0, 0.0, 100.0]]


def test_hparams_belong_to_the_runs_themselves(server):
    experiment = ask(server, "plugin/hparams/experiment", {"experimentName": ""})
    # What tells runs apart comes first: the page ticks five.
    assert [info["name"] for info in experiment["hparamInfos"]] == ["lr", "seed", "act", "big", "init"]
    shown = {info["name"]["tag"]: info["displayName"] for info in experiment["metricInfos"]}
    assert shown["summary/loss"] == "loss"
    assert shown["summary/test_accuracy"] == "test_accuracy"
    states = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    question = {"experimentName": "", "allowedStatuses": states, "startIndex": 0, "sliceSize": 100, "colParams": []}
    question["colParams"] = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    groups = ask(server, "plugin/hparams/session_groups", question)["sessionGroups"]
    sessions = {group["sessions"][0]["name"]: (group["hparams"], group["sessions"][0]) for group in groups}
    assert set(sessions) == set(RUNS)
    hparams, session = sessions[RUNS[0]]
    assert hparams == {"init": "he_normal", "act": "tanh", "seed": 0.0, "lr": 0.01, "big": True}
    last = {metric["name"]["tag"]: metric["value"] for metric in session["metricValues"]}
    # The loss that the summary has: the last batch alone had 0.5.
    assert last["summary/loss"] == pytest.approx(LOSS[RUNS[0]][-10:].mean())
    assert last["summary/test_accuracy"] == pytest.approx(0.25)
    assert session["status"] == "STATUS_SUCCESS"
    assert sessions[RUNS[1]][1]["status"] == "STATUS_FAILURE"


def test_custom_scalars_has_few_charts_with_few_lines_of_each_run(server):
    layout = ask(server, "plugin/custom_scalars/layout")
    charts = {group["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in group["chart"]}
              for group in layout["category"]}  # fmt: skip
    assert [group.get("closed", False) for group in layout["category"]] == [False, True, True, True]
    training, batches, profiles, curves = charts.values()
    assert list(training) == ["loss on validation data", "accuracy on validation data"]
    assert list(batches) == ["loss on training batches", "accuracy on training batches"]
    q = "log10 of q, mean square of preactivations"
    assert list(profiles) == list(curves) == [q]
    for patterns, count in ((curves[q], 2), (profiles[q], 2), (training["loss on validation data"], 1)):
        matched = ask(server, "plugin/custom_scalars/scalars", run=RUNS[0], tag=patterns[0])
        assert len(matched["tag_to_events"]) == count


def test_the_configuration_is_a_table_and_runs_no_script(server):
    text = ask(server, "plugin/text/text", run=RUNS[0], tag="config")[0]["text"]
    assert "<td>he_normal</td>" in text
    assert "a|b" in text
    assert "<script>" not in text


def test_images_are_images(server):
    (image,) = ask(server, "plugin/images/images", run="sweep", tag="accuracy", sample=0)
    with OPENER.open(f"{server}data/plugin/images/individualImage?{image['query']}", timeout=30) as answer:
        assert answer.read() == a_png()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM or not DRIVER:
        pytest.skip("there is no chromium with its chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--window-size=1400,1600", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.parametrize("server", ["true"], ids=["fast loader"], indirect=True)
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("timeseries", ["accuracy/val", "loss/train", *RUNS]),
        ("scalars", ["accuracy/val", "loss/train", "per_layer_log10_q", "profile", *RUNS]),
        ("custom_scalars", ["training", "layer by layer", "first and last layer over the steps", *RUNS]),
        ("histograms", ["tensor_1_weight/01-hidden.0", *RUNS]),
        ("distributions", ["tensor_1_weight/01-hidden.0", *RUNS]),
        ("hparams", ["init", "act", "seed", "he_normal", "zeros", "test_accuracy"]),
        ("text", ["config", "he_normal", "init"]),
        ("images", ["accuracy", "sweep"]),
    ],
)
def test_the_page_shows_the_tags_without_an_error(server, browser, page, words):
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(f"{server}#{page}")
    deadline = time.monotonic() + 60
    missing = words
    while missing and time.monotonic() < deadline:
        time.sleep(0.3)
        text = "".join(browser.execute_script(WORDS))
        missing = [word for word in words if word not in text]
    assert not missing
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
