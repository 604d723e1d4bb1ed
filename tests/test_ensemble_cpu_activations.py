"""Activations without autograd equal torch's, numpy's tanh is tanh, and the processor decides who computes it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from initlab.ensemble.cpu import activations, processor


@pytest.mark.parametrize("kind", activations.ACTIVATION_KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kernel_equals_autograd(kind, dtype):
    """And torch still has the operators of `torch.ops.aten` that it calls."""
    act, kernel = kind(), activations.ACTIVATION_KERNELS[kind]
    z = torch.linspace(-30, 30, 4001, dtype=dtype).requires_grad_()
    delta = torch.linspace(1, 2, 4001, dtype=dtype)
    expected = act(z)
    (slope,) = torch.autograd.grad(expected, z, delta)
    saved = z.detach().clone()
    y = saved if kernel.in_place else torch.empty_like(saved)
    kernel.forward(saved, y, act)
    kernel.backward(delta, y if kernel.in_place else saved, act)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(delta, slope, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("family", [0, 26])
def test_tanh_is_tanh_wherever_an_entry_lies(family, monkeypatch):
    monkeypatch.setattr(activations, "amd_family", lambda: family)
    monkeypatch.setenv("INITLAB_FAST_CPU", "1")
    tanh = activations.fast_activation(nn.Tanh())
    x = torch.cat([torch.linspace(-12, 12, 10_001), torch.logspace(-30, -1, 1001), torch.tensor([0.0, torch.inf])])
    expected, y = x.double().tanh(), tanh(x)
    assert ((y - expected).abs() <= 1.2e-7 * expected.abs()).all()
    in_place = x.clone()
    activations.tanh_(in_place)
    assert torch.equal(in_place, y)
    for start in (1, 5, 13):
        assert torch.equal(tanh(x[start : start + 37].clone()), y[start : start + 37])
        assert torch.equal(tanh(x[start:]), y[start:])
    assert torch.equal(tanh(x[1:10_001].view(100, 100).t()), y[1:10_001].view(100, 100).t())
    assert tanh(torch.tensor([torch.nan])).isnan().all()
    z = torch.linspace(-3, 3, 50, requires_grad=True)
    (slope,) = torch.autograd.grad(tanh(z).sum(), z)
    np.testing.assert_allclose(slope, 1 - np.tanh(np.linspace(-3, 3, 50)) ** 2, rtol=1e-4, atol=1e-6)


def test_other_activations_are_torchs():
    act = nn.ReLU()
    assert activations.fast_activation(act) is act


@pytest.mark.parametrize(
    ("vendor", "family", "expected"),
    [
        ("AuthenticAMD", 23, 23),
        ("AuthenticAMD", 26, 26),
        ("GenuineIntel", 6, 0),
        ("GenuineIntel", 26, 0),
        (None, None, 0),
    ],
)
def test_the_processor_is_read_as_linux_describes_it(vendor, family, expected, tmp_path, monkeypatch):
    described = tmp_path / "cpuinfo"
    if vendor:
        described.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n" * 2)
    monkeypatch.setattr(processor, "CPUINFO", described)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert processor.amd_family.__wrapped__() == expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert processor.amd_family.__wrapped__() == 0


RULE = """
import torch
from unittest.mock import patch
from initlab.ensemble.cpu import activations, openblas, processor
x = torch.empty(2, 128, 128)
print(openblas.fast_product(x, x) is not None, activations.numpy_tanh_is_faster(x), openblas.sgemm() is not None)
"""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"INITLAB_FAST_CPU": "0"}, ("False", "False", None)),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, ("False", None, "False")),
    ],
)
def test_settings_switch_the_fast_path_off(settings, expected):
    environment = {name: value for name, value in os.environ.items() if name not in ("INITLAB_FAST_CPU",)}
    done = subprocess.run(
        [sys.executable, "-c", RULE], env={**environment, **settings}, capture_output=True, text=True, check=True
    )
    for printed, wanted in zip(done.stdout.split(), expected, strict=True):
        assert wanted is None or printed == wanted, done.stdout
