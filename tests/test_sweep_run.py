"""Grids: which cells, in which groups, how many at a time, and what becomes of those that cannot be or fail."""

import json
import random
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import initlab
from initlab.config import Config
from initlab.config.compose import compose_config
from initlab.config.grid import compose_grid
from initlab.config.naming import config_hash
from initlab.errors import UserError
from initlab.sweep.cells import cell_directories, check_cells, group_key, select_cells
from initlab.sweep.cost import CostCache, estimate_cost, max_group_size
from initlab.sweep.grouping import Architecture, factoring_group_sizes, split_evenly
from initlab.sweep.placement import Placement
from initlab.sweep.plan_file import PlanFile, assign_groups
from initlab.sweep.results import SweepResults
from initlab.sweep.run import plan_groups, run_sweep
from initlab.sweep.summary import summarize_cells, varying_axes

TINY = {"depth": 1, "width": 4, "train.steps": 3, "log.histograms": 0, "data": "gaussian", "data.train_size": 300}
TINY |= {"data.test_size": 50}
ALL_ON_ONE_KEY = ("init", "seed", "optim.lr", "optim.weight_decay", "optim.clip_norm", "init.gain")


def sweep(root: Path, *others: dict, **axes):
    return initlab.sweep({**TINY, "sweep.root": str(root), "sweep.name": "s", **dict(*others)}, quiet=True, **axes)


def grid(tmp_path, **axes):
    overrides = [f"{key}={value}" for key, value in {**TINY, **axes}.items()]
    configs, directory = compose_grid([*overrides, f"sweep.root={tmp_path}", "sweep.name=s"])
    return check_cells(configs, cell_directories(configs, directory)), directory


# --- which cells


def test_a_grid_is_a_product_in_the_order_of_its_keys():
    configs, _ = compose_grid(["init=zeros,ones", "seed=range(2)", "act=glob(tan*)"])
    assert [(c.init["name"], c.seed, c.act["name"]) for c in configs] == [
        ("zeros", 0, "tanh"), ("zeros", 1, "tanh"), ("ones", 0, "tanh"), ("ones", 1, "tanh"),
    ]  # fmt: skip


def test_a_glob_finds_every_scheme_but_the_users_own():
    configs, _ = compose_grid(["init=glob(*)"])
    assert [c.init["name"] for c in configs] == sorted({*initlab.SCHEMES, *initlab.PROCEDURES} - {"custom"})


def test_sub_grids_follow_each_other_and_the_command_line_overrules_them():
    grids = '[{init:zeros,depth:"1,2"},{init:[siren,he_normal],act:sin,seed:"range(2)",width:[[4],8]}]'
    configs, _ = compose_grid([f"sweep.grids={grids}", "depth=1"])
    found = [(c.init["name"], c.act["name"], c.depth, c.seed, c.width) for c in configs]
    assert found[0] == ("zeros", "tanh", 1, 0, 128)
    assert len(found) == 1 + 2 * 2 * 2
    assert found[1:4] == [("siren", "sin", 1, 0, [4]), ("siren", "sin", 1, 0, 8), ("siren", "sin", 1, 1, [4])]


def test_where_sub_grids_overlap_a_cell_comes_once():
    configs, _ = compose_grid(['sweep.grids=[{init:"zeros,ones"},{init:"ones,he_normal"}]'])
    assert [configs[k].init["name"] for k in select_cells(configs, repeats=True)] == ["zeros", "ones", "he_normal"]


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ("[{init:zeros}]", ["ones-relu", "ones-tanh"]),
        ("[{init:[zeros,ones],act:relu}]", ["zeros-tanh", "ones-tanh"]),
        ("[{init:zeros,act:relu},{init:ones,act:tanh}]", ["zeros-tanh", "ones-relu"]),
        ("[{depth:[1,2],seed:0,act:[ReLU]}]", ["zeros-tanh", "ones-tanh"]),
        ("[{depth:7}]", ["zeros-relu", "zeros-tanh", "ones-relu", "ones-tanh"]),
        ("[{init.sigma_b:0,act:relu}]", ["zeros-tanh", "ones-tanh"]),
    ],
)
def test_exclude_matches_what_was_resolved(rules, left):
    configs, _ = compose_grid(["init=zeros,ones", "act=relu,tanh", "depth=1", f"sweep.exclude={rules}"])
    assert [f"{configs[k].init['name']}-{configs[k].act['name']}" for k in select_cells(configs)] == left


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sweep.exclude=[{init:he_norml}]"], "he_normal"),
        (["sweep.exclude=[{dept:3}]"], "depth"),
        (["sweep.exclude=[zeros]"], "which is no rule"),
        (["sweep.exclude=[{init:glorot_uniform}]"], "leaves no cell to run"),
        (["seed=1,1"], "the same run"),
        (["init=xavier_uniform,glorot_uniform"], "the same run"),
        (["init=dirac,delta_orthogonal"], "needs convolutions"),
        (["init=dirac,zeros", "sweep.impossible=error"], "sweep.impossible=skip"),
        (["sweep.order=grid,shuffle"], "single value"),
        (["sweep.grids=[{}]"], "no sub-grid"),
        (["sweep.grids=[3]"], "no sub-grid"),
        (["sweep.grids=[{seed:[]}]"], "empty list"),
        (["init=glob(nothing*)"], "matches no option"),
        (["seed=0,1", "sed=0"], "seed"),
        (["train.batch_size=128,100000"], "train.batch_size"),
        (["data.root=/nowhere", "data=custom,gaussian"], "data"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_and_nothing_is_written(tmp_path, overrides, says):
    def run():
        configs, directory = compose_grid([*overrides, f"sweep.root={tmp_path}"])
        configs = [configs[k] for k in select_cells(configs)]
        run_sweep(check_cells(configs, cell_directories(configs, directory)), directory, Placement())

    with pytest.raises(UserError) as refused:
        run()
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_executor_is_refused(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'process'"):
        sweep(tmp_path, seed=[0, 1], executor="proces")
    with pytest.raises(UserError, match=r"hydra\.launcher\.workers=0"):
        sweep(tmp_path, seed=[0, 1], executor="process", workers=0)
    assert list(tmp_path.iterdir()) == []


# --- which groups


@pytest.mark.parametrize("key", ALL_ON_ONE_KEY)
def test_what_may_differ_inside_a_group(key):
    pair = {"init": "zeros,he_normal", "seed": "0,1", "init.gain": "1,2"}.get(key, "0.1,0.2")
    configs, _ = compose_grid([f"{key}={pair}"])
    assert group_key(configs[0]) == group_key(configs[1])


@pytest.mark.parametrize(
    "override",
    [
        *("act=relu", "depth=2", "width=5", "model.norm=batch", "data.seed=1", "data.root=/tmp", "optim=adam"),
        *("optim.momentum=0.5", "train.steps=7", "train.target_loss=1", "precision=fp64", "log.every=2", "device=cpu"),
    ],
)
def test_what_makes_another_group(override):
    assert group_key(compose_config([override])) != group_key(compose_config([]))


@pytest.mark.parametrize(("count", "largest"), [(1, 1), (7, 3), (8, 8), (9, 8), (5, 100), (10, 1)])
def test_pieces_are_even_and_as_few_as_can_be(count, largest):
    sizes = split_evenly(count, largest)
    assert sum(sizes) == count
    assert len(sizes) == -(-count // largest)
    assert max(sizes) - min(sizes) <= 1


def hashes(cells):
    return {cell.hash for cell in cells}


def tens(kinds):
    return [split_evenly(len(alike), 10) for alike in kinds]


def test_groups_keep_their_cells_while_the_grid_grows(tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    small, _ = grid(tmp_path, seed="0,1", depth="1,2")
    first = assign_groups(plan, small, hashes(small), tens)
    assert [(g.id, len(g.cells)) for g in first] == [("g0001", 2), ("g0002", 2)]
    plan.write()
    again = PlanFile.read(tmp_path / "plan.json")
    grown, _ = grid(tmp_path, seed="range(5)", depth="1,2")
    second = assign_groups(again, grown, hashes(grown), tens)
    assert {g.id: len(g.cells) for g in second} == {"g0001": 2, "g0002": 2, "g0003": 3, "g0004": 3}
    assert [c.hash for c in first[0].cells] == [c.hash for c in second[0].cells]
    assert len({cell.hash for group in second for cell in group.cells}) == len(grown)


def test_a_group_with_one_cell_undone_is_run_as_a_whole_and_a_shrunken_one_is_not(tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    cells, _ = grid(tmp_path, seed="0,1,2")
    assign_groups(plan, cells, hashes(cells), tens)
    undone = assign_groups(plan, cells, {cells[1].hash}, tens)
    assert [(g.id, len(g.cells)) for g in undone] == [("g0001", 3)]
    fewer, _ = grid(tmp_path, seed="1,2")
    regrouped = assign_groups(plan, fewer, hashes(fewer), tens)
    assert [(g.id, len(g.cells)) for g in regrouped] == [("g0002", 2)]


def test_shuffled_order_is_always_the_same_and_not_the_grids(tmp_path):
    frames = [sweep(tmp_path / name, seed=range(8), sweep={"order": "shuffle", "max_group": 1}) for name in "ab"]
    ended = [[path.name for path in by_time(tmp_path / name / "s")] for name in "ab"]
    assert ended[0] == ended[1]
    assert ended[0] != sorted(ended[0])
    assert frames[0]["seed"].tolist() == list(range(8))


def by_time(directory: Path) -> list[Path]:
    summaries = sorted(directory.glob("*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    return [path.parent for path in summaries]


# --- how many at a time


def test_a_network_takes_more_when_it_is_larger():
    base = {"data": "fashion_mini", "depth": "3", "width": "64"}

    def taken(**others):
        return estimate_cost(compose_config([f"{k}={v}" for k, v in {**base, **others}.items()])).bytes

    assert taken() < taken(width="128") < taken(depth="10", width="128")
    assert taken() < taken(optim="adam")
    assert taken() < taken(**{"train.batch_size": "512"})
    assert taken(precision="fp64") == 2 * taken()
    assert taken(model="cnn", width="16") > 4 * 128 * 28 * 28 / 4 * 16


def test_the_estimate_holds_what_training_really_takes():
    from initlab.experiment.build import build_activation, build_network, load_data

    config = compose_config(["depth=4", "width=256", "data=gaussian"])
    data, act = load_data(config, torch.device("cpu")), build_activation(config)
    module, _ = build_network(config, data, act, torch.device("cpu"))
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.randn(config.train.batch_size, *data.input_shape)).sum()
    real = sum(kept.values()) + 3 * sum(p.numel() for p in module.parameters()) * 4
    assert real < estimate_cost(config).bytes < 6 * real


def test_memory_and_max_group_bound_a_group():
    config = compose_config([])
    each = estimate_cost(config).bytes
    one = each / 2**30
    assert max_group_size(replace(config, sweep=replace(config.sweep, memory=10.5 * one)), each) == 10
    assert max_group_size(replace(config, sweep=replace(config.sweep, memory=10.5 * one, max_group=3)), each) == 3
    assert max_group_size(replace(config, sweep=replace(config.sweep, memory=0.1 * one)), each) == 1
    assert max_group_size(config, each, workers=4) <= max_group_size(config, each) / 3


def test_max_group_cuts_the_plan(tmp_path):
    sweep(tmp_path, seed=range(5), sweep={"max_group": 2})
    groups = json.loads((tmp_path / "s" / "plan.json").read_text())["groups"]
    assert [len(hashes) for hashes in groups.values()] == [2, 2, 1]


def planned(root: Path, how: Placement, plan: PlanFile | None = None, **axes):
    """Plan two shallow and two deep architectures; return each group as act, depth, networks and work."""
    wide = {"width": 64, "device": "cpu", "depth": "3,10", "act": "tanh,relu", "seed": "range(8)", **axes}
    cells, directory = grid(root, **wide)
    groups, _ = plan_groups(plan or PlanFile(root / "plan.json"), SweepResults(directory), cells, how, CostCache())
    assert sum(len(group.cells) for group in groups) == len(cells)
    configs = [group.cells[0].config for group in groups]
    return [
        (c.act["name"], c.depth, len(g.cells), len(g.cells) * estimate_cost(c).work)
        for c, g in zip(configs, groups, strict=True)
    ]


def test_several_workers_cut_what_is_expensive_and_begin_with_what_takes_longest(tmp_path):
    found = planned(tmp_path, Placement("process", 2))
    deep = [("tanh", 10, 4), ("tanh", 10, 4), ("relu", 10, 3), ("relu", 10, 3)]
    assert [group[:3] for group in found] == [*deep, ("tanh", 3, 8), ("relu", 3, 8), ("relu", 10, 2)]
    works = [work for *_, work in found]
    assert works == sorted(works, reverse=True)
    assert max(works) <= sum(works) / (2 * 2)


KINDS = [
    Architecture(40, 160, 3e7, fits=99),
    Architecture(40, 160, 3e7, 99),
    Architecture(40, 80, 2e7, 99),
    Architecture(40, 80, 2e7, 99),
]


def idle_at_the_end(cuts, costs, speeds):
    """Let whoever is free take the longest of what is left; return the share of all workers' time that is waited."""
    groups = [
        (size * kind.work, size * cost)
        for kind, sizes, cost in zip(KINDS, cuts, costs, strict=True)
        for size in sizes
    ]  # fmt: skip
    busy = [0.0] * len(speeds)
    for _, cost in sorted(groups, key=lambda group: -group[0]):
        k = busy.index(min(busy))
        busy[k] += cost / speeds[k]
    return 1 - sum(busy) / len(busy) / max(busy)


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("slowest", [1.0, 0.8])
def test_workers_end_together_though_nobody_knows_what_networks_take(workers, slowest):
    cuts, halves = factoring_group_sizes(KINDS, workers, 2), [split_evenly(40, 20)] * 4
    idle, idle_by_halves = [], []
    rng = random.Random(0)
    for _ in range(200):
        costs = [kind.work * rng.uniform(0.7, 1.4) for kind in KINDS]
        speeds = [rng.uniform(slowest, 1) for _ in range(workers)]
        idle.append(idle_at_the_end(cuts, costs, speeds))
        idle_by_halves.append(idle_at_the_end(halves, costs, speeds))
    assert statistics.mean(idle) < 0.005 * workers
    assert slowest == 1.0 or statistics.mean(idle) < statistics.mean(idle_by_halves) / 2


def test_every_network_is_in_a_group_that_fits_and_is_no_larger_than_it_should_be():
    rng = random.Random(1)
    for _ in range(500):
        workers, least = rng.randint(2, 20), rng.choice([1, 2])
        kinds = [
            Architecture(rng.randint(1, 60), rng.randint(1, 500), 10 ** rng.uniform(4, 9), rng.randint(1, 40))
            for _ in range(rng.randint(1, 6))
        ]
        total = sum(kind.count * kind.work for kind in kinds)
        for kind, sizes in zip(kinds, factoring_group_sizes(kinds, workers, least), strict=True):
            assert sum(sizes) == kind.count
            assert max(sizes) <= kind.fits
            assert max(sizes) <= max(total / (2 * workers * kind.work), least + 1)
            assert min(sizes) >= least or kind.count < least or kind.fits < 2 * least


def test_small_networks_are_not_cut_as_finely_as_large_ones():
    small, large = ([Architecture(400, 100, step, fits=999)] for step in (4e6, 4e7))
    assert min(factoring_group_sizes(small, 2, 2)[0]) >= 12
    assert min(factoring_group_sizes(large, 2, 2)[0]) == 2


@pytest.mark.parametrize("workers", [2, 3, 5, 16])
def test_no_group_is_more_than_half_of_what_a_worker_has_to_do(tmp_path, workers):
    found = planned(tmp_path, Placement("process", workers))
    total = sum(work for *_, work in found)
    for _, _, count, work in found:
        assert count == 2 or work <= total / (2 * workers)


@pytest.mark.parametrize(("workers", "seeds"), [(2, 2), (2, 3), (5, 5), (12, 7), (16, 8)])
def test_no_network_is_cut_off_alone_where_that_leaves_no_worker_idle(tmp_path, workers, seeds):
    found = planned(tmp_path, Placement("process", workers), seed=f"range({seeds})")
    assert min(count for _, _, count, _ in found) >= 2
    assert len(found) >= min(workers, 4)


def test_no_network_is_alone_while_groups_of_an_earlier_plan_keep_workers_busy(tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    planned(tmp_path, Placement("process", 2), plan, depth="3", act="tanh")
    found = planned(tmp_path, Placement("process", 2), plan, depth="3", act="tanh", seed="range(11)")
    assert sorted(count for _, _, count, _ in found) == [2, 2, 2, 2, 3]


@pytest.mark.parametrize(("workers", "seeds"), [(9, 4), (5, 2)])
def test_networks_are_alone_rather_than_workers_idle(tmp_path, workers, seeds):
    found = planned(tmp_path, Placement("process", workers), seed=f"range({seeds})")
    assert len(found) >= min(workers, 4 * seeds)


@pytest.mark.parametrize("how", [Placement("inline"), Placement("inline", 4), Placement("process", 1)])
def test_one_worker_takes_whole_architectures_in_the_order_of_the_grid(tmp_path, how):
    assert [group[:3] for group in planned(tmp_path, how)] == [
        ("tanh", 3, 8), ("relu", 3, 8), ("tanh", 10, 8), ("relu", 10, 8),
    ]  # fmt: skip


def test_groups_that_are_planned_stay_as_they_are_for_several_workers(tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    planned(tmp_path, Placement(), plan)
    before = dict(plan.groups)
    found = planned(tmp_path, Placement("process", 2), plan)
    assert plan.groups == before
    assert [group[:3] for group in found] == [("tanh", 10, 8), ("relu", 10, 8), ("tanh", 3, 8), ("relu", 3, 8)]


def test_what_is_done_does_not_count_in_how_finely_the_rest_is_cut(tmp_path, monkeypatch):
    plan = PlanFile(tmp_path / "plan.json")
    planned(tmp_path, Placement("process", 2), plan)
    old = {h for hashes in plan.groups.values() for h in hashes}
    monkeypatch.setattr(SweepResults, "finished", lambda self, cell: {} if cell.hash in old else None)
    cells, directory = grid(tmp_path, width=64, device="cpu", depth="3,10", act="tanh,relu", seed="range(12)")
    found, _ = plan_groups(plan, SweepResults(directory), cells, Placement("process", 2), CostCache())
    assert [len(group.cells) for group in found] == [2, 2, 2, 2, 4, 4]
    lost = PlanFile(tmp_path / "plan.json", damage="damaged", lost=True)
    plan_groups(lost, SweepResults(directory), cells, Placement("process", 2), CostCache())
    anew = PlanFile(tmp_path / "anew.json")
    monkeypatch.setattr(SweepResults, "finished", lambda self, cell: None)
    plan_groups(anew, SweepResults(directory), cells, Placement("process", 2), CostCache())
    assert lost.groups == anew.groups


def test_an_early_look_is_cut_and_stays_shuffled(tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    found = planned(tmp_path, Placement("process", 2), plan, **{"sweep.order": "shuffle"})
    assert sorted(map(len, plan.groups.values())) == [2, 3, 3, 4, 4, 8, 8]
    by_first = sorted(plan.groups, key=lambda name: min(plan.groups[name]))
    assert [len(plan.groups[name]) for name in by_first] == [count for _, _, count, _ in found]
    works = [work for *_, work in found]
    assert works != sorted(works, reverse=True)


def test_cards_and_jobs_of_a_cluster_are_not_cut_finer_but_begin_with_what_takes_longest(tmp_path, monkeypatch):
    monkeypatch.setattr("initlab.sweep.executors.find_spec", lambda name: name)
    whole = [("tanh", 10, 8), ("relu", 10, 8), ("tanh", 3, 8), ("relu", 3, 8)]
    slurm = {"cluster": "slurm"}
    assert [group[:3] for group in planned(tmp_path, Placement("submitit", 32, slurm))] == whole
    assert [group[:3] for group in planned(tmp_path, Placement("submitit", options=slurm))] == whole
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [group[:3] for group in planned(tmp_path, Placement("process"), device="auto")] == whole


def test_every_architecture_is_built_once_to_plan_it(tmp_path, monkeypatch):
    from initlab.sweep import cost as memory

    built = []
    build = memory.build_module
    monkeypatch.setattr(memory, "build_module", lambda config, *rest: built.append(config) or build(config, *rest))
    cells, directory = grid(tmp_path, depth="1,2", seed="range(4)")
    plan_groups(PlanFile(tmp_path / "plan.json"), SweepResults(directory), cells, Placement("process", 2), CostCache())
    assert [config.depth for config in built] == [1, 2]


def test_work_is_what_the_layers_multiply_for_every_sample():
    def work(**others):
        small = {"data": "fashion_mini", "depth": 1, "width": 8, "train.steps": 5, "train.batch_size": 32, **others}
        return estimate_cost(compose_config([f"{k}={v}" for k, v in small.items()])).work

    # Flattened images, two layers, an activation between: one product per value where there is no matrix.
    assert work() == 5 * 32 * (784 + 784 * 8 + 8 + 8 * 10)
    assert work(**{"train.steps": 10}) == work(**{"train.batch_size": 64}) == 2 * work()
    # A convolution has few weights, and uses them at every place.
    assert work(model="cnn", depth=3) > 10 * work(depth=3)


# --- what becomes of them


def test_a_frame_with_one_row_per_cell_and_a_table_on_disk(tmp_path):
    frame = sweep(tmp_path, init=["zeros", "he_normal"], seed=range(2), optim={"lr": [0.1, 0.01]})
    assert frame["status"].tolist() == ["completed"] * 8
    assert frame["init"].tolist() == ["zeros"] * 4 + ["he_normal"] * 4
    written = (tmp_path / "s" / "sweep.csv").read_text().splitlines()
    assert len(written) == 9
    assert initlab.load(tmp_path / "s")["loss"].tolist() == pytest.approx(
        frame.sort_values("path")["loss"].tolist(), abs=0
    )


def test_the_same_call_runs_nothing_twice_and_a_grown_one_only_what_is_new(tmp_path):
    sweep(tmp_path, seed=range(2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/summary.json")}
    sweep(tmp_path, seed=range(2))
    grown = sweep(tmp_path, seed=range(4))
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/summary.json")}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(grown) == 4


def test_a_changed_configuration_is_kept_apart(tmp_path):
    first = sweep(tmp_path, seed=[0, 1])
    second = sweep(tmp_path, seed=[0, 1], train__steps=4)
    assert set(first["path"]).isdisjoint(second["path"])
    table = initlab.load(tmp_path / "s")
    assert sorted(table["train.steps"]) == [3, 3, 4, 4]


def test_cells_that_cannot_exist_are_recorded_with_their_reason(tmp_path):
    frame = sweep(tmp_path, init=["zeros", "dirac"], seed=[0, 1])
    assert frame["status"].tolist() == ["completed"] * 2 + ["skipped"] * 2
    assert frame["reason"].tolist()[2:] == [frame["reason"].iloc[2]] * 2
    assert "needs convolutions" in frame["reason"].iloc[2]


def test_divergence_is_a_result_and_is_not_run_again(tmp_path):
    call = {"init": ["constant", "he_normal"], "act": "relu", "depth": 3, "optim.lr": 1e30}
    frame = sweep(tmp_path, call)
    assert "diverged" in frame["status"].tolist()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/summary.json")}
    assert sweep(tmp_path, call)["status"].tolist() == frame["status"].tolist()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/summary.json")} == before


@pytest.fixture
def own_scheme(tmp_path, monkeypatch):
    """A scheme of the user's own that breaks for one seed, as long as the file `broken` is there."""
    (tmp_path / "own_scheme.py").write_text(
        "from pathlib import Path\n"
        "def fill_(weight, *, generator, **_):\n"
        "    weight.normal_(0, 0.1, generator=generator)\n"
        "    if float(weight.flatten()[0]) > 0 and Path('broken').exists():\n"
        "        raise RuntimeError('a bug of mine')\n"
        "    return weight\n"
    )
    (tmp_path / "broken").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"init": "custom", "init.target": "own_scheme:fill_"}
    sys.modules.pop("own_scheme", None)


def test_one_bad_cell_costs_speed_and_not_the_sweep(tmp_path, own_scheme):
    frame = sweep(tmp_path / "out", own_scheme, seed=range(6), train__steps=5)
    failed = frame["status"] == "failed"
    assert 0 < failed.sum() < 6
    assert set(frame["status"]) == {"failed", "completed"}
    assert frame["error"][failed].str.contains("a bug of mine").all()
    logs = [(Path(path) / "run.log").read_text() for path in frame["path"][failed]]
    assert all("Traceback" in log and "own_scheme.py" in log for log in logs)


def test_failed_cells_are_tried_again_and_others_are_not(tmp_path, own_scheme):
    first = sweep(tmp_path / "out", own_scheme, seed=range(6))
    (tmp_path / "broken").unlink()
    before = {path: (Path(path) / "summary.json").stat().st_mtime_ns for path in first["path"]}
    second = sweep(tmp_path / "out", own_scheme, seed=range(6))
    assert second["status"].tolist() == ["completed"] * 6
    again = [(Path(path) / "summary.json").stat().st_mtime_ns != before[path] for path in second["path"]]
    assert again == (first["status"] == "failed").tolist()


def test_another_directory_for_every_hash_and_none_for_device_and_logging(tmp_path):
    first = sweep(tmp_path, seed=[0])
    second = sweep(tmp_path, seed=[0], device="cpu", log={"every": 2}, threads=1)
    assert first["path"].tolist() == second["path"].tolist()


@pytest.mark.parametrize("every", [1, 7, 80])
def test_the_final_loss_is_of_the_last_fifty_steps_however_often_one_logs(tmp_path, every):
    (path,) = sweep(tmp_path, seed=[0], train__steps=90, log={"every": every, "tensorboard": False})["path"]
    rows = pd.read_csv(Path(path) / "metrics.csv").dropna(subset="grad_norm").set_index("step")
    last = rows[rows.index > rows.index.max() - 50]
    assert len(last) == len(range(rows.index.max(), max(-1, rows.index.max() - 50), -every))
    summary = json.loads((Path(path) / "summary.json").read_text())
    assert summary["loss"] == pytest.approx(last["loss"].mean(), rel=1e-6)
    assert summary["accuracy"] == pytest.approx(last["accuracy"].mean(), rel=1e-6)


def test_a_dry_run_writes_nothing_and_says_what_would_be(tmp_path, capsys):
    frame = sweep(tmp_path, seed=range(3), depth=[1, 2], init=["zeros", "dirac"], dry_run=True)
    said = capsys.readouterr().out
    assert len(frame) == 0
    assert list(tmp_path.iterdir()) == []
    for text in ("g0001", "g0002", "depth=1", "depth=2", "6 networks in 2 groups", "GiB", "6 × init=dirac"):
        assert text in said


def test_the_table_is_rewritten_while_cells_end_but_not_for_each(tmp_path, monkeypatch):
    from initlab.sweep import results

    written = []
    monkeypatch.setattr(results, "write_sweep", lambda directory, frame: written.append(len(frame)))
    monkeypatch.setattr(results, "TABLE_INTERVAL", 0.0)
    sweep(tmp_path / "often", seed=range(6), sweep={"max_group": 1})
    assert 2 <= len(written) <= 7
    assert written == sorted(written)
    written.clear()
    monkeypatch.setattr(results, "TABLE_INTERVAL", 1e9)
    sweep(tmp_path / "seldom", seed=range(6), sweep={"max_group": 1})
    assert written in ([6], [1, 6])


def test_progress_in_a_file_comes_ever_more_seldom(monkeypatch):
    from io import StringIO

    from rich.console import Console

    from initlab.sweep import progress
    from initlab.system import terminal

    clock = [0.0]
    for module in (terminal, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    out = StringIO()
    line = progress.SweepProgressLine("sweep", Console(file=out))
    for clock[0] in range(3600):
        line.update({"facts": ["x"], "share": 0.5})
    assert 50 < len(out.getvalue().splitlines()) < 80


def test_the_room_is_callable_and_has_the_functions_signature():
    import inspect

    assert "executor" in inspect.signature(initlab.sweep).parameters
    assert "quiet" in inspect.signature(initlab.sweep.sweep).parameters


def test_nested_dotted_and_underscored_keys_are_one(tmp_path):
    ways = [{"optim": {"lr": [0.5]}}, {"optim.lr": [0.5]}]
    frames = [
        initlab.sweep({**TINY, "sweep.root": str(tmp_path), "sweep.name": "s", **way}, quiet=True) for way in ways
    ]
    frames.append(sweep(tmp_path, optim__lr=[0.5]))
    assert len({frame["path"].iloc[0] for frame in frames}) == 1
    assert frames[0]["optim.lr"].tolist() == [0.5]


def test_config_of_a_cell_is_the_command_lines(tmp_path):
    configs, _ = compose_grid(["init=he_normal,zeros", "optim.lr=0.3", "width=[8]", "depth=1"])
    assert configs[0] == compose_config(["init=he_normal", "optim.lr=0.3", "width=[8]", "depth=1"])
    assert isinstance(configs[1], Config)


# --- the table in the terminal


def test_a_key_that_is_not_set_is_an_axis_and_a_cell_of_its_own():
    rows = {"init": "normal", "act": "tanh", "optim.clip_norm": [None, 1.0, None, 1.0], "seed": [0, 0, 1, 1]}
    frame = pd.DataFrame(rows | {"loss": [1.0, 3.0, 2.0, 4.0], "status": "completed"})
    assert varying_axes(frame, ["init", "act", "optim.clip_norm"]) == ["optim.clip_norm"]
    found = {
        row["optim.clip_norm"]: (row["runs"], row["loss_mean"]) for row in summarize_cells(frame, ["optim.clip_norm"])
    }
    assert found == {"null": (2, 1.5), "1.0": (2, 3.5)}


@pytest.mark.parametrize("width", [24, 128])
def test_a_neighbour_that_diverges_changes_no_byte(tmp_path, width):
    shape = {"width": width, "depth": 2, "act": "relu", "log.histograms": 5, "train.steps": 30, "threads": 1}
    whole = {**TINY, **shape, "init": "he_normal", "seed": range(3), "sweep.root": str(tmp_path)}
    calm = initlab.sweep(whole, **{"optim.lr": 0.01, "sweep.name": "calm"}, quiet=True)
    wild = initlab.sweep(whole, **{"optim.lr": [0.01, 1e30], "sweep.name": "wild"}, quiet=True)
    assert list(wild["status"]).count("diverged") == 3
    beside = wild[wild["optim.lr"] == 0.01]
    for mine, yours in zip(calm["path"], beside["path"], strict=True):
        for name in ("metrics.csv", "layers.csv", "histograms.csv", "parameters.csv"):
            assert Path(mine, name).read_bytes() == Path(yours, name).read_bytes()


# --- what users did, and reviewers


def test_what_has_no_say_in_a_result_tells_no_cells_apart():
    runs = {
        "init": ["zeros", "zeros", "ones"],
        "device": ["cpu", "auto", "cpu"],
        "sweep.order": ["grid", "shuffle", "grid"],
    }
    frame = pd.DataFrame({**runs, "train.save": [True, False, True], "status": "completed"})
    assert varying_axes(frame, ["init", "device", "sweep.order", "train.save"]) == ["init"]


def test_a_plan_of_lists_of_widths_is_shown(tmp_path, capsys):
    sweep(tmp_path, {"width": [8, [8, 4]], "depth": 2, "dry_run": True})
    assert "width=[8, 4]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "values"), [("optim.lr", "1,1.0"), ("optim.weight_decay", "0,0.0"), ("init.gain", "2,2.0")]
)
def test_a_number_is_the_same_however_it_is_written(key, values):
    hashes = {config_hash(config) for config in compose_grid([f"{key}={values}"])[0]}
    assert len(hashes) == 1


def test_a_key_of_the_options_that_are_swept_needs_no_default_option_to_have_it():
    configs, _ = compose_grid(["optim=adam,adamw", "optim.beta1=0.8"])
    assert [(c.optim["name"], c.optim["beta1"]) for c in configs] == [("adam", 0.8), ("adamw", 0.8)]
    configs, _ = compose_grid(["experiment=gelu_silu_critical", "optim.lr=0.5"])
    assert {c.optim["lr"] for c in configs} == {0.5}
    with pytest.raises(UserError, match=r"init=normal has no init\.sd"):
        compose_grid(["init=normal,truncated_normal", "init.sd=1"])


@pytest.mark.parametrize("text", ["init=glob(he*),zeros", "init=zeros,glob(he*)"])
def test_a_glob_beside_names_is_told_how_to_be_written(text):
    with pytest.raises(UserError, match=r"write 'init=glob\(\["):
        compose_grid([text])


def test_what_concerns_the_grid_as_a_whole_is_named(tmp_path):
    for key, values in (("sweep.order", ("grid", "shuffle")), ("dry_run", (True, False))):
        with pytest.raises(UserError, match=rf"{key} is \w+ in one cell and \w+ in another"):
            select_cells([compose_config([f"{key}={value}"]) for value in values])


def test_grids_are_composed_by_several_threads_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: compose_grid([f"seed=range({k})", "init=zeros,ones"])[0], range(1, 9)))
    assert [len(configs) for configs in found] == [2 * k for k in range(1, 9)]


def test_a_rule_that_takes_nothing_out_is_told(capsys):
    configs, _ = compose_grid(["seed=0,1", "sweep.exclude=[{seed:7},{seed:1}]"])
    assert select_cells(configs) == [0]
    told = capsys.readouterr().err
    assert "no cell of the grid matches {seed:7}" in told
    assert "seed:1" not in told
