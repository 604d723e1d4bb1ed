"""How far a sweep is: counted in network-steps of all groups, and the time left by the rate of training alone."""

import io
import re

import pytest
from rich.console import Console

import initlab
from initlab.cli.train import run_train
from initlab.sweep import progress
from initlab.sweep import worker as work
from initlab.sweep.progress import SweepProgress, SweepProgressLine
from initlab.sweep.worker import GroupTask, RemoteWorker, read_progress
from initlab.system import terminal


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    for module in (terminal, progress, work):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def begun(total: int, steps: int, before: int = 0, **more) -> tuple[SweepProgress, io.StringIO]:
    out = io.StringIO()
    line = SweepProgressLine("sweep", Console(file=out, width=200))
    line.pause = -1.0
    return SweepProgress(total, steps, before, line, **more), out


def said(out: io.StringIO) -> str:
    return out.getvalue().splitlines()[-1]


def now(step: int, members: int = 2, diverged: int = 0, resumed_at: int = 0) -> dict:
    return {"step": step, "members": members, "diverged": diverged, "resumed_at": resumed_at}


def seconds_left(out: io.StringIO) -> int:
    (found,) = re.findall(r"(\d+) s left", said(out))
    return int(found)


def test_network_steps_of_all_groups_are_counted_before_any_ends(clock):
    shown, out = begun(total=4, steps=400, before=3)
    shown.record("g0001", now(50))
    assert "25% of 400 network-steps" in said(out)
    shown.line.pause = -1.0
    shown.record("g0002", now(25, diverged=1))
    assert "38% of 400 network-steps · 3/7 networks · 1 diverged" in said(out)
    shown.line.pause = -1.0
    shown.finish("g0001", 100, ["completed", "failed"])
    assert "62% of 400 network-steps · 5/7 networks · 1 diverged · 1 failed" in said(out)


def test_the_time_before_the_first_steps_does_not_count(clock):
    shown, out = begun(total=2, steps=2000)
    clock[0] += 100.0  # loading, composing, starting
    shown.record("g0001", now(1))
    assert "left" not in said(out)
    for step in range(2, 502):
        clock[0] += 0.01
        shown.line.pause = -1.0
        shown.record("g0001", now(step))
    # 500 steps in 5 seconds: the other 500 take 5 more, not 105
    assert seconds_left(out) == pytest.approx(5, abs=1)


def test_what_a_checkpoint_brought_is_done_but_says_nothing_of_the_rate(clock):
    shown, out = begun(total=2, steps=2000)
    shown.record("g0001", now(901, resumed_at=900))
    clock[0] += 5.0
    shown.line.pause = -1.0
    shown.record("g0001", now(951, resumed_at=900))
    assert "95% of" in said(out)
    assert seconds_left(out) == pytest.approx(49 * 5 / 50, abs=1)


def test_groups_whose_steps_take_longer_are_worth_more(clock):
    shown, out = begun(2, 2000, step_seconds={"deep": 9.0, "flat": 1.0}, seconds=10_000.0)
    shown.record("deep", now(1, members=1))
    for step in range(2, 1001):
        clock[0] += 0.09
        shown.line.pause = -1.0
        shown.record("deep", now(step, members=1))
    # Half of the steps took 90 seconds; the other half, of shallow networks, takes 10.
    assert "50% of 2,000" in said(out)
    assert seconds_left(out) == pytest.approx(10, abs=1)


def test_workers_side_by_side_add_up(clock):
    shown, out = begun(total=4, steps=4000)
    for step in range(1, 502):
        clock[0] += 0.01
        for group in ("g0001", "g0002"):
            shown.line.pause = -1.0
            shown.record(group, now(step))
    assert seconds_left(out) == pytest.approx(5, abs=1)


def test_a_group_that_begins_again_is_counted_once(clock):
    shown, out = begun(total=2, steps=200)
    shown.record("g0001", now(50))
    shown.forget("g0001")
    shown.line.pause = -1.0
    shown.record("g0001a", now(10, members=1))
    assert "5% of 200" in said(out)


def test_steps_are_told_while_the_first_group_runs(tmp_path, monkeypatch):
    shares = []
    update = SweepProgressLine.update
    monkeypatch.setattr(SweepProgressLine, "update", lambda self, now: shares.append(now["share"]) or update(self, now))
    initlab.sweep(init=["he_normal", "zeros"], depth=1, width=4, data="gaussian", train__steps=300,
                  log__eval_every=50, sweep__root=str(tmp_path))  # fmt: skip
    assert any(0 < share < 1 for share in shares)
    assert shares[-1] == 1.0


def test_workers_elsewhere_tell_steps_by_the_disk_that_they_share(tmp_path, clock):
    task = GroupTask("g0001", [], [], tmp_path, 60.0, "launch")
    worker = RemoteWorker(task)
    shown, out = begun(total=2, steps=400)
    assert read_progress(task) is None
    worker.report(now(50))
    shown.record(task.id, read_progress(task))
    assert "25% of 400" in said(out)
    clock[0] += 10.0
    worker.report({**now(80), "loss": float("nan")})
    shown.line.pause = -1.0
    shown.record(task.id, read_progress(task))
    assert "40% of 400" in said(out)


def test_a_file_gets_a_line_at_first_and_then_now_and_again(clock):
    out = io.StringIO()
    shown = SweepProgress(1, 10**6, 0, SweepProgressLine("sweep", Console(file=out, width=200)))
    for step in range(1, 3601):
        clock[0] += 1.0
        shown.record("g0001", now(step, members=1))
    lines = out.getvalue().splitlines()
    assert 50 < len(lines) < 80
    assert all("of 1,000,000 network-steps" in line for line in lines)


@pytest.mark.parametrize("sweep", [False, True])
def test_the_end_names_the_report(tmp_path, monkeypatch, capsys, sweep):
    monkeypatch.chdir(tmp_path)
    quick = ["depth=1", "width=4", "train.steps=3", "data=gaussian"]
    more = ["-m", "sweep.name=two", "seed=0,1"] if sweep else ["hydra.run.dir=outputs/runs/one"]
    assert run_train([*more, *quick]) == 0
    wanted = "outputs/sweeps/two" if sweep else "outputs/runs/one"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "initlab report" in line]
    assert line == f"or initlab report {wanted}"


@pytest.mark.parametrize("step", [1, 100])
def test_a_single_run_tells_its_time_without_what_came_before(clock, step):
    out = io.StringIO()
    line = terminal.ProgressLine("run", Console(file=out, width=200))
    clock[0] += 60.0
    line.update({"step": step, "steps": 1000 + step})
    for more in range(1, 501):
        clock[0] += 0.01
        line.shown_at = 0.0
        line.update({"step": step + more, "steps": 1000 + step})
    assert "5 s left · 100 steps/s" in said(out)
