"""Undocumented interfaces of torch: what an upgrade takes away is named, and reading goes on without it."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from initlab.inspection import torch_internals, walk

CLASSES = {
    "nn.modules.conv._ConvNd": (nn.modules.conv, "_ConvNd"),
    "nn.modules.batchnorm._BatchNorm": (nn.modules.batchnorm, "_BatchNorm"),
    "nn.modules.batchnorm._NormBase": (nn.modules.batchnorm, "_NormBase"),
    "nn.modules.instancenorm._InstanceNorm": (nn.modules.instancenorm, "_InstanceNorm"),
    "nn.utils.parametrizations._WeightNorm": (parametrizations, "_WeightNorm"),
    "nn.utils.parametrizations._SpectralNorm": (parametrizations, "_SpectralNorm"),
}
ATTRIBUTES = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks")


@pytest.mark.parametrize("name", CLASSES)
def test_torch_still_has_the_class(name):
    home, own = CLASSES[name]
    assert hasattr(home, own), (
        f"torch {torch.__version__} has no {name} any more: initlab uses the fallback beside it in "
        "inspection/torch_internals.py; find the new name, or make the fallback the rule."
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_torch_still_has_the_attribute(name):
    assert isinstance(getattr(nn.Linear(1, 1), name, None), dict), (
        f"torch {torch.__version__} keeps no dictionary nn.Module.{name} any more: initlab reads through the fallback "
        "in inspection/torch_internals.py, and cannot write; find the new place."
    )


def test_torch_compile_still_wraps_under_the_name_that_is_stripped():
    net = nn.Linear(1, 1)
    compiled = torch.compile(net, backend="eager")
    assert torch_internals.compiled_module(compiled) is net, (
        f"torch {torch.__version__} holds a compiled module elsewhere than in {torch_internals.COMPILED_ATTRIBUTE}: "
        "names of compiled modules' parameters would change with it."
    )


@pytest.fixture
def bare_torch(monkeypatch):
    """`torch_internals` as it is in a torch without the private classes."""
    for home, own in CLASSES.values():
        monkeypatch.delattr(home, own)
    yield importlib.reload(torch_internals)
    monkeypatch.undo()
    importlib.reload(torch_internals)


def test_without_the_classes_the_public_ones_stand_in(bare_torch):
    assert isinstance(nn.ConvTranspose2d(1, 1, 1), bare_torch.ConvNd)
    assert isinstance(nn.BatchNorm3d(1), bare_torch.BatchNorm)
    assert isinstance(nn.InstanceNorm1d(1), bare_torch.RunningNorm)
    assert not isinstance(nn.Linear(1, 1), (bare_torch.ConvNd, bare_torch.RunningNorm))
    assert bare_torch.WeightNorm == bare_torch.SpectralNorm == ()


def test_without_a_dictionary_the_public_methods_are_read():
    read = torch_internals._stored("_gone", lambda module: module.named_parameters(recurse=False))
    assert list(read(nn.Linear(1, 2))) == ["weight", "bias"]
    assert torch_internals._stored("_gone", lambda module: ())(nn.Linear(1, 1)) == {}


def test_a_walk_sees_the_parameters_that_torch_sees():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LSTM(2, 3))
    assert [p.name for p in walk(net)] == [name for name, _ in net.named_parameters()]
