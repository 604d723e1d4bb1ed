"""What the terminal shows, at several widths, and what a file shows instead."""

import io
import os
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from initlab.system import terminal as display
from initlab.system.terminal import ProgressLine, format_progress, show_location, show_run

FACTS = ["290/1400", "loss 0.3326", "val 86.0%", "5 min 1 s left", "200 steps/s"]
NOW = {"step": 290, "steps": 1400, "loss": 0.3326, "val_accuracy": 0.86}


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def text(of: Console) -> str:
    return of.file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("done", [0.0, 0.3, 1.0, 1.2])
def test_the_line_fits(width, done):
    line = format_progress("glorot_uniform-tanh-d5-s0", FACTS, done, width)
    # What is longer still is cut by the terminal, for it must not wrap.
    assert line.no_wrap
    assert len(line.plain) <= max(width, len("glorot_uniform-tanh-d5-s0 290/1400"))
    assert "290/1400" in line.plain


def test_the_line_shows_how_far_it_is():
    def full(done: float) -> float:
        bar = format_progress("a", ["1/2"], done, 80).plain.split(" ")[1]
        return bar.count("━") / len(bar)

    assert [full(x) for x in (0, 0.5, 1, 2)] == [0, 0.5, 1, 1]


def test_a_terminal_gets_one_line_in_place(monkeypatch):
    monkeypatch.setattr(display, "REDRAW_INTERVAL", 0.0)
    out = console(terminal=True)
    with ProgressLine("label", out) as line:
        for step in range(1, 5):
            line.update({**NOW, "step": step, "steps": 4})
    drawn = text(out)
    assert "1/4 · loss 0.3326 · val 86.0%" in drawn
    assert "4/4" in drawn
    assert drawn.count("\n") <= 1  # nothing goes to a second line,
    assert drawn.rindex("\x1b[2K") > drawn.rindex("4/4")  # and nothing is left of the first


def test_a_file_gets_readable_lines_now_and_then(monkeypatch):
    out = console()
    with ProgressLine("label", out) as line:
        line.update(NOW)
        assert text(out) == ""
        monkeypatch.setattr(display, "PLAIN_INTERVAL", 0.0)
        line.update(NOW)
        line.update({**NOW, "step": 300})
    first, said = text(out).splitlines()
    assert first == "label: step 290/1400 · loss 0.3326 · val 86.0%"
    assert said.startswith("label: step 300/1400 · loss 0.3326 · val 86.0% · ")
    assert "\x1b" not in said


RESULT = {
    "loss": 0.3326,
    "accuracy": 0.9,
    "val_loss": 0.4,
    "val_accuracy": 0.86,
    "test_loss": 0.41,
    "test_accuracy": 0.8,
}


def test_the_table_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = console()
    path = tmp_path / "outputs" / "runs" / "x"
    show_run("label", {**RESULT, "status": "completed", "steps": 70, "seconds": 75.2, "path": str(path)}, out)
    assert text(out).splitlines() == [
        "label",
        "                      loss  accuracy",
        "train (last steps)  0.3326     90.0%",
        "validation             0.4     86.0%",
        "test                  0.41     80.0%",
        "completed · 70 steps in 1 min 15 s",
        "files        outputs/runs/x",
        "look at it   tensorboard --logdir outputs/runs",
        "or initlab report outputs/runs/x",
    ]


def test_a_run_without_validation_or_classes(tmp_path):
    out = console()
    show_run("label", {"loss": 1.0, "test_loss": 2.0, "status": "completed", "seconds": 1, "path": str(tmp_path)}, out)
    assert "accuracy" not in text(out)
    rows = [line.split()[0] for line in text(out).splitlines()]
    assert rows == ["label", "loss", "train", "test", "completed", "files", "look", "or"]


def test_a_failed_run_has_no_table(tmp_path):
    out = console()
    show_run("label", {"status": "failed", "error": "ValueError: [x]", "seconds": 1, "path": str(tmp_path)}, out)
    assert "failed: ValueError: [x] · 0 steps in 1 s" in text(out)
    assert "loss" not in text(out)


@pytest.mark.parametrize(
    ("path", "logdir"),
    [("outputs/runs/x", "outputs/runs"), ("elsewhere/x", "elsewhere/x"), ("with space/x", "'with space/x'")],
)
def test_where_to_look(tmp_path, monkeypatch, path, logdir):
    monkeypatch.chdir(tmp_path)
    out = console()
    show_location(tmp_path / path, out)
    assert text(out).splitlines() == [
        f"files        {path}",
        f"look at it   tensorboard --logdir {logdir}",
        f"or initlab report {shlex.quote(path)}",
    ]


def test_where_to_look_outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = console()
    show_location(Path("/elsewhere/x"), out)
    assert "--logdir /elsewhere/x" in text(out)


def test_a_line_that_nobody_reads_any_more_ends_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        with ProgressLine("training") as line:
            line.console.print("x" * 100_000)
        assert line.console.quiet
