"""A sweep's own run in TensorBoard: pictures, the table, and charts over depth, as its reader finds them."""

import fake_sweeps as fake
import matplotlib.image
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import initlab
from initlab.records import load
from initlab.report import write_sweep_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("tensorboard") / "sweep"
    cells = fake.grid(("he_normal", "zeros", fake.HOSTILE[0]), ("tanh", "relu"), (3, 10), range(2))
    fake.write_sweep(root, cells, {0: "diverged"}, steps=60, records=1)
    return root


@pytest.fixture(scope="module")
def events(sweep):
    return read(write_sweep_run(sweep))


def read(place):
    found = EventAccumulator(str(place), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    found.Reload()
    return found


def test_a_heat_map_of_the_metric_and_of_outcomes_for_every_activation(events):
    assert sorted(events.Tags()["images"]) == [
        "outcomes/relu", "outcomes/tanh", "test_accuracy/relu", "test_accuracy/tanh",
    ]  # fmt: skip
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert min(image.width, image.height) > 100


def test_the_pictures_are_not_blank(events, tmp_path):
    for tag in events.Tags()["images"]:
        path = tmp_path / "image.png"
        path.write_bytes(events.Images(tag)[0].encoded_image_string)
        assert len(np.unique(matplotlib.image.imread(path).reshape(-1, 4), axis=0)) > 20


def test_charts_over_depth_are_the_means_of_the_runs(events, sweep):
    runs = load(sweep)
    done = runs[runs["status"] == "completed"]
    for act in ("tanh", "relu"):
        points = {point.step: point.value for point in events.Scalars(f"over_depth/{act}/he_normal")}
        own = done[(done["act"] == act) & (done["init"] == "he_normal")]
        assert points == pytest.approx(own.groupby("depth")["test_accuracy"].mean().to_dict(), rel=1e-5)


def test_the_layout_names_charts_that_exist(events):
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    assert sorted(chart.title for chart in category.chart) == ["relu", "tanh"]
    assert "over depth" in category.title


def test_the_table_is_text_without_markup_of_the_names(events):
    text = events.Tensors("all_runs")[0].tensor_proto.string_val[0].decode()
    assert "| he_normal | tanh | 3 |" in text
    assert "1 completed, 1 diverged" in text or "1 diverged, 1 completed" in text
    assert "<img" not in text
    assert "**" not in text  # two seeds decide nothing


def test_writing_it_again_replaces_it(sweep):
    first = read(write_sweep_run(sweep)).Tags()["images"]
    again = read(write_sweep_run(sweep))
    assert again.Tags()["images"] == first
    assert [len(again.Images(tag)) for tag in first] == [1] * len(first)


def test_it_is_no_run_of_the_sweep(sweep):
    write_sweep_run(sweep)
    assert len(load(sweep)) == 24


def test_a_single_run_has_none(tmp_path):
    fake.write_sweep(tmp_path, [fake.Cell("he_normal", "tanh", 3, 0)], steps=5, records=1)
    assert write_sweep_run(tmp_path) is None


@pytest.mark.parametrize("options", [{}, {"race": True, "tune__rates": [0.01, 0.1], "tune__seeds": 1}])
def test_a_sweep_from_python_has_one_unless_it_is_not_wanted(tmp_path, options):
    grid = {"init": ["he_normal", "zeros"], "depth": 1, "width": 4, "train__steps": 2, "quiet": True, **options}
    initlab.sweep(**grid, sweep__root=str(tmp_path), sweep__name="with")
    initlab.sweep(**grid, sweep__root=str(tmp_path), sweep__name="without", log__tensorboard=False)
    assert "all_runs" in read(tmp_path / "with" / "sweep").Tags()["tensors"]
    assert not (tmp_path / "without" / "sweep").exists()
