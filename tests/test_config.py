"""Every option file is composed, resolved and built; keys, defaults and names agree with the registries."""

import dataclasses

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from initlab.activations import ACTIVATIONS
from initlab.config import Config, check_config
from initlab.config.aliases import ALIASES
from initlab.config.checks import RULES, command_line_text, nearest_key, value_of_key
from initlab.config.compose import compose_config, config_from_plain, register_config, to_config
from initlab.config.grid import compose_grid
from initlab.config.help import key_rows, keys_markdown, known_keys
from initlab.config.naming import cell_name, config_hash, run_name
from initlab.config.option_files import conf_dir, option_keys, option_names
from initlab.config.overrides import canonical_option, canonical_overrides, split_arguments
from initlab.config.schema import EXAMPLES, GROUPS, LAUNCHER_KEYS, OPTION_KEYS
from initlab.data import DATASETS
from initlab.errors import UserError
from initlab.experiment import config_refusal
from initlab.experiment.build import build_activation, build_module, load_data
from initlab.initialize.procedures import PROCEDURES
from initlab.models import MODELS
from initlab.schemes import SCHEMES
from initlab.training import OPTIMIZERS

RULES_OF_INIT = {**SCHEMES, **PROCEDURES}
REGISTRIES = {"init": RULES_OF_INIT, "act": ACTIVATIONS, "model": MODELS, "data": DATASETS, "optim": OPTIMIZERS}
NOT_OF_THE_RECORD = {
    "init": ("gain", "sigma_b"),
    "act": (),
    "model": (),
    "data": ("root", "normalize", "validation", "seed"),
    "optim": ("schedule", "warmup", "weight_decay", "clip_norm"),
}
ELSEWHERE = ("fashion_mnist", "mnist", "cifar10", "cifar100")  # data that may not be on this machine
MINE = "a_module_of_mine"
CHOICES = [(group, name) for group in GROUPS for name in option_names(group)]


@pytest.fixture(scope="module")
def hydra_conf():
    register_config()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, in the directory where they work."""
    text = """
    import torch

    def init(weight, *, fans, gain, role, generator):
        weight.normal_(0, gain / fans.fan_in**0.5, generator=generator)

    def act(x):
        return torch.tanh(x) + 0.1 * x

    def model(depth, width, act, input_shape, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, classes))

    def data():
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        y = torch.arange(40) % 2
        return (x[:30], y[:30]), (x[30:], y[30:])
    """
    lines = [line.removeprefix("    ") for line in text.splitlines()]
    (tmp_path / f"{MINE}.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def choose(group: str, name: str) -> list[str]:
    """What a user types to choose an option; `custom` needs a target."""
    typed = [f"{group}={name}", *{"gpt": ["data=tiny_text"], "tiny_text": ["model=gpt"]}.get(name, [])]
    if name == "custom":
        typed += [f"{group}.target={MINE}:{group}"]
        typed += ["data=gaussian", "data.dimension=4", "train.batch_size=16"] if group == "model" else []
        typed += ["train.batch_size=16"] if group == "data" else []
    return typed


def option_file(group: str, name: str) -> dict:
    values = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return values.get(group, values)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_option_composes_resolves_and_builds(group, name, hydra_conf, mine):
    overrides = choose(group, name)
    composed = compose("config", overrides=overrides)
    OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    config = to_config(composed, overrides)
    assert getattr(config, group)["name"] == name
    if name not in ELSEWHERE:
        reason = config_refusal(config)
        structured = group == "init" and name in PROCEDURES and PROCEDURES[name].roles
        assert reason is None or name in ("dirac", "delta_orthogonal") or structured


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "resmlp", "resnet", "vit", "gpt", pytest.param("torchvision", marks=pytest.mark.slow)]
)
def test_model_builds_for_real(name, hydra_conf):
    small = [] if name == "torchvision" else ["depth=1", "width=4"]
    config = to_config(compose("config", overrides=[*choose("model", name), *small]))
    data = load_data(config, torch.device("cpu"))
    module = build_module(config, data, build_activation(config)).eval()
    outputs = (2, *data.train_y.shape[1:], data.outputs)
    assert module(data.prepare(data.train_x[:2])).shape == outputs


@pytest.mark.parametrize("group", GROUPS)
def test_option_files_and_registry_name_the_same(group):
    assert set(option_names(group)) - {"custom"} == set(REGISTRIES[group]) - {"custom"}
    assert ("custom" in option_names(group)) == (group != "optim")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_option_is_called_as_its_file(group, name):
    assert option_file(group, name)["name"] == name


@pytest.mark.parametrize(("group", "name"), [c for c in CHOICES if c[1] != "custom"])
def test_option_file_holds_the_defaults_of_its_record(group, name):
    record = REGISTRIES[group][name]
    values = next(getattr(record, a) for a in ("parameters", "options", "defaults") if hasattr(record, a))
    others = {"name", *NOT_OF_THE_RECORD[group]} - set(values)
    assert {k: v for k, v in option_file(group, name).items() if k not in others} == dict(values)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_option_file_has_the_common_keys(group, name):
    common = set(NOT_OF_THE_RECORD[group])
    if group == "init" and name in PROCEDURES:
        common.clear()
    elif group == "init" and name != "custom" and SCHEMES[name].own_gain is None:
        common.discard("gain")
    assert common <= set(option_file(group, name))


@pytest.mark.parametrize("name", option_names("experiment"))
def test_experiment_composes(name):
    configs, _ = compose_grid([f"experiment={name}"])
    assert configs


# DESIGN.md, section 8, but for the launcher's keys.
DEFAULTS = {
    "init": "glorot_uniform",
    "init.gain": "paper",
    "init.sigma_b": 0,
    "act": "tanh",
    "depth": 5,
    "width": 128,
    "model": "mlp",
    "model.norm": "none",
    "model.dropout": 0,
    "data": "fashion_mini",
    "data.root": None,
    "data.normalize": True,
    "data.validation": 0.1,
    "data.seed": 0,
    "seed": 0,
    "sweep.name": None,
    "sweep.root": "outputs/sweeps",
    "sweep.exclude": [],
    "sweep.grids": [],
    "sweep.order": "grid",
    "sweep.checkpoint_every": 60,
    "dry_run": False,
    "optim": "sgd",
    "optim.lr": 0.01,
    "optim.momentum": 0.9,
    "optim.schedule": "constant",
    "optim.warmup": 0,
    "optim.weight_decay": 0,
    "optim.clip_norm": None,
    "train.epochs": 5,
    "train.steps": None,
    "train.batch_size": 128,
    "train.target_loss": None,
    "train.save": False,
    "log.every": 1,
    "log.histograms": 10,
    "log.eval_every": None,
    "log.jacobian": False,
    "device": "auto",
    "precision": "fp32",
    "threads": "auto",
}


@pytest.fixture(scope="module")
def default():
    return compose_config()


@pytest.mark.parametrize(("key", "value"), DEFAULTS.items())
def test_default(default, key, value):
    found = value_of_key(default, key)
    assert (found["name"] if isinstance(found, dict) else found) == value


@pytest.mark.parametrize(("name", "lr"), [("adam", 1e-3), ("adamw", 1e-3), ("rmsprop", 1e-3), ("adagrad", 1e-2)])
def test_default_rate(name, lr):
    assert option_file("optim", name)["lr"] == lr


def test_schema_defaults_are_those_of_the_files(default):
    plain = Config().plain()
    assert {k: v for k, v in default.plain().items() if k not in GROUPS} == {
        k: v for k, v in plain.items() if k not in GROUPS
    }
    assert all(default.plain()[group]["name"] == plain[group]["name"] for group in GROUPS)


@pytest.mark.parametrize("key", OPTION_KEYS)
def test_common_keys_and_their_defaults_are_those_of_the_default_options(default, key):
    assert command_line_text(value_of_key(default, key)) == command_line_text(yaml.safe_load(OPTION_KEYS[key][0]))


@pytest.mark.parametrize("key", LAUNCHER_KEYS)
def test_keys_of_the_launcher(hydra_conf, key):
    composed = compose("config", return_hydra_config=True)
    assert OmegaConf.select(composed, key) == LAUNCHER_KEYS[key][0]


def test_key_table_holds_every_key_once(default):
    keys = [row[0] for row in key_rows()]
    assert len(set(keys)) == len(keys)
    assert set(DEFAULTS) <= set(keys)
    assert all(text and text[0] != " " for _, _, text in key_rows())


def test_key_table_for_the_readme():
    lines = keys_markdown().splitlines()
    assert lines[:2] == ["| key | default | what it is |", "|---|---|---|"]
    assert "| `init` | glorot_uniform | init scheme |" in lines
    assert "| `train.epochs` | 5 | passes over the training set |" in lines
    assert all(line.count("|") == 4 for line in lines[1:])


@pytest.mark.parametrize("axis", EXAMPLES)
def test_examples_of_the_help_compose(axis):
    first = EXAMPLES[axis].replace("'", "").split(", or ")[0].split()
    config = compose_config(first)
    assert config != compose_config([])
    for text in first if axis != "experiment" else ():
        key = text.partition("=")[0]
        found = value_of_key(config, key)
        wanted = OmegaConf.select(OmegaConf.from_dotlist([text]), key)
        assert (found["name"] if isinstance(found, dict) else found) == wanted


@pytest.mark.parametrize("key", RULES)
def test_rule_gives_an_example_that_passes(key):
    test, _, example = RULES[key]
    name, _, value = example.strip("'").partition("=")
    assert name == key
    group = key.partition(".")[0]
    option = next((o for o in option_names(group) if key.partition(".")[2] in option_keys(group, o)), None)
    config = compose_config([*([f"{group}={option}"] if option and option != "custom" else []), f"{key}={value}"])
    assert test(value_of_key(config, key))


@pytest.mark.parametrize("key", known_keys())
def test_known_keys_are_keys(default, key):
    assert value_of_key(default, key) is not value_of_key(default, "no.such.key")


# ---- what cannot be


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("depth", [0, -1, 2.5, True]),
        ("width", [0, -1, 2.5, "x", True, [], [8, 8], [8] * 4 + [0], [8] * 4 + [2.5]]),
        ("seed", [-1, 2**63, 2**70, 1.5, "x", True]),
        ("train.epochs", [0, -1, float("nan"), float("inf"), True]),
        ("train.steps", [0, -5, 2.5]),
        ("train.batch_size", [0, -1]),
        ("train.target_loss", [0, -1.0, float("nan")]),
        ("train.trained_above", [0, 1.5, float("nan")]),
        ("log.every", [0, -1]),
        ("log.histograms", [-1, 1.5]),
        ("log.eval_every", [0, -2]),
        ("precision", ["fp16", "float32", None]),
        ("threads", [0, -1, "x", 1.5]),
        ("model.norm", ["group", None]),
        ("model.dropout", [-0.1, 1, 1.5, "x"]),
        ("optim.lr", [-1, float("nan"), float("inf"), "abc", None, True]),
        ("optim.momentum", [-1, "x"]),
        ("optim.weight_decay", [-1, None]),
        ("optim.clip_norm", [0, -1, "x"]),
        ("optim.warmup", [-1, 1.5]),
        ("optim.schedule", ["cosin", None]),
        ("init.sigma_b", [-1, "x"]),
        ("sweep.order", ["x"]),
        ("sweep.impossible", ["x"]),
        ("sweep.checkpoint_every", [0, -1]),
    ],
)
def test_bad_values_are_refused(default, key, values):
    for value in values:
        plain = default.plain()
        *path, leaf = key.split(".")
        where = plain
        for part in path:
            where = where[part]
        where[leaf] = value
        with pytest.raises(UserError, match=f"^{key}=.*: say |^{key}=.*: every ") as caught:
            check_config(config_from_plain(plain))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["depth", "width"])
def test_shape_may_be_null_only_for_models_with_their_own(default, key):
    plain = default.plain() | {key: None}
    with pytest.raises(UserError, match=f"{key}=null cannot be for model=mlp"):
        check_config(config_from_plain(plain))
    check_config(config_from_plain(plain | {"model": {"name": "custom", "target": "a:b"}}))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["+bogus=1"], "bogus is not a key"),
        (["+train.bogus=1"], "train.bogus is not a key"),
        (["+init.bogus=1"], "init=glorot_uniform has no init.bogus; its keys are init.gain, init.sigma_b, init.distri"),
        (["+optim.beta1=0.9"], r"optim=sgd has no optim.beta1 \(a key of optim=adam, optim=adamw"),
        (["~init.gain"], "init.gain is missing for init=glorot_uniform"),
        (["~optim"], "optim.lr is missing for optim=sgd"),
        (["depth=${nope}"], "nope"),
        (["init.gian=2"], "has no init.gian; its keys are .*Did you mean 'init.gain'"),
        (["lr=0.1"], "lr is not a key. Did you mean 'optim.lr'"),
        (["trian.epochs=1"], "Did you mean 'train.epochs'"),
        (["train.epoch=1"], "Did you mean 'train.epochs'.*The keys of train are train.epochs, train.steps"),
        (["act.omega=3"], r"act=tanh has no act.omega \(a key of act=sin\); it has no keys"),
        (["init=custom", "init.target=a:b", "init.slope=2"], r"a plus sign: \+init.slope="),
    ],
)
def test_keys_that_are_not_there(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        compose_config(overrides)


def test_torchvision_refuses_a_shape():
    for override in ("depth=3", "width=8", "act=relu"):
        with pytest.raises(UserError, match="cannot be set for model=torchvision"):
            compose_config(["model=torchvision", override])


# ---- names


@pytest.mark.parametrize(("group", "alias"), [(g, a) for g, names in ALIASES.items() for a in names])
def test_alias_is_rewritten_alone_quoted_and_in_lists(group, alias):
    name = ALIASES[group][alias]
    assert name in option_names(group)
    assert alias not in option_names(group)
    other = option_names(group)[0]
    assert canonical_overrides([f"{group}={alias}"]) == [f"{group}={name}"]
    assert canonical_overrides([f"+{group}={alias}"]) == [f"+{group}={name}"]
    assert canonical_overrides([f"{group}='{alias}'"]) == [f"{group}='{name}'"]
    assert canonical_overrides([f"{group}={other},{alias}"]) == [f"{group}={other},{name}"]
    assert canonical_overrides([f"{group}=choice({alias},{other})"]) == [f"{group}=choice({name},{other})"]


TORCH_NAMES = {
    "init": "uniform_ normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_ xavier_normal_ kaiming_uniform_ "
    "kaiming_normal_ trunc_normal_ orthogonal_ sparse_",
    "act": "Identity ReLU LeakyReLU PReLU ReLU6 ELU CELU SELU GELU SiLU Mish Hardswish Tanh Hardtanh Sigmoid "
    "Hardsigmoid Softplus Softsign",
}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in TORCH_NAMES.items() for n in names.split()])
def test_names_of_torch_are_accepted(group, name):
    assert hasattr(torch.nn.init if group == "init" else torch.nn, name)
    assert canonical_option(group, name) in option_names(group)


def test_globs_and_other_keys_are_left_alone():
    typed = ["init=glob(*)", "act=glob([swish,he*])", "init.target=he:xavier", "data=identity", "optim.lr=0.1"]
    assert canonical_overrides(typed) == typed


def test_flags_may_stand_anywhere():
    assert split_arguments(["a=1", "--cfg", "job", "b=2", "-m", "c=3", "--info"]) == (
        ["--cfg", "job", "-m", "--info"],
        ["a=1", "b=2", "c=3"],
    )


def test_nearest_key_prefers_the_last_part():
    assert nearest_key("batch_size", known_keys()) == " Did you mean 'train.batch_size'?"
    assert nearest_key("zzz", known_keys()) == ""


# ---- what a run is called


def test_hash_ignores_what_does_not_change_the_result(default):
    same = [["device=cpu"], ["threads=1"], ["log.every=7"], ["sweep.name=x"], ["dry_run=true"], ["train.save=true"]]
    assert {config_hash(compose_config(o)) for o in same} == {config_hash(default)}
    other = [["seed=1"], ["depth=4"], ["init.gain=2"], ["optim.lr=0.1"], ["data.seed=1"], ["train.epochs=6"]]
    other += [["precision=fp64"], ["train.batch_size=64"], ["train.target_loss=1"], ["data.validation=0.2"]]
    assert len({config_hash(compose_config(o)) for o in other} | {config_hash(default)}) == len(other) + 1


def test_aliases_and_spellings_share_a_hash():
    assert config_hash(compose_config(["init=kaiming_normal_", "act=ReLU"])) == config_hash(
        compose_config(["act=relu", "init=he_normal", "depth=5"])
    )


def test_names(default):
    assert run_name(default) == "glorot_uniform-tanh-d5-s0"
    assert cell_name(default) == f"glorot_uniform-tanh-d5-s0-{config_hash(default)[:8]}"
    assert run_name(compose_config(["model=torchvision", "model.arch=resnet18"])) == "glorot_uniform-resnet18-s0"


def test_config_survives_plain(default):
    assert config_from_plain(default.plain()) == default
    assert dataclasses.is_dataclass(config_from_plain(default.plain()).train)


def test_composing_leaves_another_hydra_as_it_was(hydra_conf):
    before = GlobalHydra.instance().hydra
    assert before is not None
    compose_config(["depth=3"])
    assert GlobalHydra.instance().hydra is before
