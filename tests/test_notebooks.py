"""The notebooks of docs/ run from top to bottom, without a notebook server."""

import ast
import json
from pathlib import Path

import pytest
from matplotlib import pyplot

DOCS = Path(__file__).parents[1] / "docs"


def sources(name):
    cells = json.loads((DOCS / name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def executed(name):
    """Run the code cells one after another in one namespace, and return it."""
    space = {"__name__": "__main__"}
    for number, source in enumerate(sources(name)):
        exec(compile(source, f"{name}[{number}]", "exec"), space)
    return space


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("Agg")
    yield tmp_path
    pyplot.close("all")


def test_every_notebook_is_tested():
    assert [path.name for path in DOCS.glob("*.ipynb")] == ["sweep_to_figure.ipynb"]


def test_a_sweep_becomes_a_figure_in_ten_lines(elsewhere):
    found = executed("sweep_to_figure.ipynb")
    assert sum(len(ast.parse(source).body) for source in sources("sweep_to_figure.ipynb")) <= 10
    assert set(found["runs"]["status"]) == {"completed"}
    assert found["table"].shape == (3, 6)
    left, right = found["figure"].axes
    assert len(right.lines) == 3
    assert [len(line.get_xdata()) for line in right.lines] == [21, 21, 21]
    means = found["runs"].groupby(["init", "depth"])["test_accuracy"].mean()
    assert left.lines[0].get_ydata() == pytest.approx(means["glorot_uniform"].to_numpy())
