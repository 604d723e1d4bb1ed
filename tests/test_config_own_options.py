"""What is the user's own beside what is built in: `init=he_normal,mine:half_he`, and what lists in grids mean."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import initlab
from initlab.config.compose import compose_config
from initlab.config.grid import LIST_KEYS, compose_grid, refuse_ambiguous_widths
from initlab.config.naming import cell_name, config_hash
from initlab.config.schema import Config
from initlab.data import load_dataset
from initlab.errors import UserError
from initlab.sweep.cells import select_cells
from initlab.system.imports import CONTRACTS

TINY = {"depth": 1, "width": 4, "train.steps": 2, "log.histograms": 0, "data": "gaussian", "data.train_size": 300}
TINY |= {"data.test_size": 50}

MINE = """
import numpy as np, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

def half_he(weight, *, fans, gain, role, generator):
    return torch.nn.init.normal_(weight, 0, (1 / fans.fan_in) ** 0.5, generator=generator)
def he(weight, *, fans, generator, slope=1.0):
    weight.fill_(0.25 * slope)
def phi(x): return 1.5 * torch.tanh(x)
def total(x): return x.sum()
def raises(x): raise KeyError("mine")
def net(width, act, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], width), act.build(), nn.Linear(width, classes))
def no_net(classes): return 3
def blobs(size=120):
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return (x, y), (x[:50], y[:50])
def numbered(train):
    (x, y), _ = blobs()
    return (x, y) if train else (x[:50], y[:50])
class Points(Dataset):
    def __init__(self, train=True): self.n = 120 if train else 50
    def __len__(self): return self.n
    def __getitem__(self, i):
        if i >= self.n: raise IndexError
        return blobs()[0][0][i], int(blobs()[0][1][i])
class Stream(IterableDataset):
    def __iter__(self): return iter(())
class Broken(Points):
    def __getitem__(self, i): raise RuntimeError("a bug of mine")
class Named(Points):
    def __getitem__(self, i): return {"x": 1}
def points(): return Points(True), Points(False)
def tensors(): return tuple(TensorDataset(*part) for part in blobs())
def subsets():
    both = Points(True)
    return torch.utils.data.Subset(both, range(120)), torch.utils.data.Subset(both, range(50))
def one(): return Points()
def loaders(): return DataLoader(Points()), DataLoader(Points(False))
def streams(): return Stream(), Stream()
def broken(): return Broken(), Broken()
def names(): return Named(), Named()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Two modules of the user's own with the same names in them."""
    for name in ("mine_h", "other_h"):
        (tmp_path / f"{name}.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine_h", "other_h"):
        sys.modules.pop(name, None)


def sweep(root: Path, **axes: Any):
    return initlab.sweep({**TINY, "sweep.root": str(root), "sweep.name": "s"}, quiet=True, **axes)


# --- chosen beside built-in ones


def test_own_functions_stand_beside_built_in_ones_in_every_group(mine):
    configs, _ = compose_grid(
        ["init=he,mine_h:half_he", "act=tanh,mine_h:phi", "model=mlp,mine_h:net", "data=gaussian,mine_h:blobs"]
    )
    assert len(configs) == 16
    own = [config for config in configs if config.init["name"] == "custom"]
    assert {config.init["target"] for config in own} == {"mine_h:half_he"}
    # What is chosen in one word is the same run as what is chosen in two.
    assert config_hash(own[0]) == config_hash(
        compose_config(["init=custom", "init.target=mine_h:half_he", "act=tanh", "model=mlp", "data=gaussian"])
    )


def test_tables_and_directories_name_the_function_and_tell_modules_apart(mine):
    init = ["he_normal", "mine_h:half_he", "other_h:half_he", "mine_h:he"]
    frame = sweep(mine / "out", init=init, act=["tanh", "mine_h:phi"])
    assert frame["status"].tolist() == ["completed"] * 8
    assert frame["init"].tolist() == [name for name in init for _ in range(2)]
    assert set(frame["act"]) == {"tanh", "mine_h:phi"}
    names = [Path(path).name for path in frame["path"]]
    assert len(set(names)) == 8
    assert names[3].startswith("mine_h.half_he-mine_h.phi-d1-s0-")
    assert names[5].startswith("other_h.half_he-")
    assert initlab.load(mine / "out")["init"].tolist() == sorted(frame["init"], key=lambda n: n.replace(":", "."))
    # The same functions do the same work, and another one other work.
    prints = dict(zip(zip(frame["init"], frame["act"], strict=True), frame["fingerprint"], strict=True))
    assert prints["mine_h:half_he", "tanh"] == prints["other_h:half_he", "tanh"] != prints["mine_h:he", "tanh"]


def test_an_alias_is_no_alias_in_a_module(mine):
    configs, _ = compose_grid(["init=he,mine_h:he"])
    assert [config.init.get("target", config.init["name"]) for config in configs] == ["he_normal", "mine_h:he"]


def test_the_same_sweep_again_has_nothing_left_to_do(mine):
    first = sweep(mine / "out", init=["he_normal", "mine_h:half_he"])
    before = {path: (Path(path) / "summary.json").stat().st_mtime_ns for path in first["path"]}
    again = sweep(mine / "out", init=["he_normal", "mine_h:half_he", "mine_h:he"])
    assert {path: (Path(path) / "summary.json").stat().st_mtime_ns for path in before} == before
    assert len(again) == 3


def test_sub_grids_experiments_exclusions_and_functions_themselves(mine):
    grids = "sweep.grids=[{init: mine_h:half_he, act: mine_h:phi}, {init: 'he,other_h:half_he', seed: [0, 1]}]"
    configs, _ = compose_grid([grids, "sweep.exclude=[{init: other_h:half_he, seed: 1}]"])
    assert len(configs) == 5
    assert len(select_cells(configs)) == 4
    configs, _ = compose_grid(["init=he,mine_h:he,other_h:he", "sweep.exclude=[{init: custom}]"])
    assert len(select_cells(configs)) == 1
    sys.path.insert(0, str(mine))
    try:
        import mine_h
    finally:
        sys.path.remove(str(mine))
    frame = sweep(mine / "out", init=["he_normal", mine_h.half_he], act=mine_h.phi)
    assert frame["init"].tolist() == ["he_normal", "mine_h:half_he"]
    with pytest.raises(UserError, match=r"cannot be imported by a name.*def.* at the top of a module.*init=.*fills"):
        sweep(mine / "out", init=lambda weight: weight)


def test_globs_show_no_own_option_and_a_mixture_says_how(mine):
    compose_grid(["init=mine_h:he"])
    configs, _ = compose_grid(["init=glob(he*)"])
    assert [config.init["name"] for config in configs] == ["he_normal", "he_uniform"]
    with pytest.raises(UserError) as refused:
        compose_grid(["init=glob(he*),mine_h:he"])
    assert str(refused.value).endswith("write 'init=he_normal,he_uniform,mine_h:he'.")


def test_the_command_line_takes_them_in_an_experiment_file(mine):
    (mine / "conf" / "experiment").mkdir(parents=True)
    (mine / "conf" / "experiment" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /act: mine_h:phi\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {init: 'he_normal,mine_h:half_he'}}}\n",
        encoding="utf-8",
    )
    words = [*(f"{key}={value}" for key, value in TINY.items()), "-m", "experiment=ours", "sweep.name=s"]
    program = "from initlab.cli.main import main; main()"
    command = [sys.executable, "-c", program, "train", "--config-dir", "conf", *words]
    done = subprocess.run(command, cwd=mine, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    frame = initlab.load(mine / "outputs" / "sweeps" / "s")
    assert sorted(zip(frame["init"], frame["act"], strict=True)) == [
        ("he_normal", "mine_h:phi"),
        ("mine_h:half_he", "mine_h:phi"),
    ]
    assert "mine_h:half_he" in done.stdout
    config = json.loads((Path(frame["path"][0]) / "summary.json").read_text(encoding="utf-8"))["config"]
    assert config["act"]["target"] == "mine_h:phi"


def test_python_takes_the_same_words(mine):
    rows = initlab.initialize_(torch.nn.Linear(4, 4), "mine_h:he")
    assert rows.scheme.tolist()[0] == "mine_h:he"
    assert (
        initlab.models.build("mine_h:net", width=3, act="mine_h:phi", input_shape=(8,), classes=2)[1].out_features == 3
    )
    assert load_dataset("mine_h:blobs").classes == 2


# --- what is missing prints what is wanted


@pytest.mark.parametrize("group", CONTRACTS)
@pytest.mark.parametrize("target", [None, "mine_h:nothing", "no_such_module:f", "math:pi"])
def test_a_target_that_is_missing_prints_the_signature(mine, group, target):
    from initlab.experiment import config_refusal

    chosen = f"{group}=custom" if target is None else f"{group}={target}"
    with pytest.raises(UserError) as refused:
        config_refusal(compose_config([chosen, *(f"{k}={v}" for k, v in TINY.items() if not k.startswith(group))]))
    assert CONTRACTS[group] in str(refused.value)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("init=mine_h.py:he", r"names a file: a module is named without \.py, with dots for slashes: mine_h:he"),
        ("act=mine_h:total", r"returned a Tensor of shape \[\] for a tensor \[2, 3\]"),
        ("act=mine_h:raises", r"failed on a small tensor \(KeyError: 'mine' in mine_h.py, line 12\)"),
        ("model=mine_h:no_net", "returned an int. For model=, function"),
        ("init=mine_h:net", "disagree about 'act'|disagree about"),
    ],
)
def test_what_is_no_such_function_is_refused(mine, chosen, says):
    from initlab.experiment import run

    own = {k: v for k, v in TINY.items() if k != chosen.partition("=")[0]}
    with pytest.raises(UserError, match=says):
        run([compose_config([chosen, *(f"{k}={v}" for k, v in own.items())])], [mine / "run"])


def test_help_and_readme_say_what_own_functions_are():
    from initlab.config.own_options import own_options_text

    text = " ".join(own_options_text().split())
    assert all(contract in text for contract in CONTRACTS.values())
    assert "${initlab.own:}" in (Path(initlab.__file__).parents[2] / "conf/hydra/help/initlab.yaml").read_text("utf-8")


# --- torch Datasets


@pytest.mark.parametrize("name", ["points", "tensors", "subsets", "Points", "numbered"])
def test_torch_datasets_are_data_sets(mine, name):
    wanted_, found = load_dataset("mine_h:blobs", validation=0), load_dataset(f"mine_h:{name}", validation=0)
    for part in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(wanted_, part), getattr(found, part)), part
    assert found.classes == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one", "must return two parts, training and test; it returned a Points"),
        ("loaders", "returned a DataLoader as its training part: return its data set, loader.dataset"),
        ("streams", "returned a training Dataset without a length"),
        ("broken", r"reading its training Dataset failed \(RuntimeError: a bug of mine in mine_h.py, line \d+\)"),
        ("names", r"a dict as sample 0 of its training Dataset: give a pair \(x, y\)"),
    ],
)
def test_what_is_no_pair_of_datasets_is_refused(mine, name, says):
    with pytest.raises(UserError, match=says):
        load_dataset(f"mine_h:{name}")


# --- lists in grids


def list_keys(cls: Any = Config, prefix: str = "") -> set[str]:
    """Keys of the schema that may hold a list."""
    found: set[str] = set()
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            found |= list_keys(kind, f"{prefix}{name}.")
        elif "list" in str(kind) or kind is Any:
            found.add(prefix + name)
    return found


def test_every_key_whose_value_may_be_a_list_is_known_to_grids():
    # `threads` and `race` are of any type to let words through; a list is no value of theirs.
    assert list_keys() - {"threads", "race"} == {*LIST_KEYS, "width"}


GRID = "sweep.grids=[{{width: {}, depth: {}}}]"


@pytest.mark.parametrize(
    ("width", "depth", "count"),
    [("[[16, 8]]", 2, 1), ("choice(16,8)", 2, 2), ("[16, 8]", 3, 2), ("[16]", 1, 1), ("[[16, 8], 4]", 2, 2)],
)
def test_lists_of_widths_that_can_mean_one_thing_only(width, depth, count):
    configs, _ = compose_grid([GRID.format(width, depth)])
    assert len(configs) == count


@pytest.mark.parametrize("more", [[], ["model=cnn"], ["seed=0,1"]])
def test_a_list_of_widths_that_can_mean_two_things_is_refused_with_both_spellings(more):
    says = r"width=\[16, 8\] may be one network of depth 2 or a network of each width: write \[\[16, 8\]\] .* 'choice\("
    for overrides in ([GRID.format("[16, 8]", "[3, 2]")], ["depth=2", "sweep.grids=[{width: [16, 8]}]"]):
        with pytest.raises(UserError, match=says):
            compose_grid([*overrides, *more])
    with pytest.raises(UserError, match=says):
        initlab.sweep(width=[16, 8], depth=2, dry_run=True, quiet=True)
    refuse_ambiguous_widths([16, 8], {"depth": 2, "model": "resnet"})  # takes one width only


def test_a_list_of_widths_in_an_exclusion():
    def kept(rule: str) -> int:
        configs, _ = compose_grid(["width=[16,8],16,8,4", "depth=2", f"sweep.exclude=[{rule}]"])
        return len(select_cells(configs))

    assert kept("{width: [[16,8]]}") == 3
    assert kept("{width: 16},{width: 8}") == 2
    with pytest.raises(UserError, match=r"may be one value or several: write \{width: \[\[16,8\]\]\}"):
        kept("{width: [16,8]}")


@pytest.mark.parametrize("key", ["sweep.grids: [{seed: 1}]", "sweep.name: x", "dry_run: true", "race: true"])
def test_what_concerns_the_whole_grid_stands_in_no_sub_grid(key):
    with pytest.raises(UserError, match=r"is of the whole grid: set it outside sweep\.grids"):
        compose_grid([f"sweep.grids=[{{init: zeros, {key}}}]"])


def test_a_list_of_options_is_no_option_in_a_sub_grid_either():
    with pytest.raises(UserError, match="several are written init=zeros,ones"):
        compose_grid(["sweep.grids=[{init: [[zeros, ones]]}]"])


def test_names_are_of_the_cell(mine):
    assert cell_name(compose_config(["init=mine_h:he"])) != cell_name(compose_config(["init=other_h:he"]))
