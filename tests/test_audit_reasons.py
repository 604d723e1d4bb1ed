"""The audit finds initialization bugs that libraries and papers have shipped, each planted in a model that is right."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import initlab
from initlab.testing import assert_initialized


class Block(nn.Module):
    """A residual block as transformers have it: packed attention, then two dense layers."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 4)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(2 * width, width)


class Net(nn.Module):
    """One layer of every kind that fans are got wrong for."""

    def __init__(self, width=48, blocks=2):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 5)
        self.grouped = nn.Conv2d(width, 2 * width, 3, groups=4)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 7, groups=2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.wide = nn.Linear(width, 4 * width)
        self.head = nn.Linear(4 * width, 30)


CONVS = (nn.Conv2d, nn.ConvTranspose2d)
WEIGHTS = tuple(name for name, p in Net().named_parameters() if p.dim() > 1)


def weights(net):
    return [p for p in net.parameters() if p.dim() > 1]


def guard_that_never_matches(net):
    for module in net.modules():
        if isinstance(module, nn.Linear) and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def returned_value_discarded(net):
    for module in net.modules():
        if isinstance(module, (nn.Linear, *CONVS)):
            nn.init.kaiming_normal_(module.weight.detach().clone())


def one_layer_skipped(net):
    net.grouped.reset_parameters()


def uniform_without_sqrt_3(net):
    bound = math.sqrt(2 / net.wide.in_features)
    nn.init.uniform_(net.wide.weight, -bound, bound)


def fan_in_for_fan_out(net):
    nn.init.kaiming_normal_(net.wide.weight, mode="fan_out")


def fans_of_all_groups(net):
    layer = net.grouped
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / (layer.in_channels * 9)))


def stored_fans_of_a_transposed_convolution(net):
    nn.init.kaiming_normal_(net.up.weight)


def identical_blocks(net):
    net.blocks[1].load_state_dict(net.blocks[0].state_dict())


def one_seed_for_all(net):
    for name in ("wide.weight", "head.weight"):
        p = net.get_parameter(name)
        nn.init.kaiming_normal_(p, generator=torch.Generator().manual_seed(0))


def head_left_at_default(net):
    net.head.reset_parameters()


def erased_to_zeros(net):
    for p in net.parameters():
        nn.init.zeros_(p)


def erased_to_what_memory_held(net):
    for p in net.parameters():
        nn.init.constant_(p, math.nan)


def erased_by_a_later_rule(net):
    for p in weights(net):
        nn.init.normal_(p, 0, 0.02)


def gain_of_another_activation(net):
    nn.init.kaiming_normal_(net.wide.weight, nonlinearity="linear")


def sqrt_5_as_gain(net):
    nn.init.kaiming_normal_(net.stem.weight, a=math.sqrt(5))


def units_repeated(net):
    with torch.no_grad():
        net.wide.weight[1::2] = net.wide.weight[::2]


def biases_left(net):
    nn.init.uniform_(net.stem.bias, -0.1, 0.1)


# bug: how it is planted; the parameters that must be called broken and no other (None: nothing was ever initialized);
# what a reason must say
TOUCHED = "default of torch.nn.*never touched"
BUGS = {
    "a guard that never matches": (guard_that_never_matches, None, TOUCHED),
    "a discarded return value": (returned_value_discarded, None, TOUCHED),
    "one layer skipped": (one_layer_skipped, ["grouped.weight", "grouped.bias"], TOUCHED),
    "a uniform law without its sqrt 3": (uniform_without_sqrt_3, ["wide.weight"], "0.5[78].* × the promised"),
    "fan_in for fan_out": (
        fan_in_for_fan_out,
        ["wide.weight"],
        "0.(?:5|49).* × the promised.*fan_out in place of fan_in",
    ),
    "grouped fans x groups": (fans_of_all_groups, ["grouped.weight"], "0.4[89]|0.50.*fans of all groups"),
    "stored fans of a transposed convolution": (
        stored_fans_of_a_transposed_convolution,
        ["up.weight"],
        "fan_out in place|stored shape",
    ),
    "identical blocks": (
        identical_blocks,
        [name for name in WEIGHTS if name.startswith("blocks")],
        "the same draws as blocks",
    ),
    "one seed for all": (one_seed_for_all, ["wide.weight", "head.weight"], "the same draws as"),
    "a head left at default": (head_left_at_default, ["head.weight", "head.bias"], TOUCHED),
    "erased to zeros": (erased_to_zeros, [*WEIGHTS, *(f"blocks.{i}.norm.weight" for i in (0, 1))], "every value is 0"),
    "erased to what memory held": (erased_to_what_memory_held, [n for n, _ in Net().named_parameters()], "are NaN"),
    "erased by a later rule": (erased_by_a_later_rule, list(WEIGHTS), r"N\(0, 0.02²\)"),
    "gain of another activation": (gain_of_another_activation, ["wide.weight"], "a factor √2 is missing|lecun_normal"),
    "sqrt 5 as gain": (sqrt_5_as_gain, ["stem.weight"], "0.4.* × the promised"),
    "units repeated": (units_repeated, ["wide.weight"], "96 of 192 units repeat another"),
    "biases left": (biases_left, ["stem.bias"], "48 of 48 values are not the promised 0"),
}
SET_BY_TORCH = ("norm.weight", "norm.bias", "in_proj_bias", "out_proj.bias")
"""What torch sets to the constant that is promised."""

UNTOUCHED = [name for name, _ in Net().named_parameters() if not name.endswith(SET_BY_TORCH)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_where_it_is_and_named(net, bug):
    plant, names, words = BUGS[bug]
    if names is not None:
        initlab.initialize_(net, "he_normal", seed=3)
        assert bool(initlab.audit(net, "he_normal").ok.all())
    plant(net)
    rows = initlab.audit(net, "he_normal").set_index("name")
    broken = set(rows.index[~rows.ok])
    assert broken == set(UNTOUCHED if names is None else names)
    weighty = rows.loc[[name for name in (names or WEIGHTS) if name in broken]]
    assert weighty.reason.str.contains(words).any(), weighty.reason.tolist()
    if words == TOUCHED:
        assert weighty.default.all()
    with pytest.raises(AssertionError, match="not as promised"):
        assert_initialized(net, "he_normal")


def test_packed_projections_treated_as_one_matrix_are_found(net):
    initlab.initialize_(net, "glorot_uniform")
    for block in net.blocks:
        nn.init.xavier_uniform_(block.attn.in_proj_weight)
    rows = initlab.audit(net, "glorot_uniform").set_index("name")
    assert set(rows.index[~rows.ok]) == {f"blocks.{i}.attn.in_proj_weight" for i in (0, 1)}
    # torch's own module does just that, so that is what it looks like.
    said = rows.reason["blocks.0.attn.in_proj_weight"]
    assert all(f"{label}: std" in said for label in "qkv")
    assert "default of torch.nn.MultiheadAttention" in said


def test_a_missing_sqrt_3_is_named(net):
    initlab.initialize_(net, "he_uniform")
    with torch.no_grad():
        net.wide.weight.div_(math.sqrt(3))
    rows = initlab.audit(net, "he_uniform").set_index("name")
    assert rows.index[~rows.ok].tolist() == ["wide.weight"]
    assert "√3 is missing" in rows.reason["wide.weight"]


def test_the_wrong_projection_scaled_is_found(net):
    promise = {"blocks.*.proj.weight": ("normal", {"std": 0.01}), "*": ("normal", {"std": 0.02})}
    initlab.initialize_(net, promise)
    assert bool(initlab.audit(net, promise).ok.all())
    for block in net.blocks:
        nn.init.normal_(block.fc.weight, 0, 0.01)
        nn.init.normal_(block.proj.weight, 0, 0.02)
    rows = initlab.audit(net, promise).set_index("name")
    assert set(rows.index[~rows.ok]) == {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("fc", "proj")}
    assert "0.5" in rows.reason["blocks.0.fc.weight"]
    assert "is 2" in rows.reason["blocks.0.proj.weight"] or "is 1.99" in rows.reason["blocks.0.proj.weight"]


def test_layers_outside_the_initialized_submodule_are_found(net):
    initlab.initialize_(net.blocks, "he_normal")
    rows = initlab.audit(net, "he_normal").set_index("name")
    assert set(rows.index[~rows.ok]) == {name for name in UNTOUCHED if not name.startswith("blocks")}


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_weight_written_where_the_next_forward_recomputes_it_is_found(norm):
    net = nn.Sequential(norm(nn.Linear(60, 50)), nn.ReLU(), nn.Linear(50, 40))
    initlab.initialize_(net, "he_normal")
    assert_initialized(net, "he_normal")
    net = nn.Sequential(norm(nn.Linear(60, 50)), nn.ReLU(), nn.Linear(50, 40))
    with torch.no_grad():
        nn.init.kaiming_normal_(net[0].weight)
        nn.init.zeros_(net[0].bias)
    initlab.initialize_(net, "he_normal", only="2.*")
    net(torch.randn(2, 60))
    rows = initlab.audit(net, "he_normal").set_index("name")
    assert rows.index[~rows.ok].tolist() == ["0.weight"]


def test_weights_written_before_to_empty_are_found():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 40))
    initlab.initialize_(net, "he_normal", device="cpu")
    assert_initialized(net, "he_normal")
    net.to_empty(device="cpu")
    with torch.no_grad():  # what the allocator hands out is not for a test to rely on
        for p in net.parameters():
            p.zero_()
    rows = initlab.audit(net, "he_normal").set_index("name")
    assert rows.index[~rows.ok].tolist() == ["0.weight", "2.weight"]


@pytest.mark.parametrize("scheme", ["orthogonal", "sparse", "identity", "looks_linear", "torch_default", "sinusoidal"])
def test_schemes_without_a_plain_law_are_told_from_each_other_and_from_a_default(scheme):
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    initlab.initialize_(net, scheme, seed=1)
    assert_initialized(net, scheme)
    with torch.no_grad():
        net[2].weight.mul_(1.2)
    assert not initlab.audit(net, scheme).ok[2]
    nn.init.kaiming_normal_(net[2].weight)
    assert not initlab.audit(net, scheme).ok[2]


def test_tied_parameters_are_checked_once_under_both_names():
    net = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 50, bias=False))
    net[1].weight = net[0].weight
    initlab.initialize_(net, ("normal", {"std": 0.02}))
    (row,) = initlab.audit(net, ("normal", {"std": 0.02})).itertuples()
    assert (row.name, row.tied, row.ok) == ("0.weight", "1.weight", True)
