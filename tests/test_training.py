"""What the loop yields, when it stops, and what it leaves alone; that it computes rightly is in another file."""

import copy
import math
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initlab.data import Dataset, load_dataset
from initlab.ensemble import stack
from initlab.initialize import fill_
from initlab.models import build
from initlab.training import (
    Evaluation,
    Pause,
    Snapshot,
    State,
    Steps,
    Stopped,
    TrainingPlan,
    log_spaced,
    rate_factor,
    train,
)
from initlab.training import evaluation as evaluation_room
from initlab.training import loop as loop_room
from initlab.training.evaluation import member_losses
from initlab.training.step import TARGET_WINDOW

PLAN = TrainingPlan(20, 16, "sgd", ({"lr": 0.05},), eval_every=7, records=(0, 3, 20))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("gaussian", train_size=200, test_size=60, dimension=8, classes=3)


def network(data: Dataset, act: str = "tanh", scheme: str = "glorot_normal", seed: int = 0, depth: int = 3, **options):
    parameters = options.pop("parameters", None)
    net = build("mlp", depth=depth, width=10, act=act, input_shape=data.input_shape, classes=data.outputs, **options)
    fill_(net, scheme, act=act, seed=seed, parameters=parameters)
    return net


def run(nets: nn.Module | list[nn.Module], data: Dataset, plan: TrainingPlan, state: State | None = None) -> list:
    nets = nets if isinstance(nets, list) else [nets]
    plan = plan if len(plan.hyper) == len(nets) else replace(plan, hyper=plan.hyper * len(nets))
    return list(train(stack(nets), data, plan, state))


def of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def rows(events: list, member: int = 0) -> dict[str, list]:
    """All rows of a member as columns."""
    columns: dict[str, list] = {"step": [], "loss": [], "accuracy": [], "grad_norm": [], "lr": []}
    for block in of(Steps, events):
        for k, step in enumerate(block.steps):
            if member in block.members[k]:
                place = block.members[k].index(member)
                columns["step"].append(step)
                for name in ("loss", "accuracy", "grad_norm", "lr"):
                    columns[name].append(getattr(block, name)[k][place])
    return columns


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- rates and recorded steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 100, 4680])
@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_log_spaced_steps(steps, count):
    found = log_spaced(steps, count)
    assert found[0] == 0
    assert found[-1] == steps
    assert found == sorted(set(found))
    assert len(found) <= count
    ratios = [b / a for a, b in pairwise(found[1:])]
    # Equal ratios, up to rounding to whole steps.
    assert all(r <= steps ** (1 / max(count - 2, 1)) * 1.5 + 1 for r in ratios)


def test_log_spaced_small_counts():
    assert (log_spaced(100, 0), log_spaced(100, 1), log_spaced(100, 2)) == ([], [0], [0, 100])
    assert log_spaced(1000, 5) == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "factor"),
    [
        ("constant", 0, 0, 1.0),
        ("constant", 4, 0, 0.25),
        ("constant", 4, 3, 1.0),
        ("constant", 4, 99, 1.0),
        ("cosine", 0, 0, 1.0),
        ("cosine", 0, 50, 0.5),
        ("cosine", 0, 25, (1 + math.sqrt(0.5)) / 2),
        ("cosine", 20, 9, 0.5),
        ("cosine", 20, 20, 1.0),
        ("cosine", 20, 60, 0.5),
        ("cosine", 100, 99, 1.0),
        ("cosine", 200, 99, 0.5),
    ],
)
def test_rate_factor(schedule, warmup, step, factor):
    assert rate_factor(schedule, warmup, 100, step) == pytest.approx(factor, rel=1e-12)


# --- rows, evaluations, snapshots -------------------------------------------------------------------------------------


def test_row_k_is_batch_k_after_k_updates(data):
    """Weights of step k come from a run of k updates, its batch from the epoch's permutation."""
    whole = rows(run(network(data), data, replace(PLAN, records=())))
    assert whole["step"] == list(range(20))
    order = np.random.default_rng((0, 0)).permutation(len(data.train_x))
    for k in (0, 1, 5):
        net = network(data)
        if k:
            run(net, data, replace(PLAN, steps=k, records=()))
        index = order[k * 16 : (k + 1) * 16]
        x, y = data.prepare(data.train_x[index]), data.train_y[index]
        assert whole["loss"][k] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-6)
        assert whole["accuracy"][k] == (net(x).argmax(1) == y).double().mean().item()


@pytest.mark.parametrize("every", [1, 3, 50])
def test_log_every(data, every):
    assert rows(run(network(data), data, replace(PLAN, log_every=every)))["step"] == list(range(0, 20, every))


def test_steps_of_evaluations_and_snapshots(data):
    events = run(network(data), data, PLAN)
    assert [e.step for e in of(Evaluation, events)] == [0, 7, 14, 20]
    assert [e.step for e in of(Snapshot, events)] == [0, 3, 20]


def test_rows_come_before_what_is_later(data):
    """A snapshot of step k follows all rows up to k, an evaluation before update k all rows below k."""
    seen = -1
    for event in train(stack([network(data)]), data, PLAN):
        if isinstance(event, Steps):
            seen = event.steps[-1]
        elif isinstance(event, Evaluation):
            assert seen == event.step - 1
        elif isinstance(event, Snapshot):
            assert seen == min(event.step, PLAN.steps - 1)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_evaluation_is_brute_force(data, norm, monkeypatch):
    """Uneven pieces weigh what they hold, and running statistics are used and left as they are."""
    monkeypatch.setattr(evaluation_room, "EVAL_BATCH", 7)
    net = network(data, norm=norm).double()
    plan = replace(PLAN, dtype=torch.float64)
    last = of(Evaluation, run(net, data, plan))[-1]
    net.eval()
    for split, xs, ys in (("val", data.val_x, data.val_y), ("test", data.test_x, data.test_y)):
        logits = net(data.prepare(xs, torch.float64))
        assert last.values[f"{split}_loss"] == {0: pytest.approx(F.cross_entropy(logits, ys).item(), rel=1e-12)}
        assert last.values[f"{split}_accuracy"] == {0: (logits.argmax(1) == ys).double().mean().item()}


def test_regression_is_evaluated_by_squared_loss(monkeypatch):
    monkeypatch.setattr(evaluation_room, "EVAL_BATCH", 9)
    data = load_dataset("sine", train_size=80, test_size=30)
    net = network(data).double()
    last = of(Evaluation, run(net, data, replace(PLAN, steps=3, records=(), dtype=torch.float64)))[-1]
    expected = F.mse_loss(net(data.test_x.double()), data.test_y.double()).item()
    assert last.values.keys() == {"val_loss", "test_loss"}
    assert last.values["test_loss"][0] == pytest.approx(expected, rel=1e-12)


def test_without_a_split_there_is_no_evaluation_of_it():
    data = load_dataset("gaussian", train_size=60, test_size=20, dimension=4, classes=2, validation=0)
    looks = of(Evaluation, run(network(data), data, replace(PLAN, batch_size=8)))
    assert looks[-1].values.keys() == {"test_loss", "test_accuracy"}


def test_the_test_set_is_left_alone_before_training(data):
    looks = of(Evaluation, run(network(data), data, PLAN))
    assert [look.step for look in looks][:1] == [0]
    assert looks[0].values.keys() == {"val_loss", "val_accuracy"}
    assert all("test_loss" in look.values for look in looks[1:])
    (only,) = of(Evaluation, run(network(data), data, replace(PLAN, steps=0, records=(0,))))
    assert "test_loss" in only.values


def test_bfloat16_losses_are_not_rounded_to_three_digits(data):
    """Rows and evaluations carry more digits than a bfloat16 loss could."""
    events = run(network(data), data, replace(PLAN, steps=3, autocast=True))
    found = [*rows(events)["loss"], *(v for e in of(Evaluation, events)[1:] for v in e.values["test_loss"].values())]
    rounded = torch.tensor(found).bfloat16().double()
    assert (rounded != torch.tensor(found, dtype=torch.float64)).all()


def test_squared_loss_is_summed_in_full_precision():
    """In bfloat16 the targets would be rounded to three digits."""
    outputs, y = torch.full((1, 4, 1), 1.0, dtype=torch.bfloat16), torch.full((4, 1), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert member_losses(outputs, y).item() == pytest.approx(1e-6, rel=1e-3)


# --- stops ------------------------------------------------------------------------------------------------------------


def oracle_first_bad(net: nn.Module, x: torch.Tensor) -> str:
    for k, (layer, act) in enumerate(zip(net.hidden, net.acts, strict=True)):
        h = layer(x)
        if not torch.isfinite(h).all():
            return f"hidden.{k}"
        x = act(h)
    return "loss" if torch.isfinite(net.readout(x)).all() else "readout"


def test_divergence_at_step_0_names_the_layer(data):
    """Weights of std 100 grow a ReLU network by 220 a layer: float32 overflows on the way."""
    net = network(data, "relu", "normal", depth=30, parameters={"std": 100.0})
    first = np.random.default_rng((0, 0)).permutation(len(data.train_x))[:16]
    expected = oracle_first_bad(copy.deepcopy(net), data.prepare(data.train_x[first]))
    events = run(net, data, PLAN)
    assert of(Stopped, events) == [Stopped(0, 0, "diverged", expected)]
    assert expected.startswith("hidden.")
    found = rows(events)
    assert found["step"] == [0]
    assert not math.isfinite(found["loss"][0])


def test_a_diverged_networks_histograms_are_readable(data):
    net = network(data, "relu", "normal", depth=30, parameters={"std": 100.0})
    (snapshot,) = of(Snapshot, run(net, data, PLAN))
    measured = [(layer, stat) for _, layer, _, stat, _, _ in snapshot.rows[0]]
    assert len(measured) == len(set(measured)), "looking for the bad layer was measured as well"
    counts = {layer: value for _, layer, _, stat, value, _ in snapshot.rows[0] if stat == "nonfinite"}
    assert counts["hidden.0"] == 0
    assert counts["hidden.29"] == 160
    for (kind, _, layer), record in snapshot.histograms[0].items():
        assert record.num == sum(record.counts)
        if kind == "preactivation" and layer.startswith("hidden"):
            assert record.nonfinite == counts[layer]
            assert record.num + record.nonfinite == 160


def test_linear_network_diverges_later(data):
    """A linear network under a large rate: the first bad step and layer are those of a loop by hand."""
    plan = replace(PLAN, steps=200, hyper=({"lr": 3.0, "momentum": 0.0},), records=log_spaced(200, 5))
    net, by_hand = network(data, "linear"), network(data, "linear")
    stops = of(Stopped, run(net, data, plan))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=3.0)
    per_epoch = len(data.train_x) // 16
    for step in range(200):
        epoch, k = divmod(step, per_epoch)
        index = np.random.default_rng((0, epoch)).permutation(len(data.train_x))[k * 16 : (k + 1) * 16]
        x, y = data.prepare(data.train_x[index]), data.train_y[index]
        loss = F.cross_entropy(by_hand(x), y)
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 0 < step < 199
    assert stops == [Stopped(0, step, "diverged", oracle_first_bad(by_hand, x))]


def test_a_loss_that_alone_is_not_finite():
    """Labels of 1e30 make the squared loss infinite while every layer is finite."""
    x = torch.linspace(-1, 1, 32)[:, None]
    y = torch.full((32, 1), 1e30)
    data = Dataset("far", x, y, x[:0], y[:0], x, y, None)
    assert of(Stopped, run(network(data), data, PLAN)) == [Stopped(0, 0, "diverged", "loss")]


@pytest.mark.parametrize("records", [(), (0, 20)])
def test_the_last_update_is_looked_at_too(data, records):
    """Whether layers are recorded decides nothing: a network broken by its last update has diverged."""
    plan = replace(PLAN, steps=4, records=records, hyper=({"lr": 1e30, "momentum": 0.0},), warmup=0)
    single = replace(plan, steps=1)
    assert [s.step for s in of(Stopped, run(network(data, "relu"), data, single))] == [1]


def test_neighbors_of_a_diverged_network_are_untouched(data):
    def members():
        return [
            network(data, "relu", "he_normal", seed=1, depth=20),
            network(data, "relu", "normal", seed=2, depth=20, parameters={"std": 100.0}),
            network(data, "relu", "he_normal", seed=3, depth=20),
        ]

    together = members()
    events = run(together, data, PLAN)
    assert [stop.member for stop in of(Stopped, events)] == [1]
    apart = [members()[0], members()[2]]
    expected = run(apart, data, PLAN)
    for member, place in ((0, 0), (2, 1)):
        assert rows(events, member) == rows(expected, place)
        assert same(tensors(together[member]), tensors(apart[place]))
        assert (
            of(Evaluation, events)[-1].values["test_loss"][member]
            == of(Evaluation, expected)[-1].values["test_loss"][place]
        )
        assert of(Snapshot, events)[-1].rows[member] == of(Snapshot, expected)[-1].rows[place]
    assert 1 not in of(Snapshot, events)[-1].rows
    assert 1 not in of(Evaluation, events)[-1].values["test_loss"]


def test_target_loss_stops_at_the_mean_of_a_window(data):
    free = rows(run(network(data), data, replace(PLAN, steps=200)))["loss"]
    means = [sum(free[k + 1 - TARGET_WINDOW : k + 1]) / TARGET_WINDOW for k in range(TARGET_WINDOW - 1, 200)]
    target = means[0] * 0.9
    expected = next(k for k, mean in enumerate(means) if mean <= target) + TARGET_WINDOW - 1
    events = run(network(data), data, replace(PLAN, steps=200, target_loss=target))
    assert of(Stopped, events) == [Stopped(0, expected, "target")]
    assert rows(events)["loss"] == free[: expected + 1]
    assert of(Evaluation, events)[-1].step == expected + 1


# --- checkpoints ------------------------------------------------------------------------------------------------------


def pieces(nets: list[nn.Module], data: Dataset, plan: TrainingPlan, at: int) -> tuple[list, State]:
    """Train until the pause before update `at`, and return what came and copies of what a checkpoint keeps."""
    events, state = [], State()
    for event in train(stack(nets), data, plan, state):
        if isinstance(event, Pause) and event.step == at:
            return events, copy.deepcopy(state)
        events.append(event)
    raise AssertionError(f"no pause at {at}")


def comparable(events: list) -> list:
    """Events apart from pauses, rows joined: blocks end where time says."""
    members = {m for block in of(Steps, events) for row in block.members for m in row}
    others = [e for e in events if not isinstance(e, (Steps, Pause))]
    return [{m: rows(events, m) for m in members}, others]


@pytest.mark.parametrize("at", [1, 3, 4, 7, 12, 20])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_as_if_never_stopped(data, at, optimizer, monkeypatch):
    monkeypatch.setattr(loop_room, "YIELD_EVERY", -1.0)
    options = {"norm": "batch", "dropout": 0.2}
    hyper = ({"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.02})
    plan = replace(PLAN, optimizer=optimizer, schedule="cosine", warmup=3, hyper=hyper, target_loss=0.1)
    whole = [network(data, seed=1, **options), network(data, seed=2, **options)]
    expected = run(whole, data, plan)
    first = [network(data, seed=1, **options), network(data, seed=2, **options)]
    before, state = pieces(first, data, plan, at)
    second = [network(data, seed=9, **options), network(data, seed=8, **options)]
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(tensors(old))
    after = run(second, data, plan, state)
    assert repr(comparable(before + after)) == repr(comparable(expected))
    for a, b in zip(whole, second, strict=True):
        assert same(tensors(a), tensors(b))


def test_a_finished_state_does_nothing_more(data):
    state = State()
    net = network(data)
    run(net, data, PLAN, state)
    after = tensors(net)
    assert [e for e in run(net, data, PLAN, state) if not isinstance(e, Pause)] == []
    assert same(after, tensors(net))


# --- what is left alone -----------------------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Raises in its n-th call."""

    def __init__(self, calls: int):
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 3), calls

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise ArithmeticError
        return self.layer(x)


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


def test_hooks_are_removed(data):
    net = network(data)
    run(net, data, PLAN)
    assert hooks(net) == 0


def test_hooks_are_removed_after_divergence(data):
    net = network(data, "relu", "normal", depth=30, parameters={"std": 100.0})
    run(net, data, PLAN)
    assert hooks(net) == 0


def test_hooks_are_removed_when_the_network_raises(data):
    net = Fragile(calls=3)
    with pytest.raises(ArithmeticError):
        run(net, data, replace(PLAN, records=tuple(range(20))))
    assert hooks(net) == 0


def test_hooks_are_removed_when_the_caller_leaves(data):
    net = network(data)
    for event in train(stack([net]), data, PLAN):
        if isinstance(event, Snapshot):
            break
    assert hooks(net) == 0


def test_every_module_keeps_its_mode(data):
    net = network(data, norm="batch")
    net.norms[1].eval()
    before = {name: module.training for name, module in net.named_modules()}
    run(net, data, PLAN)
    assert {name: module.training for name, module in net.named_modules()} == before
    assert net.norms[1].num_batches_tracked == 0


class Noisy(nn.Module):
    """Dropout and noise from the global random state, as modules from elsewhere have them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.dropout = nn.Linear(8, 16), nn.Linear(16, 3), nn.Dropout(0.5)

    def forward(self, x):
        h = self.dropout(torch.tanh(self.a(x)))
        return self.b(h + 0.1 * torch.randn_like(h))


@pytest.mark.parametrize(
    "make", [lambda data: network(data, dropout=0.3), lambda data: Noisy()], ids=["ours", "theirs"]
)
def test_the_global_random_state_neither_matters_nor_moves(data, make):
    torch.manual_seed(0)
    net = make(data)
    twin = copy.deepcopy(net)
    states = [torch.get_rng_state().tolist(), np.random.mtrand._rand.get_state()[1].tolist(), random.getstate()]
    found = rows(run(net, data, PLAN))
    now = [torch.get_rng_state().tolist(), np.random.mtrand._rand.get_state()[1].tolist(), random.getstate()]
    assert now == states
    torch.manual_seed(99)
    assert rows(run(twin, data, PLAN)) == found


def test_masks_differ_from_step_to_step_and_follow_the_data_seed():
    """All samples are the same one, so that nothing but the masks can tell two steps apart."""
    x, y = torch.ones(64, 8), torch.zeros(64, dtype=torch.long)
    data = Dataset("same", x, y, x[:0], y[:0], x, y, 3)
    torch.manual_seed(0)
    net = Noisy()
    a, b, c = (copy.deepcopy(net) for _ in range(3))
    frozen = replace(PLAN, hyper=({"lr": 0.0, "momentum": 0.0},), records=())
    losses = rows(run(a, data, frozen))["loss"]
    assert len(set(losses)) == len(losses)
    assert rows(run(b, data, frozen))["loss"] == losses
    assert rows(run(c, data, replace(frozen, data_seed=1)))["loss"] != losses


def test_running_statistics_have_seen_one_batch_for_each_update(data):
    """The look after the last update leaves them alone."""
    net = network(data, norm="batch")
    run(net, data, PLAN)
    assert [int(norm.num_batches_tracked) for norm in net.norms] == [PLAN.steps] * 3


def test_recording_changes_nothing(data):
    """Layers, rows and evaluations only look: weights and running statistics come out the same bits."""
    outcomes = []
    for plan in (PLAN, replace(PLAN, records=(), eval_every=0, log_every=20), replace(PLAN, records=tuple(range(21)))):
        net = network(data, norm="batch", dropout=0.2)
        run(net, data, plan)
        outcomes.append(tensors(net))
    assert same(outcomes[0], outcomes[1])
    assert same(outcomes[0], outcomes[2])


def test_a_parameter_that_takes_no_part_stays(data):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 3), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.used(x)

    net = Spare()
    run(net, data, PLAN)
    assert net.unused.tolist() == [1.0, 1.0]
