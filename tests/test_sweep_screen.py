"""The table of cells at several widths, and in a file."""

import io

import pytest
from rich.console import Console

from initlab.sweep.screen import show_cells


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def text(of: Console) -> str:
    return of.file.getvalue()


ROWS = [
    {
        "init": "glorot_uniform",
        "act": "tanh",
        "optim.lr": "1000000000.0",
        "runs": 2,
        "test_accuracy_mean": 0.784,
        "test_accuracy_std": 0.008,
        "val_accuracy_mean": 0.79,
        "val_accuracy_std": 0.018,
        "loss_mean": 0.599,
        "loss_std": 0.01,
        "status": "1 completed, 1 diverged",
    },
    {"init": "dirac", "act": "tanh", "optim.lr": "0.01", "runs": 2, "status": "skipped"},
]
AXES = ["init", "act", "optim.lr"]


@pytest.mark.parametrize(
    ("width", "metrics"),
    [
        (120, ["runs", "test accuracy", "val accuracy", "loss"]),
        (100, ["runs", "test accuracy", "loss"]),
        (80, ["runs", "test accuracy"]),
        (70, ["test accuracy"]),
        (60, []),
    ],
)
def test_cells_keep_axes_and_status_at_any_width(width, metrics):
    out = console(width, terminal=True)
    show_cells(ROWS, AXES, out)
    header, *lines = text(out).splitlines()
    assert header.split() == " ".join([*AXES, *metrics, "status"]).split()
    assert lines[0].startswith("glorot_uniform  tanh  1e+09")
    assert lines[0].rstrip().endswith("1 completed, 1 diverged")
    assert lines[1].rstrip().endswith("skipped")
    assert max(map(len, [header, *lines])) <= width
    assert ("see sweep.csv" in text(out)) == (width < 120)


def test_cells_fold_where_even_the_axes_do_not_fit():
    out = console(30, terminal=True)
    show_cells(ROWS, AXES, out)
    whole = "".join(text(out).split())
    assert "diverged" in whole
    assert max(map(len, text(out).splitlines()[:-2])) <= 30


def test_cells_leave_out_what_nothing_measured():
    out = console(120, terminal=True)
    show_cells([{"init": "siren", "runs": 1, "loss_mean": 0.1, "status": "completed"}], ["init"], out)
    assert text(out).split("\n")[0].split() == ["init", "runs", "loss", "status"]


def test_cells_in_a_file_are_wide(capsys):
    show_cells(ROWS, AXES)
    assert "val accuracy" in capsys.readouterr().out
