"""Fans against a brute-force count of connections, and what a parameter is called."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from initlab.inspection import Fans, canonical_names, walk
from initlab.schemes import SCHEMES

CONVOLUTIONS = {
    "dense": (nn.Linear(7, 5), (7,)),
    "bilinear rows": (nn.Linear(12, 3, bias=False), (12,)),
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (3, 9)),
    "conv2d": (nn.Conv2d(2, 3, (3, 5), padding=(1, 2), padding_mode="circular"), (2, 8, 8)),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5, 5)),
    "dilated": (nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="circular"), (2, 9, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"), (4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="circular"), (4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3), (3, 9, 9)),
    "transposed grouped": (nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 12)),
    "transposed strided": (nn.ConvTranspose2d(3, 2, 4, stride=2), (3, 8, 8)),
    "transposed uneven": (nn.ConvTranspose1d(3, 2, 3, stride=2), (3, 16)),
}


def count_connections(module: nn.Module, shape: tuple[int, ...], reach: int = 6) -> tuple[float, float]:
    """Count the non-zero entries of the Jacobian per output and per input, over units away from the border."""
    module = module.double()
    with torch.no_grad():
        module.weight.uniform_(1, 2)
    probe = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x[None])[0], probe[0], vectorize=True)
    rank = jacobian.dim() - len(shape)
    connected = (jacobian != 0).double()
    out, into = connected.shape[:rank], connected.shape[rank:]
    enter = connected.flatten(rank).sum(-1).view(out)
    leave = connected.flatten(0, rank - 1).sum(0).view(into)
    wraps = getattr(module, "padding_mode", "zeros") == "circular"
    return tuple(float(_interior(count, 0 if wraps else reach // 2).mean()) for count in (enter, leave))


def _interior(count: torch.Tensor, margin: int) -> torch.Tensor:
    for axis in range(1, count.dim()):
        size = count.shape[axis]
        # An even number of units in the middle, so that every phase of a stride of 2 is met equally often.
        keep = max((size - 2 * margin) // 2 * 2, 2) if margin else size
        count = count.narrow(axis, (size - keep) // 2, keep)
    return count


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_fans_are_the_connections_that_a_brute_force_count_finds(kind):
    module, shape = CONVOLUTIONS[kind]
    weight = next(walk(module))
    enter, leave = count_connections(module, shape)
    stride = math.prod(getattr(module, "stride", (1,))) if weight.kind == "conv" else 1
    assert (weight.fans.fan_in, weight.fans.fan_out) == (enter, leave * stride)


def test_a_strided_convolution_counts_fan_out_as_at_stride_one():
    module = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular")
    enter, leave = count_connections(module, (2, 8, 8))
    fans = next(walk(module)).fans
    assert (fans.fan_in, fans.fan_out) == (enter, 4 * leave)


FORWARD = {
    "dense": (nn.Linear(400, 300), (400,)),
    "grouped": (nn.Conv2d(64, 96, 3, groups=4, bias=False), (64, 8, 8)),
    "depthwise": (nn.Conv2d(256, 512, 3, groups=256, bias=False), (256, 10, 10)),
    "transposed": (nn.ConvTranspose2d(64, 48, 3, stride=2, bias=False), (64, 17, 17)),
    "bilinear": (nn.Bilinear(20, 30, 200, bias=False), None),
}


@pytest.mark.parametrize("kind", FORWARD)
def test_a_gain_of_one_keeps_the_second_moment(kind):
    module, shape = FORWARD[kind]
    generator = torch.Generator().manual_seed(1)
    weight = next(walk(module))
    for block in weight.blocks:
        SCHEMES["lecun_normal"].fill_(block.view(weight.tensor), fans=block.fans, generator=generator)
    if kind == "bilinear":
        inputs = [torch.randn(200, n, generator=generator) for n in (20, 30)]
    else:
        inputs = [torch.randn(8, *shape, generator=generator)]
    with torch.no_grad():
        out = module(*inputs) if kind != "dense" else module(inputs[0]) - module.bias
    for axis in range(2, out.dim()):
        out = out.narrow(axis, 2, (out.shape[axis] - 4) // 2 * 2)
    # The spread of the ratio is about √(2/number of weights): under 3 % here; 15 % is more than five of those.
    assert float(out.square().mean()) == pytest.approx(1, rel=0.15)


def test_packed_weights_are_blocks_with_fans_of_their_own():
    attention = {p.name: p for p in walk(nn.MultiheadAttention(8, 2))}
    blocks = attention["in_proj_weight"].blocks
    assert [(b.label, b.fans) for b in blocks] == [(label, Fans(8, 8)) for label in "qkv"]
    rows = torch.arange(24.0)[:, None].expand(24, 8).contiguous()
    assert [float(b.view(rows)[0, 0]) for b in blocks] == [0, 8, 16]
    lstm = {p.name: p for p in walk(nn.LSTM(5, 3))}
    assert [(b.label, b.fans) for b in lstm["weight_ih_l0"].blocks] == [(gate, Fans(5, 3)) for gate in "ifgo"]
    assert lstm["bias_hh_l0"].blocks[3].shape == (3,)


def test_blocks_of_what_is_stored_input_first_show_it_output_first():
    weight = next(walk(nn.ConvTranspose2d(4, 6, 3, groups=2)))
    stored = torch.arange(4 * 3 * 9.0).view(4, 3, 3, 3)
    first, second = (block.view(stored) for block in weight.blocks)
    assert first.shape == second.shape == (3, 2, 3, 3)
    assert torch.equal(first[2, 1], stored[1, 2])
    assert torch.equal(second[2, 1], stored[3, 2])
    table = next(walk(nn.Embedding(5, 2)))
    assert torch.equal(table.blocks[0].view(stored[0, :, :2, 0].new_ones(5, 2).cumsum(0))[0], torch.arange(1, 6.0))


def test_every_block_is_a_view_and_the_blocks_cover_the_parameter_once():
    modules = [m for m, _ in CONVOLUTIONS.values()] + [nn.GRU(4, 3), nn.Embedding(5, 2), nn.Bilinear(2, 3, 4)]
    for module in modules:
        for parameter in walk(module):
            counted = torch.zeros(parameter.shape)
            for block in parameter.blocks:
                block.view(counted).add_(1)
            assert not parameter.blocks or bool((counted == 1).all()), (module, parameter.name)


KINDS = {
    "norm": (nn.BatchNorm2d(3), {"weight": "norm_scale", "bias": "norm_shift"}),
    "layer norm": (nn.LayerNorm(3), {"weight": "norm_scale", "bias": "norm_shift"}),
    "rms norm": (nn.RMSNorm(3), {"weight": "norm_scale"}),
    "group norm": (nn.GroupNorm(1, 3), {"weight": "norm_scale", "bias": "norm_shift"}),
    "prelu": (nn.PReLU(), {"weight": "activation"}),
    "embedding": (nn.Embedding(4, 3), {"weight": "embedding"}),
    "lazy": (nn.LazyLinear(3), {"weight": "lazy", "bias": "lazy"}),
    "weight norm": (
        parametrizations.weight_norm(nn.Linear(2, 3, bias=False)),
        {"weight": "dense"},
    ),
    "spectral norm": (
        parametrizations.spectral_norm(nn.Linear(2, 3, bias=False)),
        {"weight": "parametrized"},
    ),
    "own": (nn.ParameterList([nn.Parameter(torch.zeros(2))]), {"0": "unknown"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    module, expected = KINDS[kind]
    assert {p.name: p.kind for p in walk(module)} == expected


def test_the_meta_device_shows_the_same_fans():
    with torch.device("meta"):
        meta = nn.Conv2d(4, 6, 3, groups=2)
    assert [p.fans for p in walk(meta)] == [p.fans for p in walk(nn.Conv2d(4, 6, 3, groups=2))]


def test_tied_parameters_come_once_with_their_aliases():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 3)
            self.head = nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight
            self.copy = nn.Linear(7, 3, bias=False)
            self.copy.weight = nn.Parameter(self.table.weight.detach().t())

    (parameter,) = walk(Tied())
    assert (parameter.name, parameter.aliases) == ("table.weight", ("head.weight", "copy.weight"))


def test_a_module_at_two_places_gives_its_parameters_once():
    layer = nn.Linear(3, 3, bias=False)
    (parameter,) = walk(nn.Sequential(layer, nn.ReLU(), layer))
    assert (parameter.name, parameter.aliases) == ("0.weight", ("2.weight",))


def test_wrappers_do_not_change_names():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    plain = [p.name for p in walk(net)]
    assert [p.name for p in walk(nn.DataParallel(net))] == plain
    compiled = torch.compile(net, backend="eager")
    assert [p.name for p in walk(compiled)] == plain
    assert [p.name for p in walk(nn.DataParallel(compiled))] == plain


def test_a_layer_called_module_keeps_its_name_among_others():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(1, 1, bias=False)
            self.weight = nn.Parameter(torch.zeros(1))

    assert sorted(canonical_names(Net()).values()) == ["module.weight", "weight"]
