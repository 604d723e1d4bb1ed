"""Optimizers: one row adds one, their kernels equal torch.optim's, and private kernels may go."""

import copy
import sys
from types import ModuleType

import pytest
import torch
from test_ensemble import images, network
from torch import nn

from initlab.ensemble import COUNTERPARTS, stack
from initlab.training import OPTIMIZERS, State, TrainingPlan, fused_kernels, train
from initlab.training.optimizers import gradient_norms

# A file of a user's own, outside the package: an optimizer, and a layer with its stacked counterpart.
OWN = '''
import torch
from torch import nn

from initlab.ensemble import COUNTERPARTS
from initlab.ensemble.layers import StackedLayer, view_by_channel
from initlab.training import OPTIMIZERS, Optimizer


def lion(params, grads, slots, hyper, step):
    """Chen et al. 2023: the sign of an interpolation of the gradient and its mean."""
    for p, g, m in zip(params, grads, slots["mean"]):
        p.mul_(1 - hyper["lr"] * hyper["weight_decay"])
        p.sub_(torch.sign(m * hyper["beta1"] + g * (1 - hyper["beta1"])), alpha=hyper["lr"])
        m.mul_(hyper["beta2"]).add_(g, alpha=1 - hyper["beta2"])


class Scale(nn.Module):
    """x times a learned number for every unit."""

    def __init__(self, units):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self, x):
        return x * self.weight


class StackedScale(StackedLayer):
    def forward(self, x):
        return x * view_by_channel(self.weight, x)


OPTIMIZERS["lion"] = Optimizer("lion", ("mean",), lion, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99}, "Chen et al. 2023")
COUNTERPARTS[Scale] = StackedScale
'''


@pytest.fixture
def own(monkeypatch, tmp_path) -> ModuleType:
    """The user's module, whose rows are removed afterwards."""
    (tmp_path / "own_parts.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    optimizers, counterparts = dict(OPTIMIZERS), dict(COUNTERPARTS)
    import own_parts

    yield own_parts
    for rows, before in ((OPTIMIZERS, optimizers), (COUNTERPARTS, counterparts)):
        rows.clear()
        rows.update(before)
    del sys.modules["own_parts"]


def test_one_row_adds_an_optimizer_and_a_layer_that_train_stacked_as_alone(own):
    data = images()

    def make(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), own.Scale(8), nn.Tanh(), nn.Linear(8, 5)).double()

    networks = [make(seed) for seed in range(3)]
    lone = copy.deepcopy(networks)
    ensemble, hyper = stack(networks), {"lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.5}
    assert [part.stacked for part in ensemble.parts] == [True]
    list(train(ensemble, data, TrainingPlan(20, 12, "lion", (hyper,) * 3, dtype=torch.float64)))
    for module, alone in zip(networks, lone, strict=True):
        before = alone[1].weight.detach().clone()
        list(train(stack([alone]), data, TrainingPlan(20, 12, "lion", (hyper,), dtype=torch.float64)))
        assert not torch.equal(before, alone[1].weight)
        for one, other in zip(module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_slots_of_an_optimizer_from_outside_are_part_of_the_state(own):
    data, state = images(), State()
    list(train(stack([network(data, 0)]), data, TrainingPlan(4, 12, "lion", ({},)), state))
    assert set(state.slots[0]) == {"mean"}
    assert any(bool(slot.any()) for slot in state.slots[0]["mean"])


@pytest.mark.parametrize("name", ["_fused_sgd_", "_fused_adam_", "_fused_adamw_", "_fused_adagrad_", "_foreach_norm"])
def test_private_kernels_are_there(name):
    assert hasattr(torch, name), f"torch has no {name} any more: training/fused_kernels.py falls back, and is slower"


class WithoutPrivate:
    """torch without its private functions."""

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(torch, name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_private_kernels_the_public_functions_do_the_same(name, momentum, monkeypatch):
    optimizer, draw = OPTIMIZERS[name], torch.Generator().manual_seed(0)
    hyper = {**optimizer.defaults, "weight_decay": 0.1, "lr": 0.01, "momentum": momentum}
    found = []
    for module in (torch, WithoutPrivate()):
        monkeypatch.setattr(fused_kernels, "torch", module)
        draw.manual_seed(0)
        params = [torch.randn(3, 4, generator=draw, dtype=torch.float64), torch.randn(3, generator=draw).double()]
        slots = optimizer.allocate_slots(params)
        for step in range(1, 6):
            grads = [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in params]
            optimizer.update(params, grads, slots, hyper, step)
        found.append((params, gradient_norms([grads, grads])))
    (ours, norms), (public, public_norms) = found
    for one, other in zip(ours, public, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert norms == pytest.approx(public_norms, rel=1e-14)


@pytest.mark.parametrize("networks", [1, 2])
def test_a_gradient_norm_is_that_of_all_tensors(networks):
    grads = [[torch.randn(4, 3), torch.randn(5)] for _ in range(networks)]
    expected = [torch.cat([grad.flatten() for grad in own]).norm().item() for own in grads]
    assert gradient_norms(grads) == pytest.approx(expected)
    assert gradient_norms([[grads[0][0]]]) == pytest.approx([grads[0][0].norm().item()])
