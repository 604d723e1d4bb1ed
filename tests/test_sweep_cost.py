"""What a network takes is known before any is built, and what is free is what every control group around leaves."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import initlab
from initlab.cli.train import run_train
from initlab.config.compose import compose_config
from initlab.errors import UserError
from initlab.experiment.build import build_activation, build_network, load_data
from initlab.sweep import cost
from initlab.sweep.cells import check_cells
from initlab.sweep.cost import estimate_cost, require_memory
from initlab.sweep.placement import Placement
from initlab.system import resources
from initlab.training import OPTIMIZERS

GIB = 2**30
INFINITE = float("inf")


# --- control groups


def control_group(root: Path, path: str, limit: object, used: object, cache: int = 0, version: int = 2) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = {2: "", 1: "total_"}[version]
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cache}\n{prefix}active_file 0\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A file system of control groups, and the file that says which of them this process is in."""
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(resources, "CGROUP_ROOT", tmp_path / "root")
    monkeypatch.setattr(resources, "CGROUP_FILE", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/user.slice/user-1000.slice/run-7.scope\n")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"user.slice/user-1000.slice/run-7.scope": 300}, 200),
        ({"user.slice/user-1000.slice": 300, "user.slice/user-1000.slice/run-7.scope": "max"}, 200),
        ({"user.slice": 150, "user.slice/user-1000.slice": 900, "user.slice/user-1000.slice/run-7.scope": 800}, 50),
        ({"": 500, "user.slice": "max"}, 400),
        ({"other.slice": 101}, INFINITE),
        ({"user.slice": 90}, 0),
        ({}, INFINITE),
    ],
)
def test_the_smallest_remainder_of_all_groups_around_is_what_is_left(groups, limits, left):
    for path, limit in limits.items():
        control_group(groups, path, limit, 100)
    assert resources.container_free_bytes() == left


def test_groups_of_a_batch_system_by_version_1(groups):
    resources.CGROUP_FILE.write_text("9:cpuset:/\n4:memory,hugetlb:/slurm/uid_7/job_3/step_0\n0::/elsewhere\n")
    control_group(groups, "memory", 2**63, 700, version=1)
    control_group(groups, "memory/slurm/uid_7/job_3", 400, 100, version=1)
    control_group(groups, "memory/slurm/uid_7/job_3/step_0", 2**63, 100, version=1)
    control_group(groups, "memory/slurm/uid_7/job_4", 101, 100, version=1)
    assert resources.container_free_bytes() == 300


def test_the_root_of_a_container_holds_where_its_path_outside_is_unknown_inside(groups):
    resources.CGROUP_FILE.write_text("0::/docker/0123abc\n")
    control_group(groups, "", 600, 100)
    assert resources.container_free_bytes() == 500


def test_a_system_without_the_file_has_the_root_alone(groups):
    resources.CGROUP_FILE.unlink()
    control_group(groups, "", 600, 100)
    assert resources.container_free_bytes() == 500


@pytest.mark.parametrize("version", [1, 2])
def test_the_page_cache_is_not_taken(groups, version):
    resources.CGROUP_FILE.write_text("4:memory:/\n0::/\n")
    control_group(groups, "memory" if version == 1 else "", 1000, 900, cache=600, version=version)
    assert resources.container_free_bytes() == 700


def test_cores_of_groups_around_are_counted_too(groups):
    (groups / "user.slice" / "user-1000.slice").mkdir(parents=True)
    (groups / "user.slice" / "cpu.max").write_text("150000 100000")
    (groups / "user.slice" / "user-1000.slice" / "cpu.max").write_text("400000 100000")
    assert resources.container_cores() == 1.5


# --- what one network takes


class Counting(TorchDispatchMode):
    """Adds up what operations make on the CPU."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor) and one.device.type == "cpu":
                self.bytes += one.numel() * one.element_size()
        return out


HUGE = [
    ["width=20000"],
    ["model=cnn", "width=4000", "depth=3"],
    ["model=resmlp", "width=20000"],
    ["model=resnet", "width=1000", "depth=2"],
    ["model=vit", "width=8192"],
    ["model=gpt", "width=8192", "data=tiny_text"],
    ["width=[30000,30000]", "depth=2", "optim=adam"],
]


@pytest.mark.parametrize("overrides", HUGE, ids=" ".join)
def test_a_large_network_is_measured_without_its_memory(overrides):
    config = compose_config([*overrides, "device=cpu"])
    load_data(config, torch.device("cpu"))
    with Counting() as counting:
        size = estimate_cost(config)
    assert counting.bytes < 100e6
    assert 1e9 < size.min_bytes < size.bytes < INFINITE


def test_meta_and_memory_measure_the_same(monkeypatch):
    for overrides in ([], ["model=cnn"], ["model=vit"], ["model=resnet", "depth=1", "act=relu"], ["model=resmlp"]):
        config = compose_config([*overrides, "data=fashion_mini", "device=cpu"])
        found = estimate_cost(config)
        monkeypatch.setattr(cost, "META_DEVICE_BYTES", -1)
        assert estimate_cost(config) == found
        monkeypatch.undo()


def bytes_of_training(config) -> int:
    """Bytes of weights, gradients, slots, and what autograd keeps of one batch."""
    data, act = load_data(config, torch.device("cpu")), build_activation(config)
    module, _ = build_network(config, data, act, torch.device("cpu"))
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor):
        alive.append(tensor)  # memory that is freed would be given out again
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = data.prepare(data.train_x[: config.train.batch_size])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(inputs).sum()
    copies = 2 + len(OPTIMIZERS[config.optim["name"]].slots)
    return sum(kept.values()) + copies * sum(p.numel() for p in module.parameters()) * 4


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["act=relu", "depth=20"],
        ["model=cnn", "width=8", "depth=3"],
        ["model=resmlp", "act=gelu"],
        ["model=vit", "optim=adam"],
        ["model=resnet", "depth=1"],
        ["model=gpt", "data=tiny_text"],
        ["model.dropout=0.5", "model.norm=layer"],
    ],
    ids=" ".join,
)
def test_the_least_is_no_more_than_training_takes(overrides):
    config = compose_config(["depth=2", "device=cpu", *overrides])
    real = bytes_of_training(config)
    assert 0.3 * real < estimate_cost(config).min_bytes <= real


def test_gradients_and_slots_of_the_optimizer_count():
    sizes = [estimate_cost(compose_config(["width=2048", f"optim={name}", "device=cpu"])).min_bytes for name in
             ("sgd", "adam")]  # fmt: skip
    weights = sum(p.numel() for p in nn.Sequential(nn.Linear(784, 2048), *(nn.Linear(2048, 2048) for _ in range(4)),
                                                   nn.Linear(2048, 10)).parameters()) * 4  # fmt: skip
    assert 3 * weights < sizes[0] < sizes[1] == sizes[0] + weights


# --- what does not fit is refused


@pytest.fixture
def eight_gib(monkeypatch, tmp_path):
    """A machine with 8 GiB that are free, where nothing may be built or initialized for real."""
    from initlab.experiment import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resources, "machine_free_bytes", lambda: 8.0 * GIB)
    monkeypatch.setattr(resources, "container_free_bytes", lambda: INFINITE)

    def never(*_):
        raise AssertionError("a network was made")

    monkeypatch.setattr(build, "build_network", never)
    monkeypatch.setattr(import_module("initlab.experiment.run"), "build_network", never)


SAYS = r"model=mlp depth=5 width=20000: one network needs 18.\d\d GiB .* and 8.00 GiB are free"


@pytest.mark.parametrize(
    "arguments",
    [
        ["width=20000"],
        ["width=20000", "dry_run=true"],
        ["-m", "width=20000", "seed=0,1"],
        ["-m", "width=8,20000", "seed=0,1", "dry_run=true"],
        ["-m", "width=20000", "seed=0,1", "hydra/launcher=basic"],
        ["-m", "width=20000", "seed=0,1", "race=true", "init=he_normal,zeros"],
        ["-m", "width=20000", "seed=0,1", "hydra.launcher.executor=process", "hydra.launcher.workers=2"],
    ],
    ids=" ".join,
)
def test_a_network_that_cannot_fit_is_refused_before_anything_is_built_or_written(eight_gib, capsys, arguments):
    assert run_train([*arguments, "device=cpu"]) == 2
    assert re.search(SAYS, capsys.readouterr().err)
    assert not Path("outputs").exists()


def test_python_is_refused_as_well(eight_gib, tmp_path):
    for more in ({}, {"dry_run": True}):
        with pytest.raises(UserError, match=SAYS):
            initlab.sweep(width=[20000], device="cpu", sweep__root=str(tmp_path), quiet=True, **more)
    assert list(tmp_path.iterdir()) == []


def test_the_users_word_on_memory_is_taken(eight_gib):
    config = compose_config(["width=20000", "device=cpu"])
    with pytest.raises(UserError, match=r"8\.00 GiB are free.*sweep\.memory=19"):
        require_memory([(config, estimate_cost(config))])
    roomy = replace(config, sweep=replace(config.sweep, memory=19))
    require_memory([(roomy, estimate_cost(roomy))])
    config = compose_config(["width=20000", "device=cpu", "sweep.memory=3"])
    with pytest.raises(UserError, match=r"sweep.memory allows 3.00 GiB"):
        require_memory([(config, estimate_cost(config))])


def test_other_machines_are_not_judged_by_this_one(eight_gib, monkeypatch):
    from initlab.sweep.cost import CostCache
    from initlab.sweep.run import refuse_too_large

    config = compose_config(["width=20000", "device=cpu"])
    cells = check_cells([config], [Path("x").absolute()])
    refuse_too_large(cells, Elsewhere(), CostCache())
    with pytest.raises(UserError, match="one network needs"):
        refuse_too_large(cells, Placement("process", 2), CostCache())


class Elsewhere:
    """An executor on other machines."""

    def is_remote(self):
        return True


def test_workers_that_share_the_memory_are_counted(eight_gib):
    from initlab.sweep.cost import CostCache
    from initlab.sweep.run import refuse_too_large

    config = compose_config(["width=10000", "device=cpu"])  # 4.6 GiB
    cells = check_cells([config, replace(config, seed=1)], [Path("x").absolute(), Path("y").absolute()])
    for how in (Placement("inline"), Placement("process", 1)):
        refuse_too_large(cells, how, CostCache())
    refuse_too_large(cells[:1], Placement("process", 2), CostCache())
    with pytest.raises(UserError, match=r"one needs 4\.\d\d GiB .*8\.00 GiB are free.*workers=1"):
        refuse_too_large(cells, Placement("process", 2), CostCache())


def test_what_is_done_is_not_judged_again(eight_gib, tmp_path):
    from initlab.sweep.cost import CostCache
    from initlab.sweep.run import refuse_too_large

    config = compose_config(["width=20000", "device=cpu"])
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "summary.json").write_text("{}")
    refuse_too_large(check_cells([config], [tmp_path / "done"]), Placement(), CostCache())


# --- a plan builds nothing large and initializes nothing


def test_a_plan_initializes_no_network_and_builds_small_ones_alone(tmp_path, monkeypatch, capsys):
    from initlab.sweep import dry_run

    monkeypatch.setattr(resources, "machine_free_bytes", lambda: 1000.0 * GIB)
    monkeypatch.setattr(resources, "container_free_bytes", lambda: INFINITE)
    built = []
    build = dry_run.build_module
    monkeypatch.setattr(
        dry_run, "build_module", lambda config, *rest: built.append(config.width) or build(config, *rest)
    )
    initlab.sweep(width=[8, 20000], init=["gradinit", "orthogonal"], seed=range(2), device="cpu", train__steps=3,
                  sweep__root=str(tmp_path), dry_run=True)  # fmt: skip
    assert set(built) == {8}
    said = capsys.readouterr().out
    assert "width=20000" in said
    assert "8 networks in" in said


def test_a_plan_times_for_two_seconds_at_most(tmp_path, monkeypatch):
    from initlab.sweep import dry_run

    timed = []
    monkeypatch.setattr(dry_run, "time_step", lambda few, patience: timed.append(patience) or 0.001)
    clock = [0.0]

    def tick():
        clock[0] += 0.25
        return clock[0]

    monkeypatch.setattr(dry_run.time, "perf_counter", tick)
    initlab.sweep(width=list(range(4, 24)), device="cpu", train__steps=3, data="gaussian", sweep__root=str(tmp_path),
                  dry_run=True)  # fmt: skip
    assert sum(timed) <= dry_run.TOTAL_BUDGET
    assert len(timed) < 20
