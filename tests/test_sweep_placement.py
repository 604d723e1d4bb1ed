"""Which executor `auto` is: several processes where they are worth their start, and this one otherwise."""

import signal
from dataclasses import replace

import pytest
import torch

import initlab
from initlab.cli.hydra import prestart
from initlab.cli.train import run_train
from initlab.config.compose import compose_config
from initlab.errors import UserError
from initlab.records import load
from initlab.sweep import placement as choosing
from initlab.sweep.cells import check_cells
from initlab.sweep.cost import CostCache
from initlab.sweep.executors import process as processes
from initlab.sweep.placement import Placement, estimate_seconds
from initlab.system import resources

TINY = ["depth=1", "width=4", "data=gaussian", "data.train_size=300", "data.test_size=50", "log.histograms=0"]


@pytest.fixture
def two_cores(monkeypatch, tmp_path):
    """A machine of two cores, no card and 16 GiB that are free."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(choosing, "usable_cores", lambda: 2)
    monkeypatch.setattr(choosing, "free_bytes", lambda device: 16.0 * resources.GIB)


def cells(tmp_path, networks, *overrides):
    first = compose_config([*TINY, "device=cpu", *overrides])
    configs = [replace(first, seed=seed) for seed in range(networks)]
    return check_cells(configs, [tmp_path / str(seed) for seed in range(networks)])


def settled(cells, how=None):
    return (how or Placement()).resolve(cells, CostCache())


LONG = ("train.steps=1000000",)


def test_a_large_grid_is_for_processes_and_a_small_one_for_this_one(tmp_path, two_cores):
    assert settled(cells(tmp_path, 16, *LONG)) == Placement("process", 2)
    assert settled(cells(tmp_path, 16, "train.steps=10")) == Placement("inline")
    assert settled([]) == Placement("inline")
    wide = ("width=512", "depth=10", "train.steps=2000")
    assert settled(cells(tmp_path, 16, *wide)) == Placement("process", 2)
    assert settled(cells(tmp_path, 1000, "train.steps=1")) == Placement("process", 2)


def test_time_grows_with_networks_steps_and_products_and_falls_with_cores(tmp_path):
    sizes = CostCache()
    base = estimate_seconds(cells(tmp_path, 4, "train.steps=100"), sizes, 2)
    assert estimate_seconds(cells(tmp_path, 8, "train.steps=100"), sizes, 2) == pytest.approx(2 * base)
    assert estimate_seconds(cells(tmp_path, 4, "train.steps=200"), sizes, 2) > base
    wide = cells(tmp_path, 4, "train.steps=100", "width=256")
    assert estimate_seconds(wide, sizes, 2) > estimate_seconds(wide, sizes, 4) > base


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_what_the_user_chose_stays(tmp_path, two_cores, executor):
    for steps in (LONG, ("train.steps=10",)):
        assert settled(cells(tmp_path, 16, *steps), Placement(executor, 3)) == Placement(executor, 3)


def test_the_users_number_of_workers_is_that_of_auto(tmp_path, two_cores):
    assert settled(cells(tmp_path, 16, *LONG), Placement("auto", 5)) == Placement("process", 5)
    assert settled(cells(tmp_path, 16, *LONG), Placement("auto", 1)) == Placement("inline", 1)


def test_fewer_networks_than_keep_every_core_busy_stay_here(tmp_path, two_cores):
    assert settled(cells(tmp_path, 3, *LONG)) == Placement("inline")
    assert settled(cells(tmp_path, 4, *LONG)) == Placement("process", 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads of torch", 1), ("cores", 1), ("GiB", 1), ("cards", 1)],
)
def test_what_keeps_a_large_grid_in_this_process(tmp_path, two_cores, monkeypatch, name, value):
    place = {
        "threads of torch": (torch, "get_num_threads"),
        "cores": (choosing, "usable_cores"),
        "GiB": (choosing, "free_bytes"),
        "cards": (torch.cuda, "device_count"),
    }[name]
    unit = resources.GIB if name == "GiB" else 1
    monkeypatch.setattr(*place, lambda *_: value * unit)
    assert settled(cells(tmp_path, 16, *LONG)).executor == "inline"


def test_a_number_of_threads_is_kept_to(tmp_path, two_cores):
    assert settled(cells(tmp_path, 16, *LONG, "threads=2")) == Placement("inline")


def test_networks_that_fill_the_memory_do_not_train_side_by_side(tmp_path, two_cores, monkeypatch):
    many = cells(tmp_path, 16, *LONG)
    sizes = CostCache()
    sizes.known = {key: replace(size, bytes=3.0 * resources.GIB) for key, size in found(sizes, many).items()}
    assert Placement().resolve(many, sizes) == Placement("process", 2)
    sizes.known = {key: replace(size, bytes=5.0 * resources.GIB) for key, size in sizes.known.items()}
    assert Placement().resolve(many, sizes) == Placement("inline")


def found(sizes, many):
    for cell in many:
        sizes.of(cell)
    return sizes.known


def test_each_of_several_cards_has_a_process(tmp_path, two_cores, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(choosing, "pick_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda"))
    assert settled(cells(tmp_path, 16, *LONG)).executor == "inline"
    on_cards = cells(tmp_path, 16, *LONG)
    for cell in on_cards:
        object.__setattr__(cell, "config", replace(cell.config, device="auto"))
    assert settled(on_cards) == Placement("process")
    assert settled(on_cards).local_workers() == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_a_container_may_allow_fewer_cores_than_there_are(tmp_path, monkeypatch, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert resources.container_cores() == cores
    assert resources.usable_cores() == min(int(min(cores, 64)), 64)


def test_half_a_core_is_one_process(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000")
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path)
    assert resources.usable_cores() == 1


def test_processes_start_early_where_updates_look_many(two_cores):
    assert Placement().prestart(20, 1000, "cpu", "auto") == Placement("process", 2)
    assert Placement().prestart(19, 1000, "cpu", "auto") is None
    assert Placement().prestart(3, 1e6, "cpu", "auto") is None
    assert Placement().prestart(20, 1000, "cpu", 1) is None
    assert Placement("process", 3).prestart(1, 1, "cpu", "auto") == Placement("process", 3)
    assert Placement("process", 40).prestart(40, 1, "cpu", "auto") is None


def test_no_more_processes_start_early_than_there_may_be_groups():
    with processes.start_workers_early(12, 2):
        alive = [worker for worker in processes._kept_workers if worker.process is not None]
        assert len(alive) == 2


@pytest.mark.parametrize(("updates", "count"), [(1, 2), (10**9, 0)])
def test_the_command_starts_processes_before_the_grid_is_composed_if_it_is_large(
    two_cores, monkeypatch, updates, count
):
    monkeypatch.setattr(choosing, "MIN_PROCESS_UPDATES", updates)
    monkeypatch.setattr(prestart, "MANY_JOBS", 2)
    started, seen = [], []
    start = processes.start_process
    monkeypatch.setattr(processes, "start_process", lambda *given: started.append(start(*given)) or started[-1])

    def look(cells, *_):
        seen.extend(one.poll() is None for one in started)
        raise UserError("seen")

    monkeypatch.setattr("initlab.sweep.cells.check_cells", look)
    assert run_train(["-m", *TINY, "device=cpu", "seed=0,1,2,3", "train.steps=3"]) != 0
    assert seen == [True] * count
    assert [one.poll() for one in started] == [-signal.SIGKILL] * count


def test_a_grid_that_only_looked_large_ends_the_processes_that_were_started(two_cores, tmp_path):
    with processes.start_workers_early(1, 9):
        (early,) = (worker.process for worker in processes._kept_workers)
        frame = initlab.sweep(
            dict(key.split("=") for key in TINY), train__steps=2, sweep__root=str(tmp_path), quiet=True
        )
        assert early.poll() is not None
    assert list(frame["status"]) == ["completed"]


def test_the_command_takes_processes_by_itself_and_its_table_is_that_of_one(two_cores, monkeypatch, capsys):
    monkeypatch.setattr(choosing, "MIN_PROCESS_SECONDS", 0.0)
    grid = [*TINY, "device=cpu", "init=he_normal,zeros", "seed=range(4)", "train.steps=20"]
    assert run_train(["-m", *grid, "sweep.name=auto", "dry_run=true"]) == 0
    assert "(2 at a time by executor=process)" in capsys.readouterr().out
    pids = []
    start = processes.WorkerProcess.start
    monkeypatch.setattr(processes.WorkerProcess, "start", lambda self: start(self) or pids.append(self.process.pid))
    assert run_train(["-m", *grid, "sweep.name=auto"]) == 0
    assert len(set(pids)) == 2
    assert run_train(["-m", *grid, "sweep.name=here", "hydra.launcher.executor=inline"]) == 0
    assert len(set(pids)) == 2
    ours, other = (load(f"outputs/sweeps/{name}").set_index(["init", "seed"]).sort_index() for name in ("auto", "here"))
    assert list(ours["status"]) == ["completed"] * 8
    assert ours["loss"].equals(other["loss"])


@pytest.mark.parametrize(("there", "options", "sharers"), [
    ("local", {}, 3), ("slurm", {}, 1), ("local", {"cluster": "slurm"}, 1), ("slurm", {"cluster": "local"}, 3),
])  # fmt: skip
def test_jobs_of_a_cluster_do_not_share_this_machine_and_its_memory(monkeypatch, there, options, sharers):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.AutoExecutor, "which", lambda: there)
    assert Placement("submitit", 3, options).local_workers() == sharers
    assert Placement("submitit", 3, options).is_parallel()
