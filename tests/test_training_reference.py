"""One plain run equals an independent loop of nn.Module and torch.optim: same rows, same weights, same evaluations.

The reference below builds its own modules and shares nothing with `initlab.training` and `initlab.models` but what
DESIGN.md promises: parameter names, the order of the batches, and the key of every dropout mask.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.data import Dataset
from initlab.ensemble import stack
from initlab.initialize import fill_, stream
from initlab.models import MODELS, build
from initlab.training import OPTIMIZERS, Evaluation, Steps, TrainingPlan, train

STEPS, BATCH, DATA_SEED = 50, 12, 3
DEPTH, WIDTH = 2, 6


def images(channels: int = 1, size: int = 8) -> Dataset:
    """Forty training images: three batches of twelve an epoch, so that the order and the dropped rest count."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(256, (70, channels, size, size), dtype=torch.uint8, generator=draw)
    y = torch.randint(5, (70,), generator=draw)
    return Dataset("images", x[:40], y[:40], x[40:51], y[40:51], x[51:], y[51:], 5, (0.4,), (0.3,))


def curve() -> Dataset:
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(70, 2, generator=draw)
    y = torch.sin(3 * x)
    return Dataset("curve", x[:40], y[:40], x[40:51], y[40:51], x[51:], y[51:], None)


def characters() -> Dataset:
    x = torch.randint(5, (70, 8), generator=torch.Generator().manual_seed(3))
    x, y = x[:, :-1].float(), x[:, 1:].contiguous()
    return Dataset("characters", x[:40], y[:40], x[40:51], y[40:51], x[51:], y[51:], 5)


# --- the reference networks -------------------------------------------------------------------------------------------


def norm_1d(kind: str, width: int) -> nn.Module | None:
    return {"none": None, "batch": nn.BatchNorm1d(width), "layer": nn.LayerNorm(width)}[kind]


def norm_2d(kind: str, width: int) -> nn.Module | None:
    return {"none": None, "batch": nn.BatchNorm2d(width), "layer": nn.GroupNorm(1, width)}[kind]


class Reference(nn.Module):
    """What the references share: the keyed masks, drawn where `drop` is called, in order."""

    masks: int
    step: int = 0
    p: float = 0.0

    def drop(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        generator = stream(DATA_SEED, f"dropout/{self.step}/{self.masks}")
        self.masks += 1
        return torch.where(torch.rand(x.shape, generator=generator) >= self.p, x / (1 - self.p), torch.zeros_like(x))

    def forward(self, x: Tensor) -> Tensor:
        self.masks = 0
        return self.compute(x)


class PlainReference(Reference):
    def __init__(self, layers: list[nn.Module], norms: list, readout: nn.Module, p: float, maps: bool):
        super().__init__()
        self.hidden, self.readout, self.p, self.maps = nn.ModuleList(layers), readout, p, maps
        self.norms = nn.ModuleList(norms) if norms[0] else [nn.Identity()] * len(layers)

    def compute(self, x: Tensor) -> Tensor:
        x = x if self.maps else x.reshape(len(x), -1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = self.drop(torch.tanh(norm(layer(x))))
        return self.readout(x.mean((2, 3)) if self.maps else x)


def mlp(inputs: int, outputs: int, norm: str = "none", dropout: float = 0.0) -> nn.Module:
    layers = [nn.Linear(n, WIDTH) for n in (inputs, *[WIDTH] * (DEPTH - 1))]
    return PlainReference(layers, [norm_1d(norm, WIDTH) for _ in layers], nn.Linear(WIDTH, outputs), dropout, False)


def cnn(inputs: int, outputs: int, norm: str = "none", dropout: float = 0.0, padding: str = "circular") -> nn.Module:
    layers = [
        nn.Conv2d(1, WIDTH, 3, 2, 1, padding_mode=padding),
        nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, padding_mode=padding),
    ]
    return PlainReference(layers, [norm_2d(norm, WIDTH) for _ in layers], nn.Linear(WIDTH, outputs), dropout, True)


class ResMLPReference(Reference):
    def __init__(self, inputs: int, outputs: int, norm: str = "none", dropout: float = 0.0, branch: float = 1.0):
        super().__init__()
        self.first, self.readout, self.p = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, outputs), dropout
        self.blocks = nn.ModuleList(nn.Module() for _ in range(DEPTH))
        for block in self.blocks:
            block.norm, block.inner, block.outer = (
                norm_1d(norm, WIDTH),
                nn.Linear(WIDTH, WIDTH),
                nn.Linear(WIDTH, WIDTH),
            )
        self.norm, self.branch = norm_1d(norm, WIDTH), branch

    def compute(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            h = block.norm(x) if block.norm else x
            x = x + self.branch * block.outer(self.drop(torch.tanh(block.inner(h))))
        return self.readout(self.norm(x) if self.norm else x)


class ResNetReference(Reference):
    def __init__(self, inputs: int, outputs: int, norm: str = "batch", branch: float = 1.0):
        super().__init__()
        bias = norm == "none"
        self.first, self.norm, self.branch = nn.Conv2d(1, WIDTH, 3, 1, 1, bias=bias), norm_2d(norm, WIDTH), branch
        self.stages, width = nn.ModuleList(), WIDTH
        for s in range(3):
            stage = nn.ModuleList()
            for k in range(DEPTH):
                before, width, stride = width, WIDTH * 2**s, 2 if s > 0 and k == 0 else 1
                block = nn.Module()
                block.conv1, block.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=bias), norm_2d(norm, width)
                block.conv2, block.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=bias), norm_2d(norm, width)
                block.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if before != width else None
                stage.append(block)
            self.stages.append(stage)
        self.readout = nn.Linear(width, outputs)

    def compute(self, x: Tensor) -> Tensor:
        def normed(norm: nn.Module | None, h: Tensor) -> Tensor:
            return norm(h) if norm else h

        x = torch.tanh(normed(self.norm, self.first(x)))
        for block in (block for stage in self.stages for block in stage):
            h = torch.tanh(normed(block.norm1, block.conv1(x)))
            h = normed(block.norm2, block.conv2(h))
            x = torch.tanh((block.shortcut(x) if block.shortcut else x) + self.branch * h)
        return self.readout(x.mean((2, 3)))


class TransformerReference(Reference):
    """Pre-norm blocks with torch's own attention product; `inputs` is the length of a text, 0 for images of 8 × 8."""

    def __init__(self, inputs: int, outputs: int, norm: str = "pre", dropout: float = 0.0, text: bool = False):
        super().__init__()
        self.text, self.p = text, dropout
        self.first = nn.Embedding(outputs, WIDTH) if text else nn.Conv2d(1, WIDTH, 4, 4)
        self.position_embedding = nn.Parameter(torch.zeros(1, inputs if text else 4, WIDTH))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attention": nn.Module(), "dense": nn.Module()}) for _ in range(DEPTH)
        )
        for block in self.blocks:
            for part in block.values():
                part.norm, part.f = nn.LayerNorm(WIDTH), nn.Module()
            for name in ("query", "key", "value", "out"):
                setattr(block["attention"].f, name, nn.Linear(WIDTH, WIDTH))
            block["dense"].f.inner, block["dense"].f.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm, self.readout = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputs)

    def compute(self, x: Tensor) -> Tensor:
        x = self.first(x.long()) if self.text else self.first(x).flatten(2).transpose(1, 2)
        x = x + self.position_embedding
        for block in self.blocks:
            a, d = block["attention"], block["dense"]
            h = a.norm(x)
            q, k, v = (layer(h).unflatten(2, (2, 3)).transpose(1, 2) for layer in (a.f.query, a.f.key, a.f.value))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.text)
            x = x + self.drop(a.f.out(mixed.transpose(1, 2).flatten(2)))
            x = x + self.drop(d.f.outer(torch.tanh(d.f.inner(d.norm(x)))))
        return self.readout(self.norm(x) if self.text else self.norm(x).mean(1))


class VisionReference(Reference):
    def __init__(self, inputs: int, outputs: int):
        from torchvision.models import resnet18

        super().__init__()
        self.net = resnet18(num_classes=outputs)

    def compute(self, x: Tensor) -> Tensor:
        return self.net(F.interpolate(x, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1))


class CustomReference(Reference):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.a, self.b = nn.Bilinear(inputs, inputs, WIDTH), nn.Linear(WIDTH, outputs)

    def compute(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flatten(1), x.flatten(1)).tanh())


CUSTOM = """
import torch

class Net(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.a, self.b = torch.nn.Bilinear(inputs, inputs, 6), torch.nn.Linear(6, outputs)

    def forward(self, x):
        x = x.flatten(1)
        return self.b(torch.tanh(self.a(x, x)))

def make(input_shape, classes):
    return Net(torch.Size(input_shape).numel(), classes)
"""


@dataclass(frozen=True)
class Case:
    make: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # options that the family alone has
    shape: dict[str, Any] = field(default_factory=lambda: {"depth": DEPTH, "width": WIDTH, "act": "tanh"})


CASES = {
    "mlp": Case(mlp, {"norm": "batch", "dropout": 0.3}),
    "cnn": Case(cnn, {"norm": "layer", "dropout": 0.2}),
    "resmlp": Case(ResMLPReference, {"norm": "layer", "dropout": 0.3, "branch": 0.5}),
    "resnet": Case(ResNetReference, {"branch": 0.7}),
    "vit": Case(TransformerReference, {"dropout": 0.2}),
    "gpt": Case(partial(TransformerReference, text=True), {"dropout": 0.2}),
    "torchvision": Case(VisionReference, given={"size": 32}, shape={}),
    "custom": Case(CustomReference, given={"target": "custom_for_test:make"}, shape={}),
}


# --- the reference loop -----------------------------------------------------------------------------------------------


def torch_optimizer(name: str, net: nn.Module, hyper: dict[str, Any]) -> torch.optim.Optimizer:
    chosen = dict(hyper)
    chosen.pop("clip_norm", None)
    if name.startswith("adam"):
        chosen["betas"] = (chosen.pop("beta1", 0.9), chosen.pop("beta2", 0.999))
    made = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    return made[name](net.parameters(), **chosen)


def batch_indices() -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for epoch in range(STEPS):
        order = np.random.default_rng((DATA_SEED, epoch)).permutation(40)
        found += [order[start : start + BATCH] for start in (0, 12, 24)]
    return found[:STEPS]


def rate(step: int, lr: float, schedule: str, warmup: int) -> float:
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    return lr * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup))) / 2


def outputs_loss(net: nn.Module, data: Dataset, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    scaled = (x.double() / 255 - 0.4) / 0.3 if x.dtype == torch.uint8 else x.double()
    out = net(scaled)
    if data.classes is None:
        return out, F.mse_loss(out, y.double())
    return out, F.cross_entropy(out.flatten(0, -2), y.flatten())


def reference_run(
    net: nn.Module, data: Dataset, optim: str, hyper: dict[str, Any], schedule: str, warmup: int
) -> dict[str, list[float]]:
    optimizer = torch_optimizer(optim, net, hyper)
    columns: dict[str, list[float]] = {"loss": [], "accuracy": [], "grad_norm": [], "lr": []}
    for step, index in enumerate(batch_indices()):
        net.step = step
        out, loss = outputs_loss(net, data, data.train_x[index], data.train_y[index])
        optimizer.zero_grad()
        loss.backward()
        clip = hyper.get("clip_norm") or math.inf
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.param_groups[0]["lr"] = rate(step, hyper["lr"], schedule, warmup)
        optimizer.step()
        columns["loss"].append(loss.item())
        columns["grad_norm"].append(norm.item())
        columns["lr"].append(optimizer.param_groups[0]["lr"])
        if data.classes:
            columns["accuracy"].append((out.argmax(-1) == data.train_y[index]).double().mean().item())
    net.eval()
    with torch.no_grad():
        for split in ("val", "test"):
            x, y = getattr(data, f"{split}_x"), getattr(data, f"{split}_y")
            out, loss = outputs_loss(net, data, x, y)
            columns[f"{split}_loss"] = [loss.item()]
            if data.classes:
                columns[f"{split}_accuracy"] = [(out.argmax(-1) == y).double().mean().item()]
    return columns


def our_run(
    net: nn.Module, data: Dataset, optim: str, hyper: dict[str, Any], schedule: str, warmup: int
) -> dict[str, list[float]]:
    plan = TrainingPlan(
        STEPS, BATCH, optim, (hyper,), data_seed=DATA_SEED, schedule=schedule, warmup=warmup, dtype=torch.float64,
        records=(0, 7, STEPS),
    )  # fmt: skip
    columns: dict[str, list[float]] = {"loss": [], "accuracy": [], "grad_norm": [], "lr": []}
    for event in train(stack([net]), data, plan):
        if isinstance(event, Steps):
            for name in columns:
                columns[name] += [row[0] for row in getattr(event, name) or ()]
        elif isinstance(event, Evaluation) and event.step == STEPS:
            columns |= {name: [values[0]] for name, values in event.values.items()}
    return columns


def assert_equal_runs(name: str, case: Case, data: Dataset, options: dict, optim: str, hyper: dict, **timing: Any):
    shape = {"input_shape": data.input_shape, "classes": data.outputs}
    net = build(name, **case.shape, **shape, **options, **case.given).double()
    fill_(net, "glorot_normal", act="tanh", sigma_b=0.1)
    reference = case.make(math.prod(data.input_shape), data.outputs, **options).double()
    reference.load_state_dict(net.state_dict(), strict=True)
    timing = {"schedule": "constant", "warmup": 0, **timing}
    expected = reference_run(reference, data, optim, hyper, **timing)
    found = our_run(net, data, optim, hyper, **timing)
    assert found.keys() == expected.keys()
    for column, values in expected.items():
        assert found[column] == pytest.approx(values, rel=1e-9, abs=1e-13), column
    after, scale = reference.state_dict(), 0.3
    for key, value in net.state_dict().items():
        torch.testing.assert_close(
            value, after[key], rtol=1e-9, atol=1e-9 * scale, msg=lambda text, key=key: f"{key}: {text}"
        )


# SGD's momentum is said, for torch's own default is 0. RMSprop's first steps are ten rates long: more is chaos.
RATES = {
    "sgd": {"lr": 0.05, "momentum": 0.9},
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "adagrad": {"lr": 0.02},
    "rmsprop": {"lr": 0.0005},
}
FAST = [pytest.param(name, marks=pytest.mark.slow) if name == "torchvision" else name for name in MODELS]


@pytest.fixture
def custom_target(tmp_path, monkeypatch):
    (tmp_path / "custom_for_test.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("custom_target")
@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("model", FAST)
def test_every_optimizer_and_model_equals_torch(model, optim):
    """Weight decay, an active clip norm, cosine after warm-up, norms and dropout, all at once."""
    hyper = {**RATES[optim], "weight_decay": 0.02, "clip_norm": 0.5}
    if model == "torchvision" and optim != "sgd":
        # Eleven million weights: divided by their own size, gradients of rounding alone would count as much as others.
        hyper |= {"lr": 0.1 * RATES[optim]["lr"], "eps": 1e-3}
    case = CASES[model]
    data = characters() if MODELS[model].tokens else images()
    assert_equal_runs(model, case, data, case.options, optim, hyper, schedule="cosine", warmup=5)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_defaults_equal_torchs_own(optim):
    """With nothing given but the rate, ours are torch's defaults; AdamW's decay of 0.01 alone is not taken over."""
    hyper = RATES[optim] if optim != "adamw" else {**RATES[optim], "weight_decay": 0.0}
    assert_equal_runs("mlp", CASES["mlp"], images(), {}, optim, hyper)


@pytest.mark.parametrize(
    ("optim", "own"),
    [
        ("sgd", {"momentum": 0.0}),
        ("sgd", {"momentum": 0.8, "nesterov": True}),
        ("adam", {"beta1": 0.7, "beta2": 0.9, "eps": 1e-4}),
        ("rmsprop", {"momentum": 0.5, "alpha": 0.9, "eps": 1e-6}),
        ("adagrad", {"eps": 1e-3}),
    ],
    ids=str,
)
def test_hyperparameters_equal_torchs(optim, own):
    hyper = {**RATES[optim], "weight_decay": 0.01, **own}
    assert_equal_runs("mlp", CASES["mlp"], images(), {}, optim, hyper)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "resmlp", "resnet"])
def test_norm_and_dropout(model, norm, dropout):
    options = {"norm": norm, "dropout": dropout}
    if model == "resnet":
        if dropout:
            pytest.skip("resnet has no dropout")
        del options["dropout"]
    assert_equal_runs(model, CASES[model], images(), options, "sgd", RATES["sgd"])


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "resmlp"])
def test_regression(model, optim):
    hyper = {**RATES[optim], "weight_decay": 0.0, "clip_norm": 0.8}
    assert_equal_runs(model, CASES[model], curve(), {"norm": "layer"}, optim, hyper, schedule="cosine")


def test_zero_padding():
    assert_equal_runs("cnn", CASES["cnn"], images(), {"padding": "zeros"}, "sgd", RATES["sgd"])


def test_every_model_has_a_reference():
    assert CASES.keys() == MODELS.keys()
