"""A network of an ensemble is the network alone: in float64 to rounding, in float32 bit for bit among ensembles.

The float64 reference is a loop of nn.Module and torch.optim written here; it shares nothing with `initlab.training`
but what DESIGN.md promises: the order of the batches and the key of every dropout mask.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.activations import ACTIVATIONS
from initlab.data import Dataset
from initlab.ensemble import Ensemble, make_stacked_part, stack, stacking
from initlab.ensemble.cpu.activations import tanh
from initlab.errors import Impossible
from initlab.initialize import fill_, fingerprint, stream
from initlab.models import Dropout, build
from initlab.models.plain import NORMS_1D
from initlab.schemes import SCHEMES
from initlab.training import OPTIMIZERS, Evaluation, Pause, Snapshot, State, Steps, Stopped, TrainingPlan, train

DATA_SEED = 3
FAMILIES = {
    "mlp": {"norm": "none"},
    "mlp, batch norm, dropout": {"norm": "batch", "dropout": 0.3},
    "resmlp, layer norm": {"norm": "layer", "branch": 0.5},
    "resmlp, batch norm, learned": {"norm": "batch", "branch": "learned", "shifts": True, "dropout": 0.2},
    "resmlp, learned": {"branch": "learned", "shifts": True},
    "cnn, batch norm": {"norm": "batch", "padding": "zeros"},
    "cnn, layer norm, dropout": {"norm": "layer", "dropout": 0.2},
    "resnet": {"branch": 0.7},
    "resnet, learned": {"norm": "none", "branch": "learned", "shifts": True},
}
DENSE = [name for name in FAMILIES if not name.startswith(("cnn", "resnet"))]
# The first steps of RMSprop are ten rates long: more is chaos.
RATES = {"sgd": 0.05, "adam": 0.01, "adamw": 0.01, "adagrad": 0.02, "rmsprop": 0.0005}
SIZES = (2, 3, 5, 8, 16, 17)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int = 60, classes: int = 5) -> Dataset:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(256, (count + 20, 1, 8, 8), dtype=torch.uint8, generator=draw)
    y = torch.randint(classes, (count + 20,), generator=draw)
    end = count + 9
    parts = (x[:count], y[:count], x[count:end], y[count:end], x[end:], y[end:])
    return Dataset("images", *parts, classes, (0.4,), (0.3,))


def curve(outputs: int = 1) -> Dataset:
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(80, 3, generator=draw)
    y = torch.sin(3 * x[:, :outputs])
    return Dataset("curve", x[:60], y[:60], x[60:69], y[60:69], x[69:], y[69:], None)


def network(
    data: Dataset,
    seed: int,
    family: str = "mlp",
    scheme: str = "glorot_normal",
    act: Any = "tanh",
    dtype: torch.dtype = torch.float32,
    **shape: Any,
) -> nn.Module:
    options = {"depth": 2, "width": 8, **FAMILIES.get(family, {}), **shape}
    module = build(family.split(",")[0], act=act, input_shape=data.input_shape, classes=data.outputs, **options).to(
        dtype
    )
    fill_(module, scheme, act=act, seed=seed, sigma_b=0.1)
    return module


def forced(networks: Sequence[nn.Module]) -> Ensemble:
    """One stack, where the engine might choose a loop."""
    return Ensemble([make_stacked_part(range(len(networks)), networks)])


def hypers(count: int, lr: float) -> tuple[dict[str, float], ...]:
    """Everything that may differ between members does."""
    options = ({}, {"weight_decay": 0.02}, {"clip_norm": 0.1}, {"lr": lr / 2, "weight_decay": 0.01, "clip_norm": 0.3})
    return tuple({"lr": lr, **options[k % 4]} for k in range(count))


def rows(events: Sequence[Any], member: int) -> dict[str, list]:
    columns: dict[str, list] = {"step": [], "loss": [], "grad_norm": [], "lr": [], "accuracy": []}
    for block in (event for event in events if isinstance(event, Steps)):
        for k, step in enumerate(block.steps):
            if member in block.members[k]:
                place = block.members[k].index(member)
                columns["step"].append(step)
                for name in ("loss", "grad_norm", "lr", "accuracy"):
                    if getattr(block, name) is not None:
                        columns[name].append(getattr(block, name)[k][place])
    return columns


def evaluations(events: Sequence[Any], member: int) -> list[dict[str, float]]:
    found = [event.values for event in events if isinstance(event, Evaluation)]
    return [{name: values[member] for name, values in one.items() if member in values} for one in found]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(), value.nan_to_num()), name


# --- the reference loop -----------------------------------------------------------------------------------------------


def torch_optimizer(name: str, module: nn.Module, hyper: dict[str, float]) -> torch.optim.Optimizer:
    chosen = {key: value for key, value in hyper.items() if key != "clip_norm"}
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), momentum=0.9, **chosen)
    kinds = {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "rmsprop": "RMSprop"}
    return getattr(torch.optim, kinds[name])(module.parameters(), **{"weight_decay": 0.0, **chosen})


def reference_losses(module: nn.Module, data: Dataset, plan: TrainingPlan, member: int) -> list[float]:
    hyper = dict(plan.hyper[member])
    optimizer = torch_optimizer(plan.optimizer, module, hyper)
    dropouts = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    per_epoch = len(data.train_x) // plan.batch_size
    losses = []
    for step in range(plan.steps):
        epoch, k = divmod(step, per_epoch)
        order = np.random.default_rng((DATA_SEED, epoch)).permutation(len(data.train_x))
        index = order[k * plan.batch_size : (k + 1) * plan.batch_size]
        for place, layer in enumerate(dropouts):
            layer.generator = stream(DATA_SEED, f"dropout/{step}/{place}")
        x, y = data.train_x[index], data.train_y[index]
        out = module((x.double() / 255 - 0.4) / 0.3 if x.dtype == torch.uint8 else x.double())
        loss = F.mse_loss(out, y.double()) if data.classes is None else F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        if "clip_norm" in hyper:
            nn.utils.clip_grad_norm_(module.parameters(), hyper["clip_norm"])
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equals_alone(networks: list[nn.Module], data: Dataset, optimizer: str, batch: int = 12) -> None:
    """Three members, 50 steps in float64, against each trained alone by torch."""
    lone = [copy.deepcopy(module) for module in networks]
    hyper = hypers(len(networks), RATES[optimizer])
    plan = TrainingPlan(50, batch, optimizer, hyper, data_seed=DATA_SEED, dtype=torch.float64)
    events = list(train(forced(networks), data, plan))
    for member, module in enumerate(lone):
        expected = reference_losses(module, data, plan, member)
        assert rows(events, member)["loss"] == pytest.approx(expected, rel=1e-7), member
        for name, value in module.state_dict().items():
            # A bias before batch norm has a gradient of pure rounding, which Adagrad makes steps of.
            torch.testing.assert_close(networks[member].state_dict()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_and_optimizer_equals_torch_alone(family, optimizer):
    data = images()
    networks = [network(data, seed, family, dtype=torch.float64) for seed in range(3)]
    assert_equals_alone(networks, data, optimizer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_equals_torch_alone(scheme):
    data = images()
    family, shape = ("cnn, layer norm, dropout", {}) if SCHEMES[scheme].dense_counterpart else ("mlp", {"width": 64})
    try:
        networks = [network(data, seed, family, scheme, dtype=torch.float64, **shape) for seed in range(3)]
    except Impossible as reason:
        pytest.skip(str(reason))
    assert_equals_alone(networks, data, "sgd")


@pytest.mark.parametrize("family", ["mlp", "cnn, batch norm"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_equals_torch_alone(act, family):
    data = images()
    # sin(30 x) is chaotic: rounding grows tenfold a step.
    spec = ("sin", {"omega": 2.0}) if act == "sin" else act
    networks = [network(data, seed, family, act=spec, dtype=torch.float64) for seed in range(2)]
    assert_equals_alone(networks, data, "adam")


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_equals_torch_alone(outputs):
    data = curve(outputs)
    networks = [network(data, seed, "resmlp, layer norm", dtype=torch.float64) for seed in range(3)]
    assert_equals_alone(networks, data, "sgd")


@pytest.mark.parametrize("family", FAMILIES)
def test_step_0_is_the_lone_networks_bit_for_bit(family):
    data = images()
    networks = [network(data, seed, family) for seed in range(3)]
    lone = [(fingerprint(module), tensors(module)) for module in networks]
    part = forced(networks).parts[0]
    for member, (print_, before) in enumerate(lone):
        assert fingerprint(networks[member]) == print_
        assert_same_bits(tensors(networks[member]), before)
        for name, rows_ in part.module.state_dict().items():
            assert torch.equal(rows_[member], before[name]), name


# --- float32: bits that depend on nothing but the member --------------------------------------------------------------


def trained(
    networks: list[nn.Module],
    data: Dataset,
    plan: TrainingPlan,
    hyper: Sequence[dict[str, float]],
    state: State | None = None,
) -> list:
    """Train as the engine chooses."""
    return list(train(stack(networks), data, replace(plan, hyper=tuple(hyper)), state))


def assert_bits_do_not_depend(
    make: Any, data: Dataset, plan: TrainingPlan, sizes: Sequence[int] = SIZES, largest: int = 40, lr: float = 0.05
) -> None:
    """Members of the largest ensemble have the same trajectory in smaller ones, among others and elsewhere."""
    hyper = hypers(largest, lr)
    whole = [make(seed) for seed in range(largest)]
    expected = trained(whole, data, plan, hyper)
    for size in (*sizes, -2):
        chosen = list(np.random.default_rng(abs(size)).permutation(largest)[: abs(size)])
        networks = [make(seed) for seed in chosen]
        with pytest.MonkeyPatch.context() as patch:
            # At last, two networks that are a part each: what is left of a stack when all but one have stopped.
            patch.setattr(stacking, "PART_MAX_MEMBERS", 1 if size < 0 else stacking.PART_MAX_MEMBERS)
            events = trained(networks, data, plan, [hyper[seed] for seed in chosen])
        for place, seed in enumerate(chosen):
            assert rows(events, place) == rows(expected, seed), (size, seed)
            assert evaluations(events, place) == evaluations(expected, seed), (size, seed)
            assert_same_bits(tensors(networks[place]), tensors(whole[seed]))


SHAPES = {
    "whole vectors": {"width": 32, "batch": 16},
    "odd": {"width": 10, "batch": 7},
    "one class too few for a vector": {"width": 37, "batch": 33},
    "one unit": {"width": 1, "batch": 8},
    "one sample": {"width": 17, "batch": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_ensemble(shape):
    data, chosen = images(), dict(SHAPES[shape])
    plan = TrainingPlan(12, chosen.pop("batch"), "sgd", (), eval_every=5, data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed), **chosen), data, plan)


@pytest.mark.parametrize("width", [128, 256])
def test_bits_of_wide_networks_do_not_depend_on_the_ensemble(width):
    data = images(300, 10)
    plan = TrainingPlan(3, 128, "sgd", (), data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed), width=width), data, plan, (2, 3, 5), 9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", DENSE)
def test_bits_of_every_optimizer_do_not_depend_on_the_ensemble(family, optimizer):
    data = images()
    plan = TrainingPlan(8, 12, optimizer, (), eval_every=5, data_seed=DATA_SEED)
    make = lambda seed: network(data, int(seed), family, width=12)  # noqa: E731
    assert_bits_do_not_depend(make, data, plan, (2, 3, 5), 9, RATES[optimizer])


@pytest.mark.parametrize("width", [32, 9])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bits_of_every_activation_do_not_depend_on_the_ensemble(act, width):
    data = images()
    plan = TrainingPlan(5, 16 if width == 32 else 7, "sgd", (), eval_every=5, data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed), act=act, width=width), data, plan, (2, 3, 5), 9)


@pytest.mark.parametrize("outputs", [1, 2])
def test_bits_of_regression_do_not_depend_on_the_ensemble(outputs):
    data, plan = curve(outputs), TrainingPlan(8, 12, "sgd", (), eval_every=5, data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed)), data, plan, (2, 3, 5), 9)


@pytest.mark.parametrize("family", ["cnn, batch norm", "resnet"])
def test_bits_of_convolutions_do_not_depend_on_the_ensemble(family):
    data, plan = images(), TrainingPlan(4, 12, "sgd", (), data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed), family), data, plan, (2, 3), 5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("threads", "largest"), [(2, 64), (2, 1), (3, 2), (1, 3)])
def test_bits_do_not_depend_on_threads_and_parts(family, threads, largest, monkeypatch):
    """Neither how many cores there are nor how the ensemble is cut into parts."""
    data, plan, hyper = images(), TrainingPlan(6, 12, "sgd", (), records=(3,), data_seed=DATA_SEED), hypers(7, 0.05)
    expected_networks = [network(data, seed, family) for seed in range(7)]
    expected = trained(expected_networks, data, plan, hyper)
    monkeypatch.setattr(stacking, "PART_MAX_MEMBERS", largest)
    torch.set_num_threads(threads)
    networks = [network(data, seed, family) for seed in range(7)]
    ensemble = stack(networks)
    if family in DENSE:
        assert max(len(part.members) for part in ensemble.parts) <= largest
        assert len(ensemble.parts) >= min(threads, 7)
    events = list(train(ensemble, data, replace(plan, hyper=hyper)))
    for member in range(7):
        assert rows(events, member) == rows(expected, member)
        assert_same_bits(tensors(networks[member]), tensors(expected_networks[member]))
    (found,), (wanted,) = ([e for e in run if isinstance(e, Snapshot)] for run in (events, expected))
    for member in range(7):
        # Statistics are sums over a whole part, in float64.
        assert [row[:4] for row in found.rows[member]] == [row[:4] for row in wanted.rows[member]]
        values = [[row[4] for row in one.rows[member]] for one in (found, wanted)]
        assert values[0] == pytest.approx(values[1], rel=1e-9, abs=1e-12)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("bad", [{"lr": 1e30}, {"lr": 1e30, "clip_norm": 1.0}, {"lr": 1e20, "weight_decay": 1e20}])
def test_a_diverging_neighbor_changes_no_bit(bad):
    data, plan, hyper = images(), TrainingPlan(20, 12, "sgd", (), eval_every=7, data_seed=DATA_SEED), hypers(4, 0.05)
    family = "mlp, batch norm, dropout"
    expected_networks = [network(data, seed, family) for seed in range(4)]
    expected = trained(expected_networks, data, plan, hyper)
    networks = [network(data, seed, family, act="relu" if seed > 3 else "tanh") for seed in range(4)]
    worst = [network(data, seed, family, scheme="he_normal") for seed in (7, 8)]
    mixed = [worst[0], networks[0], networks[1], worst[1], networks[2], networks[3]]
    events = trained(mixed, data, plan, [bad, hyper[0], hyper[1], {"lr": 1e38}, hyper[2], hyper[3]])
    for member, place in enumerate((1, 2, 4, 5)):
        assert rows(events, place) == rows(expected, member)
        assert evaluations(events, place) == evaluations(expected, member)
        assert_same_bits(tensors(networks[member]), tensors(expected_networks[member]))


# --- members that stop ------------------------------------------------------------------------------------------------


def linear(data: Dataset, seed: int) -> nn.Module:
    return network(data, seed, act="linear", depth=3, width=12)


def test_stopped_members_leave_one_by_one_and_the_last_goes_on_unchanged(monkeypatch):
    """Deep linear networks under ever larger rates diverge at different steps, until one is left of its stack."""
    monkeypatch.setattr(stacking, "PART_MAX_MEMBERS", 6)
    data, plan = images(), TrainingPlan(200, 12, "sgd", (), data_seed=DATA_SEED)
    calm = {"lr": 0.01}
    hyper = [calm, {"lr": 1.0}, {"lr": 3.0}, {"lr": 10.0}, {"lr": 100.0}, {"lr": 1e4}]
    networks = [linear(data, seed) for seed in range(6)]
    events = trained(networks, data, plan, hyper)
    stops = [event for event in events if isinstance(event, Stopped)]
    assert sorted(stop.member for stop in stops) == [1, 2, 3, 4, 5]
    assert len({stop.step for stop in stops}) >= 4, "they should stop at different steps"
    assert stops == sorted(stops, key=lambda stop: (stop.step, stop.member))
    for stop in stops:
        last = rows(events, stop.member)
        assert last["step"] == list(range(stop.step + 1))
        assert not math.isfinite(last["loss"][-1])
        assert all(map(math.isfinite, last["loss"][:-1]))
    pair = [linear(data, 0), linear(data, 9)]
    expected = trained(pair, data, plan, [calm, calm])
    assert rows(events, 0) == rows(expected, 0)
    assert_same_bits(tensors(networks[0]), tensors(pair[0]))


def test_a_member_that_left_takes_no_memory_of_the_stack():
    data = images()
    networks = [network(data, seed, "mlp, batch norm, dropout") for seed in range(4)]
    before = [tensors(module) for module in networks]
    ensemble = stack(networks)
    (part,) = ensemble.parts
    storages = {p.untyped_storage().data_ptr() for p in part.parameters}
    ensemble.drop([2, 0])
    assert part.members == [1, 3]
    assert all(len(p) == 2 for p in part.parameters)
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in part.parameters)
    for member, module in enumerate(networks):
        assert_same_bits(tensors(module), before[member])
    for name, rows_ in part.module.state_dict().items():
        assert torch.equal(rows_[0], before[1][name])
        assert torch.equal(rows_[1], before[3][name])
    kept = {tensor.untyped_storage().data_ptr() for tensor in part.module.state_dict().values()}
    for member, shares in ((0, False), (1, True), (2, False), (3, True)):
        own = {tensor.untyped_storage().data_ptr() for tensor in networks[member].state_dict().values()}
        assert (own <= kept) is shares
    ensemble.drop([1, 3])
    assert ensemble.parts == []
    assert ensemble.size == 4


def test_a_member_at_its_target_keeps_the_weights_it_had(monkeypatch):
    monkeypatch.setattr(stacking, "PART_MAX_MEMBERS", 8)
    data, hyper = images(), hypers(3, 0.1)
    plan = TrainingPlan(60, 12, "sgd", (), data_seed=DATA_SEED, target_loss=1.2)
    networks = [network(data, seed, width=32) for seed in range(3)]
    events = trained(networks, data, plan, hyper)
    stops = [event for event in events if isinstance(event, Stopped)]
    assert stops
    assert {stop.reason for stop in stops} == {"target"}
    assert len({stop.step for stop in stops}) > 1, "they should stop at different steps"
    for stop in stops:
        again = [network(data, seed, width=32) for seed in range(3)]
        short = trained(again, data, replace(plan, steps=stop.updates, target_loss=None), hyper)
        assert rows(events, stop.member)["loss"] == rows(short, stop.member)["loss"]
        assert_same_bits(tensors(networks[stop.member]), tensors(again[stop.member]))


@pytest.mark.parametrize("at", [1, 6, 13])
def test_going_on_in_other_parts_and_on_other_threads(at, monkeypatch):
    """A checkpoint holds networks and slots by member: how they were put together is forgotten."""
    data, family = images(), "mlp, batch norm, dropout"
    plan = TrainingPlan(20, 12, "adam", (*hypers(5, 0.01), {"lr": 1e38}), data_seed=DATA_SEED)
    whole = [network(data, seed, family) for seed in range(6)]
    expected = list(train(stack(whole), data, plan))
    monkeypatch.setattr("initlab.training.loop.YIELD_EVERY", -1.0)
    first, state, before = [network(data, seed, family) for seed in range(6)], State(), []
    for event in train(stack(first), data, plan, state):
        if isinstance(event, Pause) and event.step == at:
            break
        before.append(event)
    kept, state = [tensors(module) for module in first], copy.deepcopy(state)
    monkeypatch.setattr(stacking, "PART_MAX_MEMBERS", 2)
    torch.set_num_threads(2)
    second = [network(data, seed + 50, family) for seed in range(6)]
    for module, weights in zip(second, kept, strict=True):
        module.load_state_dict(weights)
    events = before + list(train(stack(second), data, plan, state))
    for member in range(6):
        assert repr(rows(events, member)) == repr(rows(expected, member))
        assert_same_bits(tensors(second[member]), tensors(whole[member]))


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_measured_as_in_a_loop(family):
    """Rows, histograms and evaluations of a stack are those of the plain networks."""
    data = images()
    plan = TrainingPlan(6, 12, "sgd", hypers(3, 0.05), records=(0, 4, 6), data_seed=DATA_SEED, dtype=torch.float64)
    plan = replace(plan, saturation=(-1.0, 1.0))
    pair = []
    for put in (forced, lambda nets: Ensemble([stacking.make_plain_part(k, net) for k, net in enumerate(nets)])):
        networks = [network(data, seed, family, dtype=torch.float64) for seed in range(3)]
        pair.append(list(train(put(networks), data, plan)))
    found, expected = ([e for e in events if isinstance(e, Snapshot)] for events in pair)
    assert [snapshot.step for snapshot in found] == [0, 4, 6]
    for one, other in zip(found, expected, strict=True):
        for member in range(3):
            keys = [(*row[:4], row[5]) for row in one.rows[member]]
            assert sorted(keys) == sorted((*row[:4], row[5]) for row in other.rows[member])
            values = {key: row[4] for key, row in zip(keys, one.rows[member], strict=True)}
            wanted = {(*row[:4], row[5]): row[4] for row in other.rows[member]}
            assert values == pytest.approx(wanted, rel=1e-7, abs=1e-12)
            assert one.histograms[member].keys() == other.histograms[member].keys()
            for key, histogram in one.histograms[member].items():
                assert histogram.num == other.histograms[member][key].num
    for member in range(3):
        for one, other in zip(evaluations(pair[0], member), evaluations(pair[1], member), strict=True):
            assert one == pytest.approx(other, rel=1e-9)


# --- what is stacked --------------------------------------------------------------------------------------------------


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *layers)


def twice() -> nn.Module:
    layer = nn.Linear(64, 64)
    return chain(layer, nn.Tanh(), layer)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


NOT_STACKED = {
    "a module from elsewhere": lambda: [Own(), Own()],
    "a layer without a counterpart": lambda: [chain(nn.Linear(64, 5), nn.Softmax(1)) for _ in range(2)],
    "torch's dropout": lambda: [chain(nn.Dropout(), nn.Linear(64, 5)) for _ in range(2)],
    "a layer used twice": lambda: [twice(), twice()],
    "different slopes": lambda: [chain(nn.Linear(64, 5), nn.LeakyReLU(a)) for a in (0.1, 0.2)],
    "different widths": lambda: [chain(nn.Linear(64, w), nn.Linear(w, 5)) for w in (4, 6)],
    "a norm without parameters": lambda: [chain(nn.Linear(64, 5), nn.BatchNorm1d(5, affine=False)) for _ in range(2)],
    "convolutions on a CPU": lambda: [network(images(), seed, "resnet") for seed in range(2)],
    "a lone network": lambda: [network(images(), 0)],
}


@pytest.mark.parametrize("case", NOT_STACKED)
def test_what_cannot_be_stacked_trains_in_a_loop(case):
    data, networks = images(), NOT_STACKED[case]()
    ensemble = stack(networks)
    assert [part.stacked for part in ensemble.parts] == [False] * len(networks)
    plan = TrainingPlan(3, 12, "sgd", ({"lr": 0.1},) * len(networks))
    events = list(train(ensemble, data, plan))
    assert rows(events, len(networks) - 1)["step"] == [0, 1, 2]


def test_a_users_own_chain_of_known_layers_is_stacked():
    data = images()
    torch.manual_seed(0)
    networks = [chain(nn.Linear(64, 6), nn.LayerNorm(6), nn.PReLU(6), nn.Linear(6, 5)).double() for _ in range(3)]
    assert all(part.stacked for part in stack([copy.deepcopy(net) for net in networks]).parts)
    assert_equals_alone(networks, data, "adam")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("norm", NORMS_1D)
@pytest.mark.parametrize(
    "own",
    [
        {"family": "mlp"},
        {"family": "mlp", "width": [9, 6]},
        *({"family": "resmlp", "branch": b} for b in (1.0, 0.5, "inverse_sqrt_depth", "inverse_depth", "learned")),
        *({"family": "resmlp", "branch": branch, "shifts": True} for branch in (1.0, "learned")),
    ],
    ids=str,
)
def test_every_option_of_the_dense_models_is_stacked(own, norm, dropout):
    networks = [network(images(), seed, **{"norm": norm, "dropout": dropout, **own}) for seed in range(2)]
    assert all(part.stacked for part in stack(networks).parts)


def test_frozen_parameters_stay():
    data = images()
    networks = [network(data, seed) for seed in range(2)]
    for net in networks:
        net.hidden[0].weight.requires_grad_(False)
        net.hidden[1].bias.requires_grad_(False)
    before = [tensors(net) for net in networks]
    trained(networks, data, TrainingPlan(3, 12, "adam", ()), hypers(2, 0.1))
    for net, old in zip(networks, before, strict=True):
        frozen = {name for name, value in tensors(net).items() if torch.equal(value, old[name])}
        assert frozen == {"hidden.0.weight", "hidden.1.bias"}


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.drop = nn.Linear(64, 5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.drop(x.flatten(1)))


def test_masks_from_the_global_state_do_not_depend_on_threads():
    data, plan = images(), TrainingPlan(20, 12, "sgd", ({"lr": 0.1},) * 6)
    outcomes = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = [Noisy() for _ in range(6)]
        list(train(stack(networks), data, plan))
        outcomes.append([tensors(net) for net in networks])
    for one, other in zip(*outcomes, strict=True):
        assert_same_bits(one, other)


def test_an_exception_in_one_thread_is_raised():
    class Broken(Own):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("broken")

    torch.set_num_threads(2)
    with pytest.raises(ArithmeticError, match="broken"):
        list(train(stack([Own(), Broken(), Own()]), images(), TrainingPlan(3, 12, "sgd", ({"lr": 0.1},) * 3)))


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 0.3, 1.0, 8.0, 100.0])
def test_quick_tanh_is_tanh(scale):
    x = torch.randn(3, 37, 11, generator=torch.Generator().manual_seed(0)).mul_(scale).requires_grad_()
    exact = torch.tanh(x.detach().double())
    found = tanh(x)
    assert (found.double() - exact).abs().div(exact.abs()).max() < 2e-7
    delta = torch.randn(3, 37, 11, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(found, x, delta)
    assert torch.equal(slope, torch.ops.aten.tanh_backward(delta, found.detach()))
    alone = torch.stack([tanh(h) for h in x])
    assert torch.equal(alone, found)
    assert tanh(x.double()).dtype == torch.float64


def test_quick_tanh_of_what_is_no_ordinary_number():
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    assert tanh(x).tolist()[1:] == [1.0, -1.0, 0.0, 0.0]
    assert math.isnan(tanh(x)[0])
    assert math.copysign(1, tanh(x)[4]) == -1
