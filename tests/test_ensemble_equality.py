"""A network of an ensemble beside the same job alone: step 0 for every scheme and model, and float32's rounding.

The yardstick of rounding is a loop of nn.Module and torch.optim written here. Two such loops that see the samples of
each batch in different orders differ by the order of their sums alone; a network of an ensemble may differ from one of
them by no more than four times as much. Sums over inputs and units keep their order there. Where rounding in those is
what grows, the units are numbered otherwise, too.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from initlab.config.compose import compose_config
from initlab.config.option_files import option_names
from initlab.data import Dataset
from initlab.ensemble import Part, stack
from initlab.ensemble.cpu import openblas, sequential
from initlab.errors import UserError
from initlab.experiment import config_refusal, run
from initlab.initialize import fill_
from initlab.models import build
from initlab.sweep.cells import group_key
from initlab.training import OPTIMIZERS, Steps, TrainingPlan, train

DATA_SEED = 3
QUICK = ["depth=2", "width=8", "train.steps=1", "train.batch_size=10", "data.train_size=200", "data.test_size=20"]
QUICK += ["log.histograms=2", "log.tensorboard=false"]
DENSE = ["data=gaussian", "model=mlp"]
SPATIAL = ["model=cnn", "data=fashion_mini", "log.eval_every=100"]
MODELS = {
    "mlp": DENSE,
    "mlp, widths, layer norm": [*DENSE, "width=[8,6]", "model.norm=layer"],
    "mlp, batch norm, dropout": [*DENSE, "model.norm=batch", "model.dropout=0.2"],
    "resmlp": ["data=gaussian", "model=resmlp"],
    "resmlp, learned": ["data=gaussian", "model=resmlp", "model.branch=learned", "model.shifts=true"],
    "cnn": SPATIAL,
    "resnet": ["model=resnet", "data=fashion_mini", "width=4", "depth=1", "log.eval_every=100"],
    "torchvision": ["model=torchvision", "model.size=32", "model.arch=mobilenet_v3_small", "data=fashion_mini"],
}
FEW = ("he_normal", "orthogonal", "torch_default", "zeros", "dirac")


# --- step 0


def configuration(model: str, *others: str):
    own = MODELS[model]
    keys = {override.partition("=")[0] for override in own}
    image = "data=fashion_mini" in own
    base = [
        override
        for override in QUICK
        if (key := override.partition("=")[0]) not in keys
        and not (image and key.endswith("_size") and key.startswith("data."))
        and not (model == "torchvision" and key in ("depth", "width"))
    ]
    return compose_config([*own, *base, *others])


def possible(model: str, names) -> list:
    found = []
    for name in names:
        try:
            config = configuration(model, f"init={name}")
            reason = config_refusal(config)
        except UserError:
            continue
        if reason is None:
            found.append(config)
    return found


def at_step_0(directory: Path) -> tuple:
    parameters = pd.read_csv(directory / "parameters.csv")
    layers = pd.read_csv(directory / "layers.csv")
    predicted = layers[(layers["source"] == "predicted") & (layers["step"] == 0)]
    # The first is of what the initializer gave, the second of what the ensemble has.
    whole = json.loads((directory / "summary.json").read_text())["fingerprint"]
    return parameters.to_csv(), whole, predicted.to_csv()


def assert_step_0_is_that_of_the_job_alone(configs, place: Path) -> None:
    """Weights by their fingerprints, which are of the bits, and whatever was predicted of them."""
    together = [place / f"together-{k}" for k in range(len(configs))]
    assert {one["status"] for one in run(configs, together)} <= {"completed", "diverged"}
    for k, config in enumerate(configs):
        alone = place / f"alone-{k}"
        run([config], [alone])
        assert at_step_0(together[k]) == at_step_0(alone), config.init


def schemes() -> list[str]:
    return [name for name in option_names("init") if name != "custom"]


@pytest.mark.parametrize("model", [m for m in MODELS if m not in ("torchvision", "resnet")])
def test_step_0_of_a_few_schemes_is_that_of_the_job_alone(tmp_path, model):
    configs = possible(model, FEW)
    assert len(configs) >= 4
    assert_step_0_is_that_of_the_job_alone(configs, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", MODELS)
def test_step_0_of_every_scheme_is_that_of_the_job_alone(tmp_path, model):
    configs = possible(model, schemes() if model != "torchvision" else FEW)
    assert len(configs) >= (20 if model != "torchvision" else 2)
    alike: dict[str, list] = {}
    for config in configs:  # some schemes change the architecture: they train with their like
        alike.setdefault(group_key(config), []).append(config)
    for number, group in enumerate(alike.values()):
        assert_step_0_is_that_of_the_job_alone(group, tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [m for m in MODELS if m != "torchvision"])
def test_step_0_does_not_depend_on_the_optimizer(tmp_path, model, optimizer):
    configs = [configuration(model, f"optim={optimizer}", "init=he_normal", f"seed={seed}") for seed in range(3)]
    assert_step_0_is_that_of_the_job_alone(configs, tmp_path)


@pytest.mark.parametrize("init", ["rezero", "skipinit", "fixup"])
def test_schemes_with_learned_branches_train_stacked_and_as_alone(tmp_path, init, monkeypatch):
    """What such a scheme makes of model and rates included: in float64, 50 steps of the cell's own run."""
    sizes = []
    monkeypatch.setattr(Part, "__post_init__", noting(Part.__post_init__, sizes))
    long = ("train.steps=50", "precision=fp64", "optim.lr=0.03")
    configs = [configuration("resmlp", f"init={init}", f"seed={seed}", *long) for seed in range(3)]
    together = [tmp_path / f"together-{k}" for k in range(3)]
    run(configs, together)
    assert sum(members for members, stacked in sizes if stacked) == 3
    for k, config in enumerate(configs):
        alone = tmp_path / f"alone-{k}"
        run([config], [alone])
        found, expected = (pd.read_csv(place / "metrics.csv")["loss"][:50] for place in (together[k], alone))
        assert found.iloc[-5:].mean() < found.iloc[0]
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        assert at_step_0(together[k]) == at_step_0(alone)


def noting(begin: Callable[[Part], None], sizes: list) -> Callable[[Part], None]:
    """Return a part's __post_init__ that notes how many members it has, and whether they are stacked."""

    def begins(part: Part) -> None:
        sizes.append((len(part.members), part.stacked))
        begin(part)

    return begins


# --- float32


def images(count: int = 240, classes: int = 5) -> Dataset:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=draw)
    y = torch.randint(classes, (count,), generator=draw)
    return Dataset("images", x, y, x[:9], y[:9], x[:9], y[:9], classes, (0.4,), (0.3,))


FAMILIES = {
    "mlp": {"width": 48},
    "mlp, one by one": {"width": 48},
    "mlp, by OpenBLAS": {"width": 48},
    "mlp, odd widths, layer norm": {"width": 37, "norm": "layer"},
    "mlp, layer norm": {"width": 48, "norm": "layer"},
    "mlp, batch norm": {"width": 48, "norm": "batch"},
    "resmlp, layer norm": {"width": 32, "norm": "layer"},
    "resmlp, learned": {"width": 32, "branch": "learned", "shifts": True},
    "cnn": {"width": 8},
    "resnet": {"width": 4},
}
# RMSprop turns a gradient near 0 round by its rounding, and a layer norm hands it on to all units.
BY_UNITS = ("mlp, layer norm",)
QUICK_FAMILIES = ("mlp", "mlp, one by one", "mlp, layer norm")
RATES = {"sgd": 0.02, "adam": 0.001, "adamw": 0.001, "adagrad": 0.01, "rmsprop": 0.0003}


def network(data: Dataset, family: str, seed: int) -> torch.nn.Module:
    shape = {"depth": 2 if "resnet" not in family else 1, "act": "tanh", "input_shape": data.input_shape}
    module = build(family.split(",")[0], classes=data.outputs, **shape, **FAMILIES[family])
    fill_(module, "glorot_normal", act="tanh", seed=seed)
    return module


def optimizer_of(name: str, module: torch.nn.Module) -> torch.optim.Optimizer:
    kind = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "rmsprop": "RMSprop"}[name]
    own = {"sgd": {"momentum": 0.9}, "adamw": {"weight_decay": 0.0}}.get(name, {})
    return getattr(torch.optim, kind)(module.parameters(), lr=RATES[name], **own)


def renumbered(module: torch.nn.Module, data: Dataset, seed: int) -> tuple[torch.nn.Module, Dataset]:
    """The same network with its pixels and units in another order, in which all of its sums have another order."""
    draw, orders = torch.Generator().manual_seed(seed), {}
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            for axis, size in enumerate(parameter.shape):
                if size != data.outputs:
                    order = orders.setdefault(size, torch.randperm(size, generator=draw))
                    parameter.copy_(parameter.index_select(axis, order))
    pixels = data.train_x.flatten(1)
    return module, replace(data, train_x=pixels[:, orders[pixels.shape[1]]].view_as(data.train_x))


def reference(module: torch.nn.Module, data: Dataset, steps: int, batch: int, optimizer: str, shuffle: int) -> list:
    """Losses of a plain loop in float32; another number of `shuffle` is another order of the samples of a batch."""
    update = optimizer_of(optimizer, module)
    mixed = np.random.default_rng(shuffle)
    per_epoch = len(data.train_x) // batch
    losses = []
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        index = np.random.default_rng((DATA_SEED, epoch)).permutation(len(data.train_x))[k * batch : (k + 1) * batch]
        index = mixed.permutation(index) if shuffle else index
        x = (data.train_x[index].float() / 255 - 0.4) / 0.3
        loss = F.cross_entropy(module(x), data.train_y[index])
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    return losses


def other(module: torch.nn.Module, data: Dataset, seed: int, family: str) -> tuple[torch.nn.Module, Dataset]:
    return renumbered(module, data, seed) if family in BY_UNITS else (copy.deepcopy(module), data)


@pytest.mark.parametrize("family", BY_UNITS)
def test_a_renumbered_network_is_the_same_function(family):
    data = images()
    module = network(data, family, 0).double()
    again, moved = renumbered(module, data, 1)
    assert not torch.equal(moved.train_x, data.train_x)
    assert not any(
        torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True) if a.dim() > 1
    )
    torch.testing.assert_close(again(moved.train_x.double()), module(data.train_x.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        *((family, "sgd") for family in FAMILIES),
        *((family, optimizer) for family in QUICK_FAMILIES for optimizer in OPTIMIZERS if optimizer != "sgd"),
        *(
            pytest.param(family, optimizer, marks=pytest.mark.slow)
            for family in FAMILIES
            for optimizer in OPTIMIZERS
            if optimizer != "sgd" and family not in QUICK_FAMILIES
        ),
    ],
)
def test_in_float32_a_network_differs_by_no_more_than_reordered_sums(family, optimizer, monkeypatch):
    """Root mean squares over 4 networks and 50 steps; the yardstick is the largest of 4 reordered loops' for each."""
    monkeypatch.setattr(sequential, "MIN_LAYER_FLOPS", 0 if "one by one" in family else sequential.MIN_LAYER_FLOPS)
    monkeypatch.setattr(openblas, "MIN_FLOPS", 0 if "OpenBLAS" in family else openblas.MIN_FLOPS)
    data, steps, batch = images(), 50, 24
    networks = [network(data, family, seed) for seed in range(4)]
    lone = [copy.deepcopy(module) for module in networks]
    plan = TrainingPlan(steps, batch, optimizer, ({"lr": RATES[optimizer]},) * 4, data_seed=DATA_SEED)
    blocks = [event for event in train(stack(networks), data, plan) if isinstance(event, Steps)]
    found = np.concatenate([np.array(block.loss) for block in blocks]).T
    plain = np.array([reference(copy.deepcopy(module), data, steps, batch, optimizer, 0) for module in lone])
    reordered = np.array(
        [[reference(*other(m, data, s, family), steps, batch, optimizer, s) for s in range(1, 5)] for m in lone]
    )
    assert found.shape == plain.shape
    ours = np.sqrt(np.square(found - plain).mean())
    yardstick = np.sqrt(np.square(reordered - plain[:, None]).mean(axis=(0, 2))).max()
    assert yardstick > 0
    assert ours <= 4 * yardstick
    # Steps as far apart as the last and the first are held to it, too: chaos must not hide what is wrong at the start.
    early = slice(0, 10)
    ours = np.sqrt(np.square(found - plain)[:, early].mean())
    assert ours <= 4 * np.sqrt(np.square(reordered - plain[:, None])[:, :, early].mean(axis=(0, 2))).max()


@pytest.mark.slow
def test_torchvisions_models_equal_torch_alone_in_float64():
    pytest.importorskip("torchvision")
    data = images(120)

    def make(seed: int) -> torch.nn.Module:
        module = build(
            "torchvision", depth=None, width=None, act=None, input_shape=data.input_shape, classes=5, size=32
        )
        fill_(module, "he_normal", act="relu", seed=seed)
        return module.double()

    networks = [make(seed) for seed in range(2)]
    lone = [copy.deepcopy(module) for module in networks]
    plan = TrainingPlan(50, 12, "sgd", ({"lr": 0.001},) * 2, data_seed=DATA_SEED, dtype=torch.float64)
    blocks = [event for event in train(stack(networks), data, plan) if isinstance(event, Steps)]
    found = np.concatenate([np.array(block.loss) for block in blocks]).T
    for member, module in enumerate(lone):
        update = torch.optim.SGD(module.parameters(), lr=0.001, momentum=0.9)
        for step in range(50):
            epoch, k = divmod(step, 10)
            index = np.random.default_rng((DATA_SEED, epoch)).permutation(120)[k * 12 : (k + 1) * 12]
            loss = F.cross_entropy(module((data.train_x[index].double() / 255 - 0.4) / 0.3), data.train_y[index])
            update.zero_grad()
            loss.backward()
            update.step()
            assert found[member][step] == pytest.approx(loss.item(), rel=1e-7), step
