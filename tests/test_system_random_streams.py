"""Every random stream is made in one place, for a purpose of its own, and no two are alike."""

import ast
import io
import json
from contextlib import redirect_stdout
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import initlab
from initlab.cli.diagnose import make_inputs, run_diagnose
from initlab.data.order import batches
from initlab.errors import UserError
from initlab.initialize import stream
from initlab.system.random_streams import STREAMS, generator, numpy_generator, seed_global_state

SOURCE = Path(initlab.__file__).parent
SEEDS = (0, 1, 2, 7, 2**31, 2**32 - 1, 2**32, 7 * 2**32 + 1, 2**63 - 1)
NUMBERS = ("0", "1", "2", "7")
NAMES = ("", "w", "0", "batch", "w/gates", "w/mimetic", "change_rates", "dropout/0/0", "forward/0", "coordinate_check")
OF_NO_SEED = ("validation", "drawn data")
"""Always the same, whatever the seed."""


def draw(purpose, seed, name, count=64):
    """Numbers of 63 bits from a stream."""
    if STREAMS[purpose].make_numpy is not None or purpose in ("rounding noise", "logits"):
        return numpy_generator(purpose, seed, name).integers(2**63, size=count).tolist()
    return torch.empty(count, dtype=torch.int64).random_(generator=generator(purpose, seed, name)).tolist()


def every_stream():
    for purpose, found in STREAMS.items():
        numbered = found.make_numpy is not None or purpose in ("dropout", "forward passes")
        nameless = found.make_torch is not None or purpose in ("procedure batch", "change rates", "coordinate check")
        for seed in SEEDS[: 1 if purpose in OF_NO_SEED else None]:
            for name in NUMBERS if numbered else ("",) if nameless else NAMES:
                yield purpose, seed, name


def alike(streams):
    """Pairs of streams that share a number: by chance 10⁵ numbers of 63 bits do with a probability of 10⁻⁹."""
    owners: dict[int, tuple] = {}
    found = set()
    for key in streams:
        for number in draw(*key):
            if owners.setdefault(number, key) != key:
                found.add((owners[number], key))
    return found


def test_no_two_streams_are_alike():
    streams = list(every_stream())
    assert {purpose for purpose, _, _ in streams} == set(STREAMS)
    assert len(streams) > 600
    # Rows that are held out have kept the bits that they had before streams were keyed by their purpose: under
    # data.seed=0 class k permutes its rows by the stream that orders all rows of epoch k.
    assert alike(streams) == {(("batches", 0, number), ("validation", 0, number)) for number in NUMBERS}


def test_streams_that_are_alike_are_seen(monkeypatch):
    twin = STREAMS["made-up inputs"]._replace(text=lambda seed, name: f"made-up targets//{seed}/{name}")
    monkeypatch.setitem(STREAMS, "made-up inputs", twin)
    assert (("made-up inputs", 0, ""), ("made-up targets", 0, "")) in alike(every_stream())


def test_a_stream_needs_a_purpose_and_a_seed():
    with pytest.raises(KeyError):
        generator("whatever", 0)
    with pytest.raises(UserError, match="seed=-1"):
        generator("made-up inputs", -1)


def test_older_streams_keep_their_bits():
    # As they were when a run's weights were keyed by f"{seed}/{name}", and batches by numpy's own (seed, epoch).
    assert torch.equal(generator("weights", 3, "a.weight").get_state(), stream(3, "a.weight").get_state())
    known = {
        ("weights", 0, "hidden.0.weight"): 2470022719535682684,
        ("gates", 0, "0.bias_ih_l0"): 7898040086582187025,
        ("dropout", 1, "5/0"): 8508282151666796347,
        ("drawn data", 0, ""): 900450186894289455,
    }
    assert {key: draw(*key, count=1)[0] for key in known} == known
    assert torch.equal(generator("dropout", 1, "5/0").get_state(), stream(1, "dropout/5/0").get_state())
    for seed, epoch in ((0, 0), (5, 3), (2**32 - 1, 1)):
        expected = np.random.default_rng((seed, epoch)).permutation(50)
        assert (numpy_generator("batches", seed, f"{epoch}").permutation(50) == expected).all()
    expected = np.random.default_rng((0, 4)).permutation(50)
    assert (numpy_generator("validation", 0, "4").permutation(50) == expected).all()


def test_epochs_of_large_seeds_differ():
    # numpy cuts seeds into words: (5 + 7·2³², 0) would be (5, 7).
    orders = [torch.cat([*batches(40, 10, steps=32, seed=seed)]).view(8, 40) for seed in (5, 5 + 7 * 2**32, 2**40)]
    for first, second in combinations(range(3), 2):
        assert not any(torch.equal(a, b) for a in orders[first] for b in orders[second])


def test_the_global_state_is_keyed_by_its_purpose():
    with torch.random.fork_rng(devices=[]):
        seed_global_state("diagnosed passes", 3, device=torch.device("cpu"))
        assert torch.equal(torch.rand(5), torch.rand(5, generator=generator("diagnosed passes", 3)))


class Noisy(nn.Module):
    """Draws from the global state in every mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) + torch.randn(x.shape)
        return x


@pytest.mark.parametrize("name", ["lsuv", "gradinit"])
def test_a_procedure_does_not_depend_on_the_global_state(name):
    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        net, x = Noisy(), torch.linspace(-1, 1, 128).view(16, 8)
        state = torch.get_rng_state()
        initlab.initialize_(net, name, act="tanh", inputs=x, seed=3)
        assert torch.equal(state, torch.get_rng_state())
        found.append(initlab.fingerprint(net))
    assert found[0] == found[1]


# ---- no stream is made elsewhere

MAKERS = {"Generator", "RandomState", "SeedSequence", "Philox", "PCG64", "MT19937", "default_rng"}
SEEDERS = {"manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all", "setstate"}
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "dropout"} | {
    f"rand{kind}_like" for kind in ("", "n", "int")
}
FILLS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_"} | {
    f"{name}_" for name in ("trunc_normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
}
ALLOWED = {
    "system/random_streams.py": "streams are made there",
    "inspection/restore.py": "puts the state of every generator back",
    "ensemble/layers.py": "a dropout layer outside of training draws as torch's own",
    "models/layers.py": "a dropout layer outside of training draws as torch's own",
}


def strays(source: Path) -> list[str]:
    """Lines that make or seed a generator, or draw without one, past `initlab.system.random_streams`."""
    found = []
    for path in sorted(source.rglob("*.py")):
        if path.relative_to(source).as_posix() in ALLOWED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                own = isinstance(node, ast.ImportFrom) and node.level
                if not own and {"random", "secrets", "numpy.random", "torch.random"} & set(modules):
                    found.append(f"{path.name}:{node.lineno}")
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            last = called.rpartition(".")[2]
            keyed = any(word.arg in ("generator", None) for word in node.keywords)
            ours = "_generator" in called or called.startswith(("generator", "drawing", "noise"))
            library = called.startswith(("torch.", "nn.", "F.", "np.", "numpy.", "init."))
            made = last in MAKERS | SEEDERS and (library or last in MAKERS)
            drawn = (last in DRAWS and library and not called.startswith("init.")) or last in FILLS
            if (made or (drawn and not keyed)) and not ours:
                found.append(f"{path.name}:{node.lineno}")
    return found


def test_every_stream_is_made_in_one_place():
    assert strays(SOURCE) == []
    assert strays(SOURCE.parent / "hydra_plugins") == []


@pytest.mark.parametrize(
    "line",
    [
        "import random",
        "from random import choice",
        "g = torch.Generator().manual_seed(0)",
        "torch.manual_seed(0)",
        "np.random.default_rng(0)",
        "np.random.seed(0)",
        "x = torch.randn(3)",
        "x = torch.randint(3, (2,))",
        "x = np.random.normal()",
        "w.normal_(0, 1)",
        "nn.init.kaiming_uniform_(w)",
        "torch.random.set_rng_state(s)",
        "g = Generator()",
    ],
)
def test_a_stray_stream_is_seen(tmp_path, line):
    (tmp_path / "new.py").write_text(f"{line}\n", encoding="utf-8")
    assert len(strays(tmp_path)) == 1 or line.startswith("g = torch")
    assert strays(tmp_path) != []


def purposes(source: Path) -> dict[str, str]:
    """The purposes that are asked for in the sources, with a place; what is no literal is told as such."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        if path.name == "random_streams.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in ("generator", "numpy_generator", "seed_global_state", "keyed") and node.args:
                    first = node.args[0]
                    found[str(first.value) if isinstance(first, ast.Constant) else ast.unparse(first)] = path.name
    return found


def test_every_purpose_is_known_and_every_known_one_is_drawn():
    found = purposes(SOURCE)
    assert found.pop("purpose") == "record.py"  # the procedures' own way to it
    assert set(found) == set(STREAMS)


# ---- what is made up for a diagnosis


class Same(nn.Module):
    """An output shaped like the input: the identity, with a weight that takes part."""

    def __init__(self, tokens=None):
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.scale.weight)
        self.tokens = tokens

    def forward(self, x):
        if self.tokens is None:
            return self.scale(x[..., None])[..., 0]
        return self.scale(20 * nn.functional.one_hot(x, self.tokens).float()[..., None])[..., 0]


class Autoencoder(nn.Module):
    """Convolutions down and up."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, x):
        return self.up(torch.relu(self.down(x)))


class Language(nn.Module):
    """A language model with as many tokens as classes."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, x):
        return self.head(self.table(x))


def body():
    return nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)


MODELS = {
    "same": (Same, ["8,5,16"], {}),
    "body": (body, ["8,5,16"], {}),
    "autoencoder": (Autoencoder, ["4,3,8,8"], {}),
    "language": (Language, ["8,12"], {"tokens": 50}),
    "identity of tokens": (lambda: Same(tokens=50), ["8,12"], {"tokens": 50}),
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("model", MODELS)
def test_made_up_targets_are_not_the_made_up_inputs(model, seed, monkeypatch):
    make, shapes, given = MODELS[model]
    monkeypatch.setattr("initlab.cli.arguments.load_target", lambda *_: make)
    screen = io.StringIO()
    with redirect_stdout(screen):
        run_diagnose("anything:model", shapes, seed=seed, as_json=True, **given)
    rows = json.loads(screen.getvalue())["rows"]
    loss = next(row["value"] for row in rows if row["stat"] == "loss")
    gradients = [row["value"] for row in rows if row["stat"] == "grad_mean_square"]
    assert gradients
    assert all(value > 0 for value in gradients)
    # Independent values differ by 2 in the mean square, to ± 0.3; a label is the token in one case of 50.
    least = {"same": 1.7, "identity of tokens": 10.0}.get(model, 0.5)
    assert loss > least


@pytest.mark.parametrize("seed", [0, 3])
def test_a_batch_of_the_users_own_seed_is_not_the_target(seed):
    # The plain generator of a seed is what a user draws from.
    plain = torch.Generator().manual_seed(seed)
    frame = initlab.diagnose(Same(), torch.randn(64, 20, generator=plain), seed=seed)
    assert frame.loc[frame.stat == "loss", "value"].item() > 1.7
    made = make_inputs(["64,20"], None, None, seed)
    assert not torch.equal(made, torch.randn(64, 20, generator=torch.Generator().manual_seed(seed)))


def test_a_model_is_not_made_of_its_inputs(monkeypatch):
    # A module that draws its weights by the global state gets other numbers than its batch.
    made = {}

    def net():
        made["weight"] = torch.randn(4, 6)
        return nn.Linear(6, 4)

    monkeypatch.setattr("initlab.cli.arguments.load_target", lambda *_: net)
    with redirect_stdout(io.StringIO()):
        run_diagnose("anything:net", ["4,6"], as_json=True)
    x = make_inputs(["4,6"], None, None, 0)
    assert not set(made["weight"].flatten().tolist()) & set(x.flatten().tolist())
