"""Nothing is lost: checkpoints bit by bit, kills at random moments, damage, full disks, two launches at once."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock

import initlab
from initlab.config.compose import compose_config
from initlab.errors import Interrupted, UserError
from initlab.experiment import Checkpointing, checkpoint, run
from initlab.experiment.checkpoint import CHECKPOINT_FORMAT, UnusableCheckpoint
from initlab.experiment.checkpoint import load_checkpoint as load_checkpoint
from initlab.sweep.locks import sweep_lock
from initlab.sweep.run import clean_group_directory
from initlab.sweep.scheduler import StopSignals
from initlab.training import loop

ROOT = Path(__file__).parents[1]
BASE = ["depth=2", "width=6", "train.batch_size=50", "data=gaussian", "data.train_size=300", "data.test_size=60"]
BASE += ["train.steps=12", "log.eval_every=5", "log.histograms=4", "log.tensorboard=false"]
FILES = ("metrics.csv", "layers.csv", "histograms.csv", "parameters.csv", "config.yaml")
METRICS = ["loss", "accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "steps", "fingerprint"]


# --- one computation


CASES = {
    "sgd": [["seed=0"], ["seed=1"], ["init=zeros"]],
    "adam, different rates": [["optim=adam", f"optim.lr={lr}", "optim.clip_norm=0.5"] for lr in (0.1, 0.01)],
    "rmsprop alone": [["optim=rmsprop", "optim.momentum=0.5", "optim.schedule=cosine", "optim.warmup=4"]],
    "dropout": [["model.dropout=0.3", f"seed={s}"] for s in (0, 1)],
    "batch norm": [["model.norm=batch", f"seed={s}"] for s in (0, 1)],
    "one diverges, one does not": [["act=relu", "optim.lr=1e25"], ["act=relu"], ["act=relu", "optim.lr=1e12"]],
    "one reaches its target": [["train.target_loss=1.9", "init=zeros", "optim.lr=0"], ["train.target_loss=1.9"]],
    "double": [["precision=fp64", f"seed={s}", "optim=adamw", "optim.weight_decay=0.1"] for s in (0, 1)],
    "weights kept": [["train.save=true", f"seed={s}"] for s in (0, 1)],
    "images": [["model=cnn", "width=2", "model.norm=batch", f"seed={s}"] for s in (0, 1)],
}


@pytest.fixture
def pauses(monkeypatch):
    """Let the loop pause before every step, so that it can be stopped at any."""
    monkeypatch.setattr(loop, "YIELD_EVERY", -1.0)


def once_more(configs, place, at):
    """Run until the pause number `at`, then go on from the checkpoint to the end."""
    directories = [place / str(k) for k in range(len(configs))]
    count = [0]

    def stop():
        count[0] += 1
        return signal.SIGTERM if count[0] == at else 0

    with contextlib.suppress(Interrupted):
        run(configs, directories, checkpointing=Checkpointing(place / "c.pt", 1e9, stop))
    stopped = (place / "c.pt").exists()
    return run(configs, directories, checkpointing=Checkpointing(place / "c.pt", 1e9)), stopped


def contents(directory: Path) -> dict[str, bytes]:
    names = [*FILES, "weights-0.safetensors", "weights-end.safetensors"]
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_run_stopped_at_any_step_ends_as_if_it_never_was(tmp_path, pauses, overrides):
    base = [*BASE[:3], *BASE[6:]] if "model=cnn" in overrides[0] else BASE
    configs = [compose_config([*base, *own]) for own in overrides]
    directories = [tmp_path / "whole" / str(k) for k in range(len(configs))]
    whole = run(configs, directories)
    seen = 0
    for at in (1, 2, 5, 6, 8, 12):
        place = tmp_path / str(at)
        resumed, stopped = once_more(configs, place, at)
        seen += stopped
        for k, (one, other) in enumerate(zip(whole, resumed, strict=True)):
            same = {key for key in one if key not in ("seconds", "path")}
            assert {key: repr(one[key]) for key in same} == {key: repr(other[key]) for key in same}
            assert contents(directories[k]) == contents(place / str(k))
    assert seen >= 4


def test_checkpoints_are_written_as_often_as_asked_and_hold_no_code(tmp_path, pauses, monkeypatch):
    from initlab.experiment import checkpoint

    written = []
    real = checkpoint.save_checkpoint
    monkeypatch.setattr(sys.modules["initlab.experiment.run"], "CHECKPOINT_COST_FACTOR", 0)
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *a: written.append(a[2].step) or real(*a))
    configs = [compose_config([*BASE, f"seed={s}"]) for s in (0, 1)]
    run(configs, [tmp_path / "0", tmp_path / "1"], checkpointing=Checkpointing(tmp_path / "c.pt", 0.0))
    assert len(written) > 2
    assert written == sorted(written)
    payload = torch.load(tmp_path / "c.pt", weights_only=True)
    assert payload["state"]["step"] == 13
    written.clear()
    run(configs, [tmp_path / "a", tmp_path / "b"], checkpointing=Checkpointing(tmp_path / "d.pt", 1e9))
    assert written == []


def checkpointed(place, overrides=()):
    configs = [compose_config([*BASE, *overrides, f"seed={s}"]) for s in (0, 1)]
    count = iter([0, 0, 0, 0, int(signal.SIGINT)])
    with pytest.raises(Interrupted) as stop:
        run(configs, [place / "0", place / "1"], checkpointing=Checkpointing(place / "c.pt", 1e9, lambda: next(count)))
    assert stop.value.signal == signal.SIGINT
    return configs


def write(payload, path):
    """Write a checkpoint that is whole and holds something else."""
    path.unlink()
    checkpoint.write_payload(path, payload)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), "changed or cut short"),
        (lambda path: path.write_bytes(b""), "changed or cut short"),
        (lambda path: path.write_text("no checkpoint"), "changed or cut short"),
        (lambda path: torch.save({"format": CHECKPOINT_FORMAT}, path), "changed or cut short"),
        (lambda path: write({"format": 99}, path), "format 99"),
        (lambda path: write({"format": CHECKPOINT_FORMAT}, path), "cannot be read"),
        (lambda path: write([1, 2], path), "cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_no_use_and_says_why(tmp_path, pauses, damage, says):
    configs = checkpointed(tmp_path)
    damage(tmp_path / "c.pt")
    before = contents(tmp_path / "0")
    with pytest.raises(UnusableCheckpoint, match=says):
        run(configs, [tmp_path / "0", tmp_path / "1"], checkpointing=Checkpointing(tmp_path / "c.pt"))
    assert contents(tmp_path / "0") == before


def test_a_checkpoint_runs_no_code(tmp_path, pauses):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    configs = checkpointed(tmp_path)
    write({"format": CHECKPOINT_FORMAT, "runs": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UnusableCheckpoint, match="cannot be read"):
        run(configs, [tmp_path / "0", tmp_path / "1"], checkpointing=Checkpointing(tmp_path / "c.pt"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        (["optim.lr=0.5"], False),
        (["log.every=2"], False),
        (["train.save=true"], False),
        (["train.steps=13"], False),
        (["threads=1"], True),
        (["device=cpu"], True),
        (["sweep.name=other"], True),
    ],
)
def test_a_checkpoint_belongs_to_its_runs(tmp_path, pauses, overrides, fits):
    checkpointed(tmp_path)
    others = [compose_config([*BASE, *overrides, f"seed={s}"]) for s in (0, 1)]
    with contextlib.nullcontext() if fits else pytest.raises(UnusableCheckpoint, match="other runs"):
        load_checkpoint(tmp_path / "c.pt", others)


def test_a_file_shorter_than_its_checkpoint_makes_it_no_use(tmp_path, pauses):
    configs = checkpointed(tmp_path)
    metrics = tmp_path / "1" / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    with pytest.raises(UnusableCheckpoint, match=r"metrics\.csv"):
        run(configs, [tmp_path / "0", tmp_path / "1"], checkpointing=Checkpointing(tmp_path / "c.pt"))


# --- sweeps


def axes(root, name="s", **others):
    tiny = {"depth": 2, "width": 16, "data": "gaussian", "data.train_size": 2000, "data.test_size": 100}
    # Scalars every tenth step: what is killed here has to be long, not to write much.
    long = {"train.steps": 600, "log.every": 10, "log.histograms": 3, "sweep.checkpoint_every": 0.1}
    grid = {"init": ["he_normal", "zeros", "glorot_normal"], "act": ["tanh", "relu"], "seed": [0, 1]}
    return {**tiny, **long, **grid, "sweep.root": str(root), "sweep.name": name, "sweep.max_group": 3, **others}


# A process of its own, not a fork of this one: a fork has none of the threads that this process may have for torch.
LAUNCH = """
import json, signal, sys, time
import initlab
import initlab.sweep.run
grid, options, killed_after = json.loads(sys.argv[1])
signal.setitimer(signal.ITIMER_PROF, killed_after)
began = time.process_time()
initlab.sweep(grid, quiet=True, **options)
print(time.process_time() - began)
"""


def start_launch(grid: dict, killed_after: float = 0.0, **options) -> "subprocess.Popen[str]":
    """Start a sweep in another process.

    Args:
        grid: of `initlab.sweep`.
        killed_after: seconds of computing after which the system ends it, whatever it does then.
        options: of `initlab.sweep`.
    """
    command = [sys.executable, "-c", LAUNCH, json.dumps([grid, options, killed_after])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def begun(directory: Path) -> bool:
    return (directory / "plan.json").exists()


def assert_equal(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Same cells, same status, same metrics to the last bit, and no row twice in any file."""
    keys = ["init", "act", "seed", "status", "hash"]
    pd.testing.assert_frame_equal(one[keys + METRICS], other[keys + METRICS], check_exact=True)
    for mine, yours in zip(one["path"], other["path"], strict=True):
        for name in ("metrics.csv", "layers.csv", "histograms.csv", "parameters.csv"):
            assert Path(mine, name).read_bytes() == Path(yours, name).read_bytes(), (mine, name)
    table = initlab.load(Path(other["path"].iloc[0]).parent)
    assert table["hash"].is_unique
    assert not table["problem"].any()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep that nobody disturbed."""
    return initlab.sweep(axes(tmp_path_factory.mktemp("whole")), quiet=True)


def test_killed_at_random_moments_a_sweep_ends_as_if_it_never_was(tmp_path, whole):
    def launch(root: Path, killed_after: float = 0.0) -> tuple[int, str]:
        """Return the signal that ended a launch, and what it printed: how long it computed."""
        process = start_launch(axes(root), killed_after)
        printed = process.communicate()[0]
        return -process.returncode, printed

    rng = random.Random(0)
    signalled, needed = launch(tmp_path / "undisturbed")
    assert signalled == 0
    kills = [launch(tmp_path, rng.uniform(0.01, 0.25) * float(needed))[0] for _ in range(4)]
    assert set(kills) <= {0, signal.SIGPROF}
    assert kills.count(signal.SIGPROF) >= 2
    assert len(list((tmp_path / "s").glob("*/summary.json"))) < len(whole)
    assert_equal(whole, initlab.sweep(axes(tmp_path), quiet=True))
    assert not list((tmp_path / "s").glob(".groups/*"))


def test_a_worker_that_is_killed_is_replaced_and_the_sweep_ends_complete(tmp_path, whole):
    launch = start_launch(axes(tmp_path), executor="process", workers=1)
    killed = 0
    while launch.poll() is None:
        checkpoints = list((tmp_path / "s" / ".groups").glob("*.pt"))
        if killed < 2 and checkpoints and (workers := computing(launch.pid)):
            os.kill(workers[0], signal.SIGKILL)
            killed += 1
            for path in checkpoints:
                with contextlib.suppress(OSError):
                    path.unlink() if killed == 1 else None
        time.sleep(0.05)
    launch.communicate()
    assert killed == 2
    assert_equal(whole, initlab.sweep(axes(tmp_path), quiet=True))


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def computing(launch: int) -> list[int]:
    """Return the workers of a launch: its descendants that have no children."""
    return [process for process in descendants(launch) if not children(process)]


def test_workers_outlive_no_launch_and_keep_what_they_have(tmp_path, whole):
    launch = start_launch(axes(tmp_path), executor="process", workers=2)
    while not list((tmp_path / "s" / ".groups").glob("*.pt")):
        time.sleep(0.02)
    workers = computing(launch.pid)
    launch.kill()
    launch.communicate()
    # The next launch need not wait for them: it waits for their groups alone.
    frame = initlab.sweep(axes(tmp_path), quiet=True)
    assert len(workers) == 2
    assert not any(alive(worker) for worker in workers)
    assert_equal(whole, frame)


def alive(process: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


def test_a_network_that_kills_its_worker_costs_itself_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, torch\n"
        "def fill_(weight, *, generator, gain, **_):\n"
        "    if gain == 3: os._exit(9)\n"
        "    return weight.normal_(0, 0.1, generator=generator)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {"init": "custom", "init.target": "deadly:fill_", "init.gain": [1, 3], "act": "tanh", "seed": 0}
    own |= {"train.steps": 5}
    frame = initlab.sweep(axes(tmp_path, **own), executor="process", workers=1, quiet=True)
    assert frame["status"].tolist() == ["completed", "failed"]
    assert "its worker was lost twice (exit code 9)" in frame["error"].iloc[1]


def test_two_launches_at_once_and_a_lock_of_the_dead(tmp_path):
    launch = start_launch(axes(tmp_path))
    while not begun(tmp_path / "s"):
        time.sleep(0.01)
    with pytest.raises(UserError, match=rf"is being run by process {launch.pid} on "):
        initlab.sweep(axes(tmp_path), quiet=True)
    launch.kill()
    launch.communicate()
    with sweep_lock(tmp_path / "s"):
        holder = json.loads((tmp_path / "s" / ".lock.json").read_text())
    assert holder["pid"] == os.getpid()
    assert not (tmp_path / "s" / ".lock.json").exists()


@pytest.mark.parametrize("damage", ["plan", "summary", "torn", "checkpoint", "config", "missing"])
def test_damage_costs_a_group_and_is_said(tmp_path, capfd, damage):
    grid = axes(tmp_path, **{"train.steps": 20, "sweep.max_group": 2})
    first = initlab.sweep(grid, quiet=True)
    kept = {path: Path(path, "metrics.csv").read_bytes() for path in first["path"]}
    stamps = {path: Path(path, "summary.json").stat().st_mtime_ns for path in first["path"]}
    victim = Path(first["path"].iloc[0])
    if damage == "plan":
        (tmp_path / "s" / "plan.json").write_text('{"format": 1, "gro')
        (victim / "summary.json").unlink()
    elif damage == "summary":
        (victim / "summary.json").write_text('{"status": "comp')
    elif damage == "torn":
        with open(victim / "metrics.csv", "ab") as file:
            file.write(b"7,0.1,0.")
    elif damage == "checkpoint":
        (victim / "summary.json").unlink()
        (tmp_path / "s" / ".groups").mkdir()
        (tmp_path / "s" / ".groups" / "g0001.pt").write_bytes(b"PK nothing")
    elif damage == "config":
        (victim / "config.yaml").write_text("{")
        (victim / "summary.json").unlink()
    else:
        shutil.rmtree(victim)
    capfd.readouterr()
    again = initlab.sweep(grid)
    said = capfd.readouterr().err
    assert_equal(first, again)
    assert {path: Path(path, "metrics.csv").read_bytes() for path in again["path"]} == kept
    rerun = [path for path in again["path"] if Path(path, "summary.json").stat().st_mtime_ns != stamps[path]]
    assert 1 <= len(rerun) <= 2
    words = {"plan": "plan.json cannot be read", "summary": "summary.json cannot be read", "torn": "bytes where"}
    words |= {"checkpoint": "starts again, because its checkpoint is unusable", "config": "config.yaml cannot be read"}
    assert words.get(damage, "") in said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


@pytest.mark.parametrize("executor", ["inline", pytest.param("process", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_the_next_start_repairs_it(tmp_path, small_disk, whole, executor):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 1_500_000)
    with pytest.raises(UserError, match="No space is left") as full:
        initlab.sweep(axes(small_disk), quiet=True, executor=executor, workers=1)
    assert str(full.value).count("\n") == 0
    filler.unlink()
    shutil.move(small_disk / "s", tmp_path / "s")
    assert_equal(whole, initlab.sweep(axes(tmp_path), quiet=True))


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        initlab.sweep(axes(tmp_path / "file"), quiet=True)


def test_a_second_signal_has_its_usual_effect_and_background_jobs_stay_deaf():
    before = signal.getsignal(signal.SIGTERM)
    with (signals := StopSignals()).installed():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with (signals := StopSignals()).installed():
            os.kill(os.getpid(), signal.SIGINT)
            assert signals() == 0
    finally:
        signal.signal(signal.SIGINT, old)


# --- by running it


def train(*arguments: str, where: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *arguments]
    return subprocess.Popen(command, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code", "executor"),
    [
        (signal.SIGINT, 130, "inline"),
        pytest.param(signal.SIGTERM, 143, "inline", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, "process", marks=pytest.mark.slow),
    ],
)
def test_a_signal_keeps_everything_and_says_how_to_go_on(tmp_path, number, code, executor):
    arguments = ["seed=0,1", "train.steps=100000", "depth=1", "width=8", "data=gaussian", "log.every=1000"]
    arguments += [f"hydra.launcher.executor={executor}", "hydra.launcher.workers=1"]
    process = train(*arguments, where=tmp_path)
    place = tmp_path / "outputs" / "sweeps"
    while not list(place.glob("*/*/metrics.csv")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    (directory,) = place.iterdir()
    assert f"0 of 2 networks are done. The same command with sweep.name={directory.name} goes on from here." in err
    assert "Traceback" not in err
    assert [path.suffix for path in sorted((directory / ".groups").glob("*.pt"))] == [".pt"]
    assert (directory / "sweep.csv").read_text().count("unfinished") == 2
    again = train(*arguments, f"sweep.name={directory.name}", where=tmp_path)
    while "resumed at step" not in "".join(path.read_text() for path in directory.glob("*/run.log")):
        assert again.poll() is None, again.stderr.read()
        time.sleep(0.05)
    again.kill()
    again.communicate()


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_everything_is_kept_when_the_reader_of_the_output_leaves_as_well(tmp_path, executor):
    """As after Ctrl-C on `… 2>&1 | tee log`, which ends tee first."""
    arguments = ["seed=0,1", "train.steps=100000", "depth=1", "width=8", "data=gaussian", "log.every=1000"]
    arguments += [f"hydra.launcher.executor={executor}", "hydra.launcher.workers=1", "sweep.name=s"]
    process = train(*arguments, where=tmp_path)
    place = tmp_path / "outputs" / "sweeps" / "s"
    while not list(place.glob("*/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.05)
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert [path.suffix for path in (place / ".groups").glob("*.pt")] == [".pt"]
    assert (place / "sweep.csv").read_text().count("unfinished") == 2


def test_a_worker_left_behind_is_waited_for_before_its_cells_join_another_group(tmp_path):
    lock, order = FileLock(tmp_path / "g0001.lock", thread_local=False), []
    lock.acquire()

    def leave():
        time.sleep(0.5)
        order.append("left")
        lock.release()

    (tmp_path / "g0001.pt").write_bytes(b"")
    leaving = threading.Thread(target=leave)
    leaving.start()
    clean_group_directory(tmp_path, [])
    order.append("swept")
    leaving.join()
    assert order == ["left", "swept"]
    assert not list(tmp_path.glob("*.pt"))


# --- slow


def launches(executor: str, root: Path) -> subprocess.Popen:
    """Launch the sweep as a user's script would, with nothing shared but the disk."""
    options = {"cluster": "local"} if executor == "submitit" else {}
    code = (
        "import json, sys, initlab\n"
        "a, e, o = (json.loads(x) for x in sys.argv[1:])\n"
        "initlab.sweep(a, executor=e, workers=2, options=o, quiet=True)\n"
    )
    texts = [json.dumps(x) for x in (axes(root), executor, options)]
    return subprocess.Popen([sys.executable, "-c", code, *texts], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("executor", "kills", "seed"),
    [("inline", 8, 0), ("inline", 8, 1), ("process", 8, 2), ("submitit", 6, 3), ("ray", 6, 4)],
)
def test_thirty_kills(tmp_path, whole, executor, kills, seed):
    """Kill -9 now the launch, now (where there are any) one of its workers, at random moments of their work.

    A launch that lost a worker goes on by itself and ends well.
    """
    if executor in ("submitit", "ray"):
        pytest.importorskip(executor)
    rng, room = random.Random(seed), tmp_path / "s"
    killed = ended = 0
    for _ in range(8 * kills):
        if killed == kills:
            break
        process = launches(executor, tmp_path)
        while process.poll() is None and holder(room) != process.pid:
            time.sleep(0.01)
        # From planning on; a worker has to have begun.
        of_worker = executor != "inline" and killed % 2 == 1
        while of_worker and process.poll() is None and not (workers_of(process) and list(room.glob(".groups/*.pt"))):
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.0, 2.0 if executor == "inline" or of_worker else 6.0))
        if process.poll() is not None:
            _, err = process.communicate()
            assert process.returncode == 0, err.decode()
            # Done before it was killed: take something away, so that there is more to do.
            for path in sorted(room.glob("*/summary.json"))[::2]:
                path.unlink()
            continue
        workers = workers_of(process) if of_worker else []
        victim = rng.choice(workers) if workers else process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            killed += 1
        _, err = process.communicate()
        if victim != process.pid:
            assert process.returncode == 0, err.decode()
            ended += 1
    assert killed == kills
    last = launches(executor, tmp_path)
    _, err = last.communicate()
    assert last.returncode == 0, err.decode()
    assert_equal(whole, initlab.sweep(axes(tmp_path), quiet=True))
    assert not list(room.glob(".groups/*"))
    print(f"{executor}: {killed} kills; {ended} launches that lost a worker ended complete")


def holder(room: Path) -> int:
    """Return the process that holds a sweep, 0 if none says so."""
    try:
        return json.loads((room / ".lock.json").read_text())["pid"]
    except (OSError, ValueError):
        return 0


def workers_of(launch: subprocess.Popen) -> list[int]:
    return [process for process in descendants(launch.pid) if is_worker(process)]


def is_worker(process: int) -> bool:
    """Does a process compute groups? Not so the servers and agents (`ray::…Agent`) of Ray, whose death ends all."""
    try:
        line = (Path("/proc") / str(process) / "cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return False
    return any(word in line for word in (b"executors.serve", b"submitit.core._submit", b"ray::do"))


def descendants(process: int) -> list[int]:
    direct = children(process)
    return [*direct, *(d for child in direct for d in descendants(child))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_networks_keep_memory_and_files_within_bounds(tmp_path):
    import threading

    grid = axes(tmp_path, init=["he_normal", "glorot_normal"], act=["tanh", "relu"], seed=range(250))
    grid |= {"sweep.max_group": 50, "train.steps": 60, "sweep.checkpoint_every": 5}
    files, memory = [], []

    def look():
        while watching:
            files.append(len(os.listdir("/proc/self/fd")))
            if (tmp_path / "s").is_dir():
                done = sum(1 for _ in (tmp_path / "s").glob("*/summary.json"))
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            time.sleep(0.1)

    watching = True
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    frame = initlab.sweep(grid, quiet=True)
    watching = False
    thread.join()
    assert frame["status"].eq("completed").all()
    after_first = max(m for done, m in memory if 50 <= done < 150)
    at_the_end = max(m for done, m in memory if done > 800)
    assert at_the_end < 1.05 * after_first, (after_first, at_the_end)
    assert max(files) < 300
