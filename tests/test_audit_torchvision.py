"""Every classifier of torchvision and every layer of torch with packed weights: initialize, account for all, audit."""

import gc

import pytest
import torch
from torch import nn

import initlab
from initlab.testing import assert_initialized

try:
    from torchvision import models as zoo
except (ImportError, RuntimeError):  # torch and torchvision of different builds
    zoo = None

CLASSIFIERS = zoo.list_models(module=zoo) if zoo is not None else []
COMPUTE_AS_BUILT = ("regnet", "swin", "maxvit")
"""Families whose constructors compute on their tensors, or whose buffers no reset computes: not on the meta device."""

FAST = (
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)
SMALL = {
    "vit": lambda: zoo.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10),
    "swin": lambda: zoo.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10),
    "swin v2": lambda: zoo.SwinTransformer(
        [4, 4],
        32,
        [2, 2],
        [2, 4],
        [4, 4],
        num_classes=10,
        block=zoo.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=zoo.swin_transformer.PatchMergingV2,
    ),
    "maxvit": lambda: zoo.MaxVit((64, 64), 32, 4, [32, 64], [1, 1], 16, 0.1, num_classes=10),
    "convnext": lambda: zoo.ConvNeXt([zoo.convnext.CNBlockConfig(32, 64, 1), zoo.convnext.CNBlockConfig(64, None, 1)]),
}
LAYERS = {
    "transformer": lambda: nn.Transformer(48, 4, 2, 2, 96, batch_first=True),
    "transformer without biases": lambda: nn.Transformer(48, 4, 1, 1, 96, bias=False),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 96), 3, enable_nested_tensor=False),
    "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(48, 4, 96), 2),
    "attention, packed": lambda: nn.MultiheadAttention(64, 4),
    "attention, unpacked": lambda: nn.MultiheadAttention(64, 4, kdim=40, vdim=24),
    "attention with bias_k": lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True, add_zero_attn=True),
    "lstm": lambda: nn.LSTM(40, 50, num_layers=2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(40, 50, proj_size=20),
    "gru": lambda: nn.GRU(40, 50, num_layers=2),
    "rnn": lambda: nn.RNN(40, 50),
    "cells": lambda: nn.ModuleList([nn.LSTMCell(20, 30), nn.GRUCell(20, 30), nn.RNNCell(20, 30)]),
    "bilinear": lambda: nn.Bilinear(20, 30, 10),
    "embedding": lambda: nn.ModuleList([nn.Embedding(50, 20, padding_idx=0), nn.EmbeddingBag(50, 20)]),
}
SCHEMES = ("he_normal", "glorot_uniform", "orthogonal", "torch_default")


SCHEMES_OF_THE_REST = ("normal", "zeros", "ones", "constant", "forget_bias")
OTHER_MATRICES = ("token", "position", "relative_position", "layer_scale", "temperature", "bias")


def not_accounted_for(net, scheme, seed=0, **arguments):
    """Initialize, and return the parameters that the rows or the audit miss, or that are not what they should be."""
    rows = initlab.initialize_(net, scheme, seed=seed, device="cpu", measure=False, strict=True, **arguments)
    audited = initlab.audit(net, scheme, strict=True, **arguments)
    if not rows.name.tolist() == audited.name.tolist() == [name for name, _ in net.named_parameters()]:
        return ["the rows are not the parameters in their order"]
    found = ["something is on the meta device"] * any(t.is_meta for t in (*net.parameters(), *net.buffers()))
    for row, seen, p in zip(rows.itertuples(), audited.itertuples(), net.parameters(), strict=True):
        if row.scheme not in (scheme, *SCHEMES_OF_THE_REST):
            found.append(f"{row.name}: {row.scheme}")
        elif p.dim() > 1 and row.scheme != scheme and row.kind not in OTHER_MATRICES:
            found.append(f"{row.name}: a matrix called {row.kind} with {row.scheme}")
        elif not seen.ok:
            found.append(f"{row.name}: {seen.reason}")
    return found


def classifier(name):
    home = "cpu" if name.startswith(COMPUTE_AS_BUILT) else "meta"
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device(home):
        return zoo.get_model(name, weights=None, **options)


@pytest.mark.skipif(zoo is None, reason="no torchvision that works with this torch")
@pytest.mark.parametrize("name", FAST)
def test_torchvision_classifiers(name):
    assert not_accounted_for(classifier(name), "he_normal", seed=1) == []


@pytest.mark.skipif(zoo is None, reason="no torchvision that works with this torch")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SMALL)
def test_small_ones_of_the_large_families(name, scheme):
    net = SMALL[name]()
    assert not_accounted_for(net, scheme, seed=2) == []
    net.eval()
    with torch.no_grad():
        size = 64 if name == "maxvit" else 32
        assert bool(net(torch.randn(2, 3, size, size)).isfinite().all())


@pytest.mark.slow
@pytest.mark.skipif(zoo is None, reason="no torchvision that works with this torch")
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in FAST])
@pytest.mark.timeout(1200)
def test_every_other_torchvision_classifier(name):
    try:
        assert not_accounted_for(classifier(name), "he_normal", seed=1) == []
    finally:
        gc.collect()


def test_no_classifier_of_torchvision_is_forgotten():
    assert zoo is None or (len(CLASSIFIERS) >= 80 and set(FAST) <= set(CLASSIFIERS))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_torch_layers_with_packed_weights(name, scheme):
    assert not_accounted_for(LAYERS[name](), scheme, seed=3) == []


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_torch_layers_in_sixteen_bits(name, dtype):
    net = LAYERS[name]().to(dtype)
    assert all(p.dtype == dtype for p in net.parameters())
    assert not_accounted_for(net, "he_normal", seed=4) == []


def test_gates_get_their_own_biases():
    net = nn.ModuleList([nn.LSTM(30, 40), nn.GRU(30, 40)])
    assert not_accounted_for(net, "orthogonal", forget_bias=1.0) == []
    forget = net[0].bias_ih_l0.detach()[40:80] + net[0].bias_hh_l0.detach()[40:80]
    assert forget.tolist() == [1.0] * 40
    initlab.initialize_(net, "orthogonal", chrono=100)
    assert_initialized(net, "orthogonal", chrono=100)
    assert not initlab.audit(net, "orthogonal", forget_bias=1.0).ok.all()


@pytest.mark.parametrize("scheme", sorted(initlab.SCHEMES))
def test_an_embedding_keeps_its_padding_zero_under_every_scheme(scheme):
    table = nn.Embedding(31, 20, padding_idx=7)
    if initlab.initialize.scheme_refusal(table, scheme):
        pytest.skip(f"{scheme} cannot fill an embedding of 20 by 30")
    initlab.initialize_(table, scheme)
    assert not table.weight[7].any()
    assert_initialized(table, scheme)
    with torch.no_grad():
        table.weight[7] = table.weight[8] + 1
    (reason,) = initlab.audit(table, scheme).reason
    assert reason == "the row of padding_idx is not zero"
