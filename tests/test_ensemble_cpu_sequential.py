"""Members computed one after another are those computed layer by layer, and torch's own; here at any size."""

import copy
import gc
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_ensemble import (
    DATA_SEED,
    SHAPES,
    assert_bits_do_not_depend,
    assert_equals_alone,
    assert_same_bits,
    curve,
    evaluations,
    hypers,
    images,
    network,
    rows,
    tensors,
    trained,
)
from torch import nn
from torch.nn import functional as F

from initlab.ensemble import stack, stacking
from initlab.ensemble.cpu import activations, openblas, sequential
from initlab.ensemble.cpu.loss import MemberLoss
from initlab.initialize import fill_
from initlab.models import build
from initlab.training import OPTIMIZERS, Evaluation, State, Steps, Stopped, TrainingPlan, gradients, loop, train

ACTS = ("linear", "relu", "tanh", "gelu", "silu", "leaky_relu", "elu", "softplus")


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(sequential, "MIN_LAYER_FLOPS", 0)
    monkeypatch.setenv("INITLAB_FAST_CPU", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """The places of the members whose gradients were computed one after another."""
    calls: list[int] = []
    backward = sequential.SequentialMembers.backward

    def counted(self, x, k, *others):
        calls.append(k)
        return backward(self, x, k, *others)

    monkeypatch.setattr(sequential.SequentialMembers, "backward", counted)
    return calls


def use_libraries(monkeypatch, others: bool) -> None:
    """Compute products and tanh by torch, or by OpenBLAS and numpy."""
    monkeypatch.setattr(sequential, "openblas_is_faster", lambda: others)
    monkeypatch.setattr(activations, "amd_family", lambda: 26 if others else 0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_equals_torch_alone(optimizer, taken):
    data = images()
    assert_equals_alone([network(data, seed, dtype=torch.float64) for seed in range(4)], data, optimizer)
    assert sorted(taken) == sorted([0, 1, 2, 3] * 50)


@pytest.mark.parametrize("act", ACTS)
def test_every_activation_equals_torch_alone(act, taken):
    data = images()
    assert_equals_alone([network(data, seed, act=act, depth=3, dtype=torch.float64) for seed in range(3)], data, "sgd")
    assert len(taken) == 150


def test_parameters_of_activations_count(taken):
    data = images()
    for spec in (("leaky_relu", {"negative_slope": 0.4}), ("elu", {"alpha": 0.3})):
        networks = [network(data, seed, act="linear", dtype=torch.float64) for seed in range(3)]
        for module in networks:
            module.acts = build(
                "mlp", depth=2, width=8, act=spec, input_shape=data.input_shape, classes=data.outputs
            ).acts
        assert_equals_alone(networks, data, "sgd")
    assert len(taken) == 300


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_equals_torch_alone(outputs, taken):
    data = curve(outputs)
    assert_equals_alone([network(data, seed, dtype=torch.float64) for seed in range(3)], data, "sgd")
    assert len(taken) == 150


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_the_ensemble(shape, taken):
    data, chosen = images(), dict(SHAPES[shape])
    plan = TrainingPlan(12, chosen.pop("batch"), "sgd", (), eval_every=5, data_seed=DATA_SEED)
    assert_bits_do_not_depend(lambda seed: network(data, int(seed), **chosen), data, plan, (2, 3, 5), 9)
    assert taken


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("width", [64, 128, 150])
def test_bits_of_large_layers_do_not_depend_on_the_ensemble(act, width, monkeypatch, taken):
    """Of products that OpenBLAS may compute, at the size from which members are computed one after another."""
    monkeypatch.undo()
    monkeypatch.setenv("INITLAB_FAST_CPU", "1")
    data = images(150, 10)
    data = replace(data, train_x=data.train_x.repeat(1, 1, 2, 2), val_x=data.val_x.repeat(1, 1, 2, 2))
    data = replace(data, test_x=data.test_x.repeat(1, 1, 2, 2))
    plan = TrainingPlan(3, 128, "sgd", (), data_seed=DATA_SEED)
    make = lambda seed: network(data, int(seed), width=width, act=act)  # noqa: E731
    assert stack([make(0), make(1)]).parts[0].fast_path.is_faster(128)
    assert not stack([make(0), make(1)]).parts[0].fast_path.is_faster(8)
    assert_bits_do_not_depend(make, data, plan, (2, 3), 5)


@pytest.mark.parametrize("records", [(0, 1, 2, 5), tuple(range(9))])
def test_recording_changes_no_bit(records, taken):
    data, hyper = images(), hypers(4, 0.05)
    plan = TrainingPlan(8, 12, "adam", (), data_seed=DATA_SEED, log_every=3)
    plain, recorded = ([network(data, seed, depth=3) for seed in range(4)] for _ in range(2))
    expected = trained(plain, data, plan, hyper)
    events = trained(recorded, data, replace(plan, records=records), hyper)
    for member in range(4):
        assert rows(events, member) == rows(expected, member)
        assert_same_bits(tensors(recorded[member]), tensors(plain[member]))
    assert sorted(taken) == sorted([0, 1, 2, 3] * (16 + (8 in records)))


@pytest.mark.parametrize("act", ["tanh", "relu", "gelu"])
def test_a_recorded_step_measures_what_the_layers_do(act):
    """Statistics and histograms of layers, gradients and updates: as of an ensemble that goes layer by layer.

    More members than are measured at once, of which one has no finite loss at a recorded step.
    """
    data, count, lost = images(), gradients.MEASURED_TOGETHER + 3, 9
    hyper = tuple({"lr": 1e39} if member == lost else own for member, own in enumerate(hypers(count, 0.05)))
    plan = TrainingPlan(6, 12, "sgd", hyper, records=(0, 1, 4), data_seed=DATA_SEED, saturation=(-0.5, 0.5))
    found = []
    for large in (0, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequential, "MIN_LAYER_FLOPS", large)
            networks = [network(data, seed, act=act, depth=3, width=16) for seed in range(count)]
            found.append([e for e in train(stack(networks), data, plan) if hasattr(e, "histograms")])
    assert [len(e.rows) for e in found[0]] == [count, count, count - 1]
    for one, other in zip(*found, strict=True):
        assert one.rows.keys() == other.rows.keys()
        for member in one.rows:
            assert [row[:4] for row in one.rows[member]] == [row[:4] for row in other.rows[member]]
            if member == lost and one is found[0][1]:
                # Whether what overflows ends as infinity or as NaN depends on the order of sums.
                assert any(row[3] == "nonfinite" and row[4] > 0 for row in one.rows[member])
                continue
            values = [[row[4] for row in each.rows[member]] for each in (one, other)]
            assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6, nan_ok=True)
            assert one.histograms[member].keys() == other.histograms[member].keys()
            for place, counted in one.histograms[member].items():
                same = other.histograms[member][place]
                assert (counted.num, counted.nonfinite) == (same.num, same.nonfinite)
                assert counted.sum_squares == pytest.approx(same.sum_squares, rel=1e-3)
                moved = np.abs(np.cumsum(counted.counts) - np.cumsum(same.counts)).max()
                assert moved <= 0.02 * counted.num, "an entry at an edge may fall on either side, not many"


@pytest.mark.parametrize("bad", [{"lr": 1e39}, {"lr": 1e30, "clip_norm": 1.0}, {"lr": 1e20, "weight_decay": 1e20}])
def test_a_diverging_neighbor_changes_no_bit(bad, taken):
    data, plan, hyper = images(), TrainingPlan(20, 12, "sgd", (), data_seed=DATA_SEED), hypers(4, 0.05)
    expected_networks = [network(data, seed, act="relu") for seed in range(4)]
    expected = trained(expected_networks, data, plan, hyper)
    networks = [network(data, seed, act="relu") for seed in range(4)]
    worst = [network(data, seed, scheme="he_normal", act="relu") for seed in (7, 8)]
    mixed = [worst[0], networks[0], networks[1], worst[1], networks[2], networks[3]]
    events = trained(mixed, data, plan, [bad, hyper[0], hyper[1], {"lr": 1e38}, hyper[2], hyper[3]])
    for member, place in enumerate((1, 2, 4, 5)):
        assert rows(events, place) == rows(expected, member)
        assert_same_bits(tensors(networks[member]), tensors(expected_networks[member]))
    stopped = {event.member: event for event in events if isinstance(event, Stopped)}
    assert set(stopped) == {0, 3}
    assert all(event.reason == "diverged" and event.layer != "loss" for event in stopped.values())
    assert len(taken) > 80


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost_on_the_way(act, value, monkeypatch, taken):
    """By either library: a NaN in a layer, or the one that infinities of both signs make, is the loss's."""
    data = images()
    plan = TrainingPlan(3, 12, "sgd", ({"lr": 0.05},) * 3, data_seed=DATA_SEED)
    for others in {False, openblas.openblas_is_faster()}:
        use_libraries(monkeypatch, others)
        networks = [network(data, seed, depth=3, act=act, width=16) for seed in range(3)]
        with torch.no_grad():
            networks[1].hidden[1].weight[:2, 0] = value
            networks[1].hidden[2].weight[:, :2] = torch.tensor([value, -value])
            networks[1].hidden[1].bias[:2] = value
        stopped = [event for event in train(stack(networks), data, plan) if isinstance(event, Stopped)]
        assert [event.member for event in stopped] == [1]
        assert all(event.step == 0 and event.layer in ("hidden.1", "hidden.2") for event in stopped)
    assert taken


@pytest.mark.parametrize("at", [0, 1, 4])
def test_going_on_in_other_parts_changes_no_bit(at, monkeypatch):
    data, hyper = images(), hypers(5, 0.05)
    plan = TrainingPlan(8, 12, "sgd", hyper, data_seed=DATA_SEED)
    whole = [network(data, seed) for seed in range(5)]
    list(train(stack(whole), data, plan))
    networks = [network(data, seed) for seed in range(5)]
    state, ensemble = State(), stack(networks)
    if at:
        half = replace(plan, steps=at)
        list(train(ensemble, data, half, state))
        state.step = at
    monkeypatch.setattr(stacking, "PART_MAX_MEMBERS", 2)
    list(train(stack(networks), data, plan, state))
    for member in range(5):
        assert_same_bits(tensors(networks[member]), tensors(whole[member]))


def test_rates_of_single_parameters_count(taken):
    data, plan = images(), TrainingPlan(6, 12, "sgd", ({"lr": 0.05},) * 3, data_seed=DATA_SEED)
    for factors in ((0.0,) * 6, (1.0, 0.0, 2.0, 1.0, 0.5, 1.0)):
        ways = []
        for large in (0, float("inf")):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sequential, "MIN_LAYER_FLOPS", large)
                networks = [network(data, seed) for seed in range(3)]
                before = tensors(networks[1])
                list(train(stack(networks), data, replace(plan, factors=(None, factors, None))))
            ways.append(tensors(networks[1]))
            moved = [not torch.equal(value, before[name]) for name, value in ways[-1].items()]
            assert moved == [factor > 0 for factor in factors]
        for name, value in ways[0].items():
            torch.testing.assert_close(value, ways[1][name], rtol=1e-5, atol=1e-6)
    assert len(taken) == 2 * 3 * 6


def test_a_target_and_an_evaluation_see_the_weights_of_their_step(taken):
    data = images()
    plan = TrainingPlan(30, 12, "sgd", ({"lr": 0.2},) * 3, eval_every=10, data_seed=DATA_SEED, target_loss=1.4)
    found = []
    for large in (0, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sequential, "MIN_LAYER_FLOPS", large)
            found.append(list(train(stack([network(data, seed) for seed in range(3)]), data, plan)))
    one, other = ([(e.member, e.step, e.reason) for e in events if isinstance(e, Stopped)] for events in found)
    assert one == other
    for a, b in zip(*([e for e in events if isinstance(e, Evaluation)] for events in found), strict=True):
        assert a.step == b.step
        for name in a.values:
            assert a.values[name] == pytest.approx(b.values[name], rel=1e-4)
    assert taken


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("change", ["inputs", "dtype"])
def test_a_batch_that_does_not_fit_is_refused(others, change, monkeypatch):
    if others and openblas.sgemm() is None:
        pytest.skip("OpenBLAS has no code for this machine, or is not installed")
    use_libraries(monkeypatch, others)
    data = images()
    part = stack([network(data, seed) for seed in range(2)]).parts[0]
    x = data.prepare(data.train_x, torch.float32).flatten(1)
    x = x[:, 1:] if change == "inputs" else x.double()
    with pytest.raises(ValueError, match=r"do not fit a first layer of \d+ inputs of torch.float32"), torch.no_grad():
        part.outputs(x)


def test_outputs_are_those_of_the_forward_pass_and_their_memory_is_released():
    data = images()
    part = stack([network(data, seed, depth=3) for seed in range(3)]).parts[0]
    x = data.prepare(data.train_x, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(part.outputs(x), part.forward(x))
    assert part.fast_path is not None
    assert not any(type(kept) is sequential.Workspace for kept in gc.get_objects())


@pytest.mark.parametrize(
    "options",
    [{"norm": "batch"}, {"norm": "layer"}, {"dropout": 0.1}, {"act": "prelu"}, {"act": "sin"}, {"family": "resmlp"}],
)
def test_other_networks_go_layer_by_layer(options, taken):
    data = images()
    given = {"family": "mlp", "act": "tanh", **options}
    make = {k: v for k, v in given.items() if k not in ("family", "act")}
    networks = [
        build(given["family"], act=given["act"], depth=2, width=8, input_shape=data.input_shape, classes=5, **make)
        for _ in range(3)
    ]
    for seed, module in enumerate(networks):
        fill_(module, "glorot_normal", act=given["act"], seed=seed)
    list(train(stack(networks), data, TrainingPlan(3, 12, "sgd", ({"lr": 0.1},) * 3)))
    assert not taken


@pytest.mark.parametrize("case", ["frozen", "autocast", "alone"])
def test_networks_that_must_go_layer_by_layer(case, taken):
    data = images()
    networks = [network(data, seed) for seed in range(1 if case == "alone" else 3)]
    for module in networks:
        module.hidden[0].bias.requires_grad_(case != "frozen")
    plan = TrainingPlan(3, 12, "sgd", ({"lr": 0.1},) * len(networks), autocast=case == "autocast")
    list(train(stack(networks), data, plan))
    assert not taken


def test_steps_that_are_taken_at_a_time_change_no_bit(monkeypatch, taken):
    """How many steps a member takes before the next one does, with some of them diverging and some at their target."""
    data, found = images(), []
    hyper = [{"lr": 0.2}, {"lr": 1e30}, {"lr": 0.1}, {"lr": 40.0}, {"lr": 0.3, "clip_norm": 0.5}]
    plan = TrainingPlan(25, 12, "sgd", (), data_seed=DATA_SEED, target_loss=1.4, records=(0, 7), eval_every=9)
    for longest in (1, 5, 16):
        monkeypatch.setattr(loop, "MAX_BLOCK_STEPS", longest)
        monkeypatch.setattr(loop, "YIELD_EVERY", 1e9)
        networks = [network(data, seed, act="relu") for seed in range(5)]
        events = trained(networks, data, plan, hyper)
        stopped = sorted((e.member, e.step, e.reason, e.layer) for e in events if isinstance(e, Stopped))
        assert {reason for _, _, reason, _ in stopped} == {"diverged", "target"}
        # As text: what diverged ends in NaN, which equals nothing. Evaluations of others at their targets leave gaps.
        of_members = [f"{rows(events, m)} {[e for e in evaluations(events, m) if e]}" for m in range(5)]
        found.append((stopped, of_members, [tensors(module) for module in networks]))
    for stopped, of_members, weights in found[1:]:
        assert (stopped, of_members) == found[0][:2]
        for one, other in zip(weights, found[0][2], strict=True):
            assert_same_bits(one, other)
    assert taken


def test_without_biases(taken):
    data = images()
    networks = [network(data, seed, dtype=torch.float64) for seed in range(3)]
    for module in networks:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.bias = None
    assert_equals_alone(networks, data, "sgd")
    assert len(taken) == 150


def test_either_library_makes_the_same_network(monkeypatch):
    """To rounding: torch's, and the one that is at hand where torch's is slower."""
    data, found = images(150, 10), []
    for others in (False, openblas.openblas_is_faster()):
        use_libraries(monkeypatch, others)
        networks = [network(data, seed, width=32, act=act) for act in ("tanh", "relu") for seed in range(2)]
        for pair in (networks[:2], networks[2:]):
            list(train(stack(pair), data, TrainingPlan(10, 32, "sgd", ({"lr": 0.1},) * 2, data_seed=DATA_SEED)))
        found.append([copy.deepcopy(tensors(module)) for module in networks])
    for one, other in zip(*found, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


def test_rows_are_logged_as_often_as_asked():
    data, plan = images(), TrainingPlan(9, 12, "sgd", ({"lr": 0.1},) * 2, log_every=4, data_seed=DATA_SEED)
    events = list(train(stack([network(data, seed) for seed in range(2)]), data, plan))
    assert [step for event in events if isinstance(event, Steps) for step in event.steps] == [0, 4, 8]


def test_accuracies_are_those_of_the_outputs_of_their_step(taken):
    data = images()
    networks = [network(data, seed, dtype=torch.float64) for seed in range(4)]
    lone = copy.deepcopy(networks)
    hyper = ({"lr": 0.1}, {"lr": 0.1}, {"lr": 1e200, "weight_decay": 1e200}, {"lr": 0.02})
    plan = TrainingPlan(9, 12, "sgd", hyper, data_seed=DATA_SEED, dtype=torch.float64)
    events = list(train(stack(networks), data, plan))
    lengths = []
    for member, module in enumerate(lone):
        found = rows(events, member)
        optimizer = torch.optim.SGD(module.parameters(), **hyper[member], momentum=0.9)
        expected = []
        for step in found["step"]:
            epoch, k = divmod(step, len(data.train_x) // 12)
            index = np.random.default_rng((DATA_SEED, epoch)).permutation(len(data.train_x))[12 * k : 12 * k + 12]
            out, y = module((data.train_x[index].double() / 255 - 0.4) / 0.3), data.train_y[index]
            expected.append((out.argmax(1) == y).double().mean().item())
            optimizer.zero_grad()
            F.cross_entropy(out, y).backward()
            optimizer.step()
        assert found["accuracy"] == expected, member
        lengths.append(len(expected))
    assert lengths[:2] == [9, 9]
    assert lengths[2] < 9
    assert len(set(rows(events, 0)["accuracy"])) > 2
    assert taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_loss_and_its_gradient_are_those_of_autograd(task, dtype):
    draw = torch.Generator().manual_seed(1)
    labels, values = torch.randint(0, 7, (33,), generator=draw), torch.randn(33, 7, generator=draw, dtype=dtype)
    y = labels if task == "classification" else values
    outputs = (5 * torch.randn(33, 7, generator=draw, dtype=dtype)).requires_grad_()
    loss = F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)
    (gradient,) = torch.autograd.grad(loss, outputs)
    delta = torch.empty(7, 33, dtype=dtype)
    found = MemberLoss(y, 7, dtype)(outputs.detach().t().contiguous(), delta)
    tight = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(torch.tensor(found, dtype=dtype), loss.detach(), **tight)
    torch.testing.assert_close(delta.t(), gradient, **tight)


@pytest.mark.parametrize(("right", "expected"), [(True, 0.0), (False, math.inf)])
def test_a_class_that_is_impossible_makes_the_loss_infinite_only_where_it_is_right(right, expected):
    outputs = torch.tensor([[3e38], [-3e38]])
    loss = MemberLoss(torch.tensor([0 if right else 1]), 2, torch.float32)
    assert loss(outputs, torch.empty(2, 1)) == expected


def test_outputs_that_are_nan_make_the_loss_nan():
    loss = MemberLoss(torch.tensor([1]), 2, torch.float32)
    assert math.isnan(loss(torch.tensor([[math.nan], [1.0]]), torch.empty(2, 1)))


@pytest.mark.parametrize("setting", ["0", "1"])
def test_the_switch_decides(setting, monkeypatch, taken):
    monkeypatch.setenv("INITLAB_FAST_CPU", setting)
    data = images()
    list(train(stack([network(data, seed) for seed in range(2)]), data, TrainingPlan(3, 12, "sgd", ({},) * 2)))
    assert bool(taken) == (setting == "1")
