"""A class is trusted only where the shapes of its parameters agree with its sizes."""

import math
import re

import pytest
import torch
from torch import nn

import initlab
from initlab.audit import passed
from initlab.errors import UserError
from initlab.initialize import fill_
from initlab.inspection import walk

CLASSES = {
    "linear": lambda: nn.Linear(6, 4),
    "embedding": lambda: nn.Embedding(6, 4),
    "embedding_bag": lambda: nn.EmbeddingBag(6, 4),
    "padded embedding": lambda: nn.Embedding(6, 4, padding_idx=5),
    "bilinear": lambda: nn.Bilinear(6, 5, 4),
    "conv1d": lambda: nn.Conv1d(6, 4, 3),
    "conv2d": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "group norm": lambda: nn.GroupNorm(2, 6),
    "layer norm": lambda: nn.LayerNorm((2, 6)),
    "rms norm": lambda: nn.RMSNorm(6),
    "prelu": lambda: nn.PReLU(6),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "attention of other widths": lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=3, add_bias_kv=True),
    "lstm": lambda: nn.LSTM(6, 4, 2, bidirectional=True, proj_size=3),
    "gru": lambda: nn.GRU(6, 4),
    "rnn cell": lambda: nn.RNNCell(6, 4),
    "lstm cell": lambda: nn.LSTMCell(6, 4),
}
SHAPES = [(), (1,), (7,), (4, 6), (6, 4), (5, 5), (2, 4, 6), (3, 3, 3), (4, 3, 2, 2), (0, 4), (1, 1, 1, 1, 1, 1)]


class Net(nn.Module):
    """Uses every parameter of a layer, and never the layer's own forward."""

    def __init__(self, layer):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layer = layer

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return x + self.layer(x)


def odd(make, name, shape):
    """A subclass of a layer's class whose parameter `name` has another shape."""
    layer = make()

    def forward(self, x, *_, **__):
        return x * sum((p.sum() for p in self.parameters() if p.numel()), torch.zeros(())).tanh()

    kind = type(layer)
    layer.__class__ = type(f"Odd{kind.__name__}", (kind,), {"forward": forward})
    generator = torch.Generator().manual_seed(0)
    layer._parameters[name] = nn.Parameter(torch.randn(shape, generator=generator))
    return layer


CASES = [
    (key, name, shape)
    for key, make in CLASSES.items()
    for name, p in make().named_parameters(recurse=False)
    for shape in SHAPES
    if shape != tuple(p.shape)
]


def test_there_are_cases_of_every_class():
    assert {key for key, _, _ in CASES} == set(CLASSES)
    assert len(CASES) > 500


@pytest.mark.parametrize("key", CLASSES)
def test_a_class_whose_shapes_disagree_is_not_believed(key):
    for index, (_, name, shape) in enumerate(case for case in CASES if case[0] == key):
        net = nn.Sequential(nn.Linear(3, 4), odd(CLASSES[key], name, shape))
        found = {p.name: p for p in walk(net)}[f"1.{name}"]
        where = f"{key} {name} {shape}"
        assert (found.kind, found.blocks) == ("unknown", ()), where
        assert f"Odd{type(CLASSES[key]()).__name__} has a {name} of shape" in found.mismatch, where
        if index % 3:
            continue
        before = found.tensor.detach().clone()
        fill_(net, "he_normal")
        assert torch.equal(found.tensor, before), where
        fill_(net, "he_normal", skip="1.*")
        rows = initlab.audit(net, "he_normal").set_index("name")
        assert rows.scheme[f"1.{name}"] == "left alone", where
        assert passed(initlab.audit(net, "he_normal", skip="1.*")), where
        strict = initlab.audit(net, "he_normal", strict=True).set_index("name")
        assert "has a " in strict.reason[f"1.{name}"], where
        with pytest.raises(UserError, match=re.escape(f"Odd{type(CLASSES[key]()).__name__} has a")):
            fill_(net, "he_normal", strict=True)
        # Damage is seen all the same.
        if before.numel():
            with torch.no_grad():
                found.tensor.view(-1)[0] = math.nan
            broken = initlab.audit(net, "he_normal").set_index("name")
            assert not broken.ok[f"1.{name}"], where


@pytest.mark.parametrize("key", CLASSES)
def test_diagnose_takes_such_a_layer(key):
    for _, name, shape in [case for case in CASES if case[0] == key][::4]:
        net = Net(odd(CLASSES[key], name, shape))
        frame = initlab.diagnose(net, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        assert {"first", "(model)"} <= set(frame.layer), (key, name, shape)
        assert math.isfinite(frame.loc[frame.stat == "loss", "value"].item()), (key, name, shape)


@pytest.mark.parametrize("key", CLASSES)
def test_torchs_own_classes_and_plain_subclasses_are_believed(key):
    layer = CLASSES[key]()
    kinds = [(p.kind, p.blocks) for p in walk(layer)]
    assert "unknown" not in {kind for kind, _ in kinds}
    layer.__class__ = type("Own", (type(layer),), {})
    assert [(p.kind, p.blocks) for p in walk(layer)] == kinds


@pytest.mark.parametrize("key", CLASSES)
def test_a_class_without_the_sizes_is_not_believed(key):
    layer = CLASSES[key]()
    for name in [name for name, value in vars(layer).items() if not name.startswith("_")]:
        delattr(layer, name)
    for name in ("in_features", "num_features", "hidden_size", "mode", "embed_dim"):
        vars(layer).pop(name, None)
    found = list(walk(nn.Sequential(layer)))
    own = [p for p in found if "out_proj" not in p.name]
    assert {p.kind for p in own} == {"unknown"}
    assert all("lacks the sizes" in p.mismatch for p in own)
    fill_(nn.Sequential(nn.Linear(2, 2), layer), "he_normal")


def test_other_parameters_of_a_subclass_are_not_its_parents():
    norm = nn.BatchNorm1d(4)
    norm.mixture = nn.Parameter(torch.full((4, 3), 0.5))
    cell = type("MyCell", (nn.RNNCellBase,), {})(3, 4, bias=True, num_chunks=5)
    cell.weight_extra = nn.Parameter(torch.full((2,), 0.5))
    net = nn.Sequential(norm, cell, nn.Linear(2, 2))
    fill_(net, "he_normal")
    assert bool((norm.mixture == 0.5).all())
    assert bool((cell.weight_extra == 0.5).all())
    assert {p.kind for p in walk(cell)} == {"unknown"}
