"""Bad input: one sentence with the remedy, and the module left exactly as it was; rules, dry runs, only and skip."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import initlab
from initlab.errors import UserError
from initlab.schemes import custom_scheme


class Doubled(nn.Module):
    """A parametrization without a way back."""

    def forward(self, weight):
        return 2 * weight


class Symmetric(nn.Module):
    """A parametrization with a way back that cannot hold an arbitrary matrix."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).T

    def right_inverse(self, weight):
        return weight.triu()


class Table(nn.Module):
    """A buffer that its constructor computes and no reset does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.arange(4.0), persistent=False)
        self.layer = nn.Linear(4, 4)


class Own(nn.Module):
    """A parameter of a kind that nobody can know."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mystery = nn.Parameter(torch.full((2, 3, 5), 7.0))


def net():
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.PReLU(), nn.Linear(5, 4))
    module(torch.randn(8, 4))
    return module


def beside(module):
    """A module that cannot be initialized, after one that can."""
    return nn.Sequential(net(), module)


def on_meta(make):
    with torch.device("meta"):
        return make()


def symmetric():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def doubled():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def quantized():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


def coded():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


# case: module, arguments, words of what is wrong and of the remedy
MODULES = {
    "lazy": (lambda: beside(nn.LazyLinear(4)), {}, ("1.weight", "lazy", "pass one batch through the module first")),
    "spectral norm": (
        lambda: beside(parametrizations.spectral_norm(nn.Linear(4, 4))),
        {},
        ("1.weight", "spectral_norm divides"),
    ),
    "old spectral norm": (lambda: beside(nn.utils.spectral_norm(nn.Linear(4, 4))), {}, ("1.weight", "spectral_norm")),
    "no way back": (lambda: beside(doubled()), {}, ("1.weight", "Doubled has no right_inverse", "before")),
    "cannot obey": (lambda: beside(symmetric()), {}, ("1.weight", "Symmetric cannot hold an init=he_normal", "skip=")),
    "orthogonal parametrization": (
        lambda: beside(parametrizations.orthogonal(nn.Linear(4, 4))),
        {},
        ("1.weight", "cannot hold|takes no", "skip="),
    ),
    "int8": (lambda: beside(quantized()), {}, ("1.weight", "quantized", "before it is quantized")),
    "float8": (lambda: beside(coded()), {}, ("1.weight", "quantized", "before it is quantized")),
    "meta buffer": (lambda: on_meta(Table), {}, ("angles", "meta device", "reset_parameters")),
    "meta, left alone": (lambda: on_meta(Own), {}, ("mystery", "meta device", "a rule, a kind, or its values")),
    "meta, skipped": (lambda: on_meta(net), {"skip": "3.*"}, ("3.weight", "meta device")),
    "unknown kind": (Own, {"strict": True}, ("mystery", "does not know", "kinds=|skip=")),
    "kind that cannot be": (Own, {"kinds": {"mystery": "dense"}}, ("mystery", "2x3x5", "another kind")),
    "kind unknown": (Own, {"kinds": {"mystery": "dens"}}, ("dens is unknown", "Did you mean 'dense'")),
    "unmatched": (net, {"scheme": {"0.*": "he_normal"}, "strict": True}, ("matches no rule", "'\\*' as the last")),
    "rule without match": (net, {"scheme": {"9.*": "zeros", "*": "he_normal"}}, ("rules: '9.\\*' matches no",)),
    "only without match": (net, {"only": "0.wieght"}, ("only: '0.wieght' matches no", "Did you mean '0.weight'")),
    "skip without match": (net, {"skip": ["head"]}, ("skip: 'head' matches no parameter",)),
    "role without match": (net, {"roles": {"first": "stem"}}, ("roles: first=stem matches no",)),
    "empty rules": (net, {"scheme": {}}, ("rules is empty", "'\\*': 'he_normal'")),
    "unknown scheme in a rule": (net, {"scheme": {"*": "he_norml"}}, ("he_norml is unknown", "he_normal")),
    "unknown activation": (net, {"act": "geluu"}, ("act=geluu is unknown", "gelu")),
    "unknown gain": (net, {"gain": "forwards"}, ("init.gain=forwards", "forward")),
    "gain inf": (net, {"gain": float("inf")}, ("init.gain=inf must be a positive number",)),
    "a seed that is no number": (net, {"seed": 1.5}, ("seed=1.5 must be a whole number",)),
    "a negative seed": (net, {"seed": -1}, ("seed=-1 must be a whole number from 0", "for example seed=0")),
    "a function for a scheme": (
        net,
        {"scheme": nn.init.kaiming_normal_},
        ("init is kaiming_normal_, a function", "custom_scheme"),
    ),
    "a list of parameters": (
        net,
        {"parameters": ["mode"]},
        ("parameters=\\['mode'\\] must be a mapping", "for example"),
    ),
    "a list of roles": (net, {"roles": ["first"]}, ("roles=\\['first'\\] must be a mapping", "for example")),
    "gates where there are none": (net, {"forget_bias": 1.0}, ("forget_bias=1.0 needs an", "leave it out")),
    "both gates": (lambda: nn.LSTM(4, 4), {"forget_bias": 1.0, "chrono": 9}, ("same biases", "give one")),
    "a scheme that cannot": (net, {"scheme": "delta_orthogonal"}, ("needs convolutions", "init=orthogonal")),
    "a scheme that cannot fill the last": (
        lambda: beside(nn.Linear(4, 3)),
        {"scheme": "looks_linear"},
        ("init=looks_linear cannot fill", "pairs"),
    ),
    "a bad kind for a whole mixture": (
        Own,
        {"scheme": {"mystery": "orthogonal", "*": "he_normal"}},
        ("needs fans and mystery", "kinds="),
    ),
}


def state(module):
    """Everything there is to change: identity, values, versions and flags of parameters and buffers."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: (id(t), t._version, t.requires_grad, t.device, None if _no_values(t) else t.detach().clone())
        for name, t in tensors.items()
    }


def _no_values(tensor):
    return tensor.is_meta or nn.parameter.is_lazy(tensor)


def same(before, after):
    return before.keys() == after.keys() and all(
        a[:4] == b[:4] and (a[4] is None or torch.equal(a[4].double(), b[4].double()))
        for a, b in zip(before.values(), after.values(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:.*(spectral_norm|Lazy modules).*")
@pytest.mark.parametrize("case", MODULES)
def test_one_sentence_the_remedy_and_the_module_as_it_was(case):
    make, arguments, words = MODULES[case]
    module = make()
    before, modules, mode = state(module), [*module.modules()], torch.get_rng_state()
    for match in words:
        with pytest.raises(UserError, match=match) as caught:
            initlab.initialize_(module, **({"scheme": "he_normal"} | arguments))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert len(message) < 400
    assert same(before, state(module))
    assert all(a is b for a, b in zip(modules, module.modules(), strict=True))
    assert torch.equal(mode, torch.get_rng_state())


@pytest.mark.parametrize("scheme", ["he_normal", "lsuv", "gpt2"])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ([nn.Linear(2, 2)], "this is list: give the module that holds the parameters"),
        (nn.Linear(2, 2).state_dict(), "this is OrderedDict"),
        (nn.Linear, r"this is the class Linear: build one, Linear\(…\)"),
    ],
)
def test_what_is_no_module_is_refused(scheme, module, words):
    with pytest.raises(UserError, match=words):
        initlab.initialize_(module, scheme)


def test_an_empty_module_has_no_rows():
    rows = initlab.initialize_(nn.Sequential(), "he_normal")
    assert len(rows) == 0
    assert rows[rows["name"].str.endswith("weight")]["fingerprint"].tolist() == []
    assert bool(initlab.audit(nn.Sequential(), "he_normal").ok.all())


def test_what_fails_late_in_a_users_own_scheme_changes_nothing():
    def fragile(weight):
        if weight.shape[0] == 4:
            raise RuntimeError("four")
        weight.fill_(1.0)

    module = net()
    before = state(module)
    with pytest.raises(RuntimeError, match="four"):
        initlab.initialize_(module, custom_scheme(fragile))
    assert same(before, state(module))


def test_rules_say_what_no_rule_matches_and_what_several_do():
    module = net()
    kept = module[1].weight.detach().clone()
    rows = initlab.initialize_(module, {"0.weight": "zeros", "0.*": "he_normal", "3.*": "lecun_normal"})
    assert rows.attrs["unmatched"] == ["1.weight", "1.bias", "2.weight"]
    assert rows.attrs["doubly_matched"] == {"0.weight": ["0.weight", "0.*"]}
    said = rows.set_index("name").scheme.to_dict()
    assert said["0.weight"] == "zeros"
    assert said["3.weight"] == "lecun_normal"
    assert said["1.weight"] == "no rule"
    assert torch.equal(kept, module[1].weight)
    audited = initlab.audit(module, {"0.weight": "zeros", "0.*": "he_normal", "3.*": "lecun_normal"}, strict=True)
    assert audited.name[~audited.ok].tolist() == ["1.weight", "1.bias", "2.weight"]
    assert audited.reason[~audited.ok].str.startswith("no rule matches it").all()


def test_the_rules_of_the_issue():
    module = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 8), "head": nn.Linear(8, 3)})
    whole = nn.ModuleDict({"net": module})
    rules = {"*.attn.*": "glorot_uniform", "*.head.weight": "zeros", "*": "lecun_normal"}
    rows = initlab.initialize_(whole, rules, strict=True).set_index("name")
    assert rows.scheme["net.attn.in_proj_weight"] == "glorot_uniform"
    assert rows.scheme["net.head.weight"] == "zeros"
    assert rows.scheme["net.fc.weight"] == "lecun_normal"
    assert rows.attrs["unmatched"] == []
    assert rows.attrs["doubly_matched"] == {}
    assert bool(initlab.audit(whole, rules, strict=True).ok.all())


@pytest.mark.parametrize("make", [net, lambda: on_meta(net), lambda: nn.LSTM(4, 4)])
def test_a_dry_run_says_what_would_happen_and_writes_nothing(make):
    module = make()
    before = state(module)
    promised = initlab.initialize_(module, "he_normal", dry_run=True)
    assert same(before, state(module))
    done = initlab.initialize_(module, "he_normal", device="cpu")
    facts = ["name", "kind", "role", "shape", "fan_in", "fan_out", "scheme", "promised_mean", "promised_std"]
    assert promised[facts].equals(done[facts])
    assert promised[["mean", "std", "fingerprint"]].isna().all(axis=None)


def test_only_and_skip_choose_what_is_written():
    module = net()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    rows = initlab.initialize_(module, "he_normal", only=["0.*", "3.weight"], skip="0.bias").set_index("name")
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "3.weight"}
    assert set(rows.index[rows.scheme != "skipped"]) == changed
    assert float(module[1].running_mean.abs().max()) > 0
    assert bool(initlab.audit(module, "he_normal", only=["0.*", "3.weight"], skip="0.bias").ok.all())
