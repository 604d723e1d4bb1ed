"""Families of networks: names that stay, roles declared in forward order, refusals in one sentence."""

import re

import pytest
import torch
from torch import nn

from initlab.activations import ACTIVATIONS
from initlab.config import checks
from initlab.config.option_files import option_values
from initlab.errors import UserError
from initlab.initialize.procedures.roles import models_with_role
from initlab.models import MODELS, Dropout, build
from initlab.models.residual import branch_multiplier
from initlab.models.transformer import AttentionMixing, MeanOverTokens

SHAPES = {"mlp": (2, 5), "cnn": (2, 8, 6), "resmlp": (2, 5), "resnet": (2, 8, 6), "vit": (2, 8, 4), "gpt": (7,)}
OURS = [name for name, model in MODELS.items() if model.shape == "given"]


def made(name: str, depth: int = 2, width=6, act="tanh", **options) -> nn.Module:
    return build(name, depth=depth, width=width, act=act, input_shape=SHAPES[name], classes=3, **options)


def inputs(name: str, count: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    if MODELS[name].tokens:
        return torch.randint(3, (count, *SHAPES[name]), generator=draw).float()
    return torch.randn(count, *SHAPES[name], generator=draw)


@pytest.mark.parametrize("name", OURS)
def test_what_a_record_declares_of_norms_and_roles_is_so(name):
    record = MODELS[name]
    for norm in ("none", "batch", "layer", "pre", "post"):
        if norm in record.norms:
            made(name, norm=norm)
        else:
            with pytest.raises(UserError, match=r"model\.norm"):
                made(name, norm=norm)
    roles = {layer.role for layer in made(name).weight_layers}
    assert roles == {"hidden", "readout", *record.roles, *(() if "embedding" in record.roles else ("first",))}
    for role in roles:
        named = re.findall(r"\w+", models_with_role(role))
        assert (name in named) == (role in record.roles)


@pytest.mark.parametrize("name", OURS)
def test_refusals_of_configurations_name_the_norms_that_a_family_has(name):
    assert checks.MODEL_NORMS[name] == MODELS[name].norms


def test_configurations_may_leave_out_the_shape_of_models_that_may_have_their_own():
    assert set(checks.OWN_SHAPE_MODELS) == {name for name, record in MODELS.items() if record.shape != "given"}


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def weights(net: nn.Module) -> dict[str, tuple[int, ...]]:
    found = shapes(net)
    return {f"{layer.name}.weight": found[f"{layer.name}.weight"] for layer in net.weight_layers}


def varieties() -> list:
    """Every family with every norm, with and without dropout where it has one."""
    found = []
    for name in OURS:
        for norm in MODELS[name].norms:
            found.append(pytest.param(name, {"norm": norm}, id=f"{name}-{norm}"))
            if "dropout" in MODELS[name].options:
                found.append(pytest.param(name, {"norm": norm, "dropout": 0.3}, id=f"{name}-{norm}-dropout"))
    return found


def test_every_family_of_ours_is_tested():
    assert SHAPES.keys() == set(OURS)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), [(m, n) for m in OURS if m != "resnet" for n in MODELS[m].norms])
def test_a_deeper_network_keeps_every_name_and_shape(name, norm):
    shallow, deep = shapes(made(name, 2, norm=norm)), shapes(made(name, 5, norm=norm))
    assert shallow.items() <= deep.items()


@pytest.mark.parametrize("name", OURS)
def test_norm_and_dropout_leave_the_weights_names_and_shapes(name):
    plain = weights(made(name, 3, norm="none"))
    for options in (*({"norm": norm} for norm in MODELS[name].norms), {"norm": "none", "dropout": 0.5}):
        if options.keys() <= MODELS[name].options.keys():
            assert weights(made(name, 3, **options)) == plain


def test_names_are_those_of_the_design():
    assert weights(made("mlp", 2)) == {
        "hidden.0.weight": (6, 10),
        "hidden.1.weight": (6, 6),
        "readout.weight": (3, 6),
    }


def test_resnet_keeps_the_names_of_the_blocks_it_has():
    shallow, deep = made("resnet", 1), made("resnet", 3)
    assert weights(shallow).keys() <= weights(deep).keys()


# --- roles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), varieties())
def test_declared_layers_are_all_weights_in_forward_order(name, options):
    """Hooks on every module that owns a matrix or a kernel see just the declared ones, in that order."""
    net = made(name, 2, **options)
    order: list[str] = []
    for key, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            module.register_forward_hook(lambda m, args, out, key=key: order.append(key))
    net(inputs(name))
    assert [layer.name for layer in net.weight_layers] == order


@pytest.mark.parametrize(("name", "options"), varieties())
def test_a_layer_is_fed_by_what_it_says_and_feeds_its_activation(name, options):
    net = made(name, 2, act="relu", **options)
    modules = dict(net.named_modules())
    came_from: dict[int, str] = {}
    keep: list[torch.Tensor] = []  # an id is a tensor's own only while it lives

    def note(kind):
        def hook(module, args, out):
            came_from[id(out)] = kind
            keep.append(out)

        return hook

    sources: dict[str, str] = {}
    for key, module in modules.items():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(note("activation"))
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            module.register_forward_hook(note("norm"))
        elif isinstance(module, (Dropout, nn.Sequential)):  # pooling is a Sequential: it passes an activation on
            module.register_forward_hook(note("activation"))
        elif isinstance(module, nn.Flatten):
            module.register_forward_hook(note("data"))
        elif isinstance(module, AttentionMixing):
            module.register_forward_hook(note("unknown"))
        elif isinstance(module, MeanOverTokens):
            module.register_forward_hook(
                lambda m, args, out: note(came_from.get(id(args[0]), "residual"))(m, args, out)
            )
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_pre_hook(
                lambda m, args, key=key: sources.__setitem__(key, came_from.get(id(args[0]), "residual"))
            )
    x = inputs(name)
    came_from[id(x)] = "data"
    net(x)
    sources |= {"first": "data"} if MODELS[name].tokens else {}  # an embedding gets whole numbers, a copy of them
    expected = {layer.name: layer.fed_by for layer in net.weight_layers}
    if name == "resnet":  # the stream passes an activation after every block
        sources = {k: "activation" if v == "residual" else v for k, v in sources.items()}
    assert sources == expected
    for layer in net.weight_layers:
        assert layer.activation is None or isinstance(modules[layer.activation], nn.ReLU)


@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 4), ("cnn", 4), ("resmlp", 8), ("resnet", 22), ("vit", 20), ("gpt", 20)]
)
def test_depth_counts_hidden_layers_or_blocks(name, count):
    """Depth 3: 3 hidden layers and a readout; 3 blocks of two; 3 × 3 blocks of two, two shortcuts; 3 blocks of six."""
    assert len(made(name, 3).weight_layers) == count


def test_roles():
    assert [layer.role for layer in made("mlp", 3).weight_layers] == ["first", "hidden", "hidden", "readout"]
    assert [layer.role for layer in made("resmlp", 1).weight_layers] == ["first", "hidden", "branch_end", "readout"]
    roles = [layer.role for layer in made("resnet", 1).weight_layers]
    assert roles == ["first", *["hidden", "branch_end"], *["hidden", "branch_end", "shortcut"] * 2, "readout"]


@pytest.mark.parametrize("name", ["resmlp", "resnet", "vit", "gpt"])
def test_branches_are_numbered(name):
    numbers = [layer.branch for layer in made(name, 2).weight_layers if layer.role == "branch_end"]
    assert numbers == list(range(1, len(numbers) + 1))


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), varieties())
def test_outputs_have_the_classes(name, options):
    positions = SHAPES[name] if MODELS[name].tokens else ()
    assert made(name, 2, **options)(inputs(name)).shape == (4, *positions, 3)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", OURS)
def test_every_activation_fits_every_family(name, act):
    net = made(name, 1, act=act)
    assert torch.isfinite(net(inputs(name))).all()
    assert len({id(m) for m in net.modules()}) == len(list(net.modules()))


def test_a_list_of_widths_is_the_shape():
    net = build("mlp", depth=2, width=[256, 128], act="relu", input_shape=(1, 28, 28), classes=10)
    assert [tuple(p.shape) for p in net.parameters() if p.dim() == 2] == [(256, 784), (128, 256), (10, 128)]
    assert [c.out_channels for c in made("cnn", 3, width=[4, 5, 6]).hidden] == [4, 5, 6]


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_circular_convolution_does_not_know_the_border(padding):
    """Shifted images give shifted maps, which the mean pool cannot tell apart: with zeros at the border it can."""
    net = made("cnn", 2, padding=padding, downsample=0)
    x = inputs("cnn")
    equal = torch.allclose(net(x), net(x.roll((3, 2), (2, 3))), atol=1e-6)
    assert equal == (padding == "circular")


@pytest.mark.parametrize(("downsample", "sizes"), [(0, [8, 8, 8]), (1, [4, 4, 4]), (2, [4, 2, 2]), (9, [4, 2, 1])])
def test_downsampling_halves_the_maps(downsample, sizes):
    net = made("cnn", 3, downsample=downsample)
    heights: list[int] = []
    for layer in net.hidden:
        layer.register_forward_hook(lambda m, args, out: heights.append(out.shape[2]))
    net(inputs("cnn"))
    assert heights == sizes


@pytest.mark.parametrize("name", ["resmlp", "resnet", "vit", "gpt"])
def test_a_branch_of_multiplier_0_is_the_stream(name):
    """With α = 0 what the branches hold does not matter."""
    net = made(name, 2, norm="none", branch=0.0)
    before = net(inputs(name))
    with torch.no_grad():
        for layer in net.weight_layers:
            if layer.role == "branch_end":
                net.get_submodule(layer.name).weight.fill_(7.0)
    assert torch.equal(net(inputs(name)), before)


def test_a_causal_transformer_sees_no_later_character():
    net, x = made("gpt", 2), inputs("gpt")
    later = x.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 3
    before, after = net(x), net(later)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_attention_equals_torchs_own():
    attention = made("vit", 1, heads=3).blocks[0].attention.f.double()
    theirs = nn.MultiheadAttention(6, 3, batch_first=True).double()
    projections = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(attention.out.state_dict())
    x = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(x), theirs(x, x, x)[0])


def test_scores_are_divided_by_a_power_of_the_heads_width():
    q, k, v = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    halves, whole = AttentionMixing(1, power=0.5), AttentionMixing(1, power=1.0)
    torch.testing.assert_close(halves(q / 8**0.5, k, v), whole(q, k, v))


def test_deepnorm_multiplies_the_stream():
    net = made("vit", 8, residual="deepnorm", norm="none", branch=0.0)
    x = inputs("vit")
    stream = net.patches(net.first(x))
    torch.testing.assert_close(net(x), net.readout(stream.mean(1) * 2.0**16))


@pytest.mark.parametrize("name", ["resmlp", "resnet", "vit", "gpt"])
def test_learned_multipliers_are_one_for_every_branch(name):
    net = made(name, 2, branch="learned")
    branches = max(layer.branch for layer in net.weight_layers)
    scales = [p for key, p in net.named_parameters() if key.endswith(".res_scale")]
    assert [tuple(p.shape) for p in scales] == [(1,)] * branches
    assert all(float(p.detach()) == 1 for p in scales)


@pytest.mark.parametrize("name", ["resmlp", "resnet"])
def test_shifts_move_what_they_say(name):
    net = made(name, 1, shifts=True, norm="none")
    x = inputs(name)
    before = net(x)
    for key, shift in net.named_parameters():
        if key.endswith(".shift"):
            with torch.no_grad():
                shift.fill_(0.5)
            assert not torch.allclose(net(x), before)
            with torch.no_grad():
                shift.zero_()


@pytest.mark.parametrize(
    ("value", "blocks", "alpha"),
    [(0.3, 9, 0.3), ("inverse_sqrt_depth", 9, 1 / 3), ("inverse_depth", 9, 1 / 9)],
)
def test_branch_multiplier(value, blocks, alpha):
    assert branch_multiplier(value, blocks) == pytest.approx(alpha)


def test_dropout_is_keyed_by_its_generator():
    layer, x = Dropout(0.3), torch.ones(50, 40)
    layer.generator = torch.Generator().manual_seed(3)
    dropped = layer(x)
    expected = torch.rand(50, 40, generator=torch.Generator().manual_seed(3)) >= 0.3
    assert torch.equal(dropped, expected / (1 - 0.3))
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("name", [*OURS, "torchvision"])
def test_building_leaves_the_global_random_state(name):
    state = torch.get_rng_state()
    if name == "torchvision":
        build(name, input_shape=(1, 28, 28), classes=3, arch="squeezenet1_1")
    else:
        made(name)
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults():
    net = build("mlp", input_shape=(4,), classes=2)
    assert len(net.weight_layers) == 6
    assert [layer.out_features for layer in net.hidden] == [128] * 5
    assert isinstance(net.acts[0], nn.Tanh)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mpl", {}, ["model='mpl'", "mlp"]),
        ("mlp", {"depth": 0}, ["depth=0", "depth=3"]),
        ("mlp", {"depth": -2}, ["depth=-2", "depth=3"]),
        ("mlp", {"depth": 2.5}, ["depth=2.5", "depth=3"]),
        ("mlp", {"width": 0}, ["width=0", "width=128"]),
        ("mlp", {"width": -1}, ["width=-1", "width=128"]),
        ("mlp", {"width": 1.5}, ["width=1.5", "width=128"]),
        ("mlp", {"width": "wide"}, ["width='wide'", "width=128"]),
        ("mlp", {"width": [8, 8, 8]}, ["width=[8, 8, 8]", "depth=2", "depth=3"]),
        ("mlp", {"width": [8, 0]}, ["width=0", "width=128"]),
        ("mlp", {"act": "rleu"}, ["act=rleu", "relu"]),
        ("mlp", {"norm": "bacth"}, ["model.norm='bacth'", "batch"]),
        ("mlp", {"dropout": 1.0}, ["model.dropout=1.0", "model.dropout=0.1"]),
        ("mlp", {"dropout": -0.1}, ["model.dropout=-0.1", "model.dropout=0.1"]),
        ("mlp", {"dropout": "half"}, ["model.dropout='half'", "model.dropout=0.1"]),
        ("mlp", {"dropuot": 0.1}, ["model.dropuot", "dropout"]),
        ("mlp", {"kernel": 3}, ["model.kernel", "model=mlp", "model.norm"]),
        ("cnn", {"input_shape": (12,)}, ["model=cnn", "[12]", "mlp"]),
        ("cnn", {"padding": "mirror"}, ["model.padding='mirror'", "circular", "zeros"]),
        ("cnn", {"kernel": 4}, ["model.kernel=4", "3"]),
        ("cnn", {"kernel": 2.0}, ["model.kernel=2.0", "3"]),
        ("cnn", {"kernel": 9, "downsample": 5}, ["model.kernel=9", "3 positions", "model.kernel=3"]),
        ("cnn", {"downsample": -1}, ["model.downsample=-1", "2"]),
        ("resmlp", {"width": [8, 8]}, ["width=[8, 8]", "model=resmlp", "width=64"]),
        ("vit", {"heads": 4}, ["model.heads=4", "width=6", "model.heads=1"]),
        ("vit", {"patch": 3}, ["model.patch=3", "[2, 8, 4]", "model.patch=1"]),
        ("vit", {"norm": "layer"}, ["model.norm='layer'", "pre"]),
        ("vit", {"input_shape": (12,)}, ["model=vit", "[12]", "mlp"]),
        ("vit", {"residual": 0}, ["model.residual=0", "deepnorm"]),
        ("vit", {"attention_power": 2}, ["model.attention_power=2", "0.5"]),
        ("gpt", {"input_shape": (1, 8, 8)}, ["model=gpt", "[1, 8, 8]", "data=tiny_text"]),
        ("resmlp", {"branch": "depth"}, ["model.branch='depth'", "inverse_depth"]),
        ("resnet", {"width": [8, 8]}, ["width=[8, 8]", "model=resnet", "width=64"]),
        ("resnet", {"input_shape": (12,)}, ["model=resnet", "[12]", "resmlp"]),
        ("torchvision", {"arch": "resnet81"}, ["model.arch='resnet81'", "resnet18"]),
        ("torchvision", {"input_shape": (5,)}, ["model=torchvision", "[5]"]),
        ("torchvision", {"input_shape": (2, 8, 8)}, ["model=torchvision", "[2, 8, 8]"]),
        ("torchvision", {"depth": 3}, ["depth", "model=torchvision"]),
        ("torchvision", {"width": 3, "act": "relu"}, ["width", "act", "model=torchvision"]),
        ("custom", {"target": None}, ["model.target=package.module:function"]),
        ("custom", {"target": "math:hypot"}, ["model.target=math:hypot", "input_shape"]),
        ("custom", {"target": "builtins:dict"}, ["model.target=builtins:dict", "signature"]),
        ("custom", {"target": "types:SimpleNamespace"}, ["model.target=types:SimpleNamespace"]),
    ],
    ids=str,
)
def test_refusals_name_key_value_and_remedy(name, changes, words):
    shape = {} if name == "torchvision" else {"depth": 2, "width": 6, "act": "tanh"}
    asked = {**shape, "input_shape": SHAPES.get(name, (1, 28, 28)), "classes": 3, **changes}
    with pytest.raises(UserError) as refusal:
        build(name, **asked)
    text = str(refusal.value)
    for word in words:
        assert word in text
    assert "\n" not in text


# --- models from elsewhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_torchvisions_classifiers_by_name(arch, shape):
    net = build("torchvision", input_shape=shape, classes=7, arch=arch)
    assert net(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["resnet18", "vit_b_16"])
def test_a_size_is_what_images_are_brought_to(arch):
    with torch.device("meta"):
        net = build("torchvision", input_shape=(1, 28, 28), classes=7, arch=arch, size=48)
        seen: list[torch.Size] = []
        net.net.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert seen == [(2, 3, 48, 48)]


def every_classifier() -> list[str]:
    import torchvision.models

    return torchvision.models.list_models(module=torchvision.models)


@pytest.mark.slow
@pytest.mark.parametrize("arch", every_classifier())
def test_every_classifier_of_torchvision(arch):
    """Built and run on the meta device, as the check of a configuration builds it: shapes are all that is asked."""
    with torch.device("meta"):
        net = build("torchvision", input_shape=(1, 28, 28), classes=7, arch=arch)
        assert net.to("meta")(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


CUSTOM = """
from torch import nn

def plain(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], classes))

def shaped(input_shape, classes, depth, width, act, extra=1):
    layers = [nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], width)]
    for _ in range(depth):
        layers += [act.build(), nn.Linear(width, width * extra), nn.Linear(width * extra, width)]
    return nn.Sequential(*layers, nn.Linear(width, classes))

def anything(**options):
    module = nn.Linear(1, 1)
    module.options = sorted(options)
    return module
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file of the user's in the current directory, under a name of its own for every test."""
    name = f"models_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    return name


def custom(target: str, **options) -> nn.Module:
    return build("custom", depth=2, width=4, act="relu", input_shape=(2, 5), classes=3, target=target, **options)


def test_a_custom_model_takes_what_it_wants(mine):
    assert custom(f"{mine}:plain")(torch.zeros(4, 2, 5)).shape == (4, 3)
    assert sum(isinstance(m, nn.ReLU) for m in custom(f"{mine}:shaped").modules()) == 2
    assert custom(f"{mine}:shaped", extra=3)[3].out_features == 12
    assert custom(f"{mine}:anything", more=1).options == ["act", "classes", "depth", "input_shape", "more", "width"]


def test_an_option_that_a_custom_model_does_not_take_is_refused(mine):
    with pytest.raises(UserError, match=r"exrta"):
        custom(f"{mine}:shaped", exrta=3)


def test_options_of_a_record_are_those_of_its_option_file():
    for name in OURS:
        values = option_values("model", name)
        assert {key: values[key] for key in MODELS[name].options} == MODELS[name].options
