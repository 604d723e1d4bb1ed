"""One scheme, one activation and one model, each a row as it would stand in its registry."""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from initlab.activations import Activation, Elementwise
from initlab.inspection import Fans
from initlab.models import Model, NetworkSpec, WeightLayer
from initlab.models.layers import flatten_structure
from initlab.schemes import Law, Scheme
from initlab.schemes.scaling import unit_gain


def fill_signs(weight: Tensor, *, fans: Fans, gain: float, role: str, generator: torch.Generator) -> Tensor:
    signs = 2 * torch.randint(0, 2, weight.shape, generator=generator) - 1
    return weight.copy_(signs * (gain / math.sqrt(fans.fan_in)))


def signs_law(fans: Fans, gain: float, role: str, shape: tuple[int, ...]) -> Law:
    size = gain / math.sqrt(fans.fan_in)
    defect = lambda weight: float((weight.abs() - size).abs().max())  # noqa: E731
    return Law("signs", 0.0, size**2, (-size, size), kurtosis=1.0, defect=defect)


SCHEME = Scheme("signs", "±gain/√n", fill_signs, signs_law, "none", 2026, own_gain=unit_gain)


def half_leaky(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, x, negative_slope * x)


ACTIVATION = Activation(
    "half_leaky",
    "x if x > 0 else negative_slope·x",
    half_leaky,
    partial(Elementwise, half_leaky),
    "none",
    {"negative_slope": 0.5},
    kinks=(0.0,),
    rectifier=True,
)


class Funnel(nn.Module):
    """Dense layers, each half as wide as the one before."""

    only_calls_children = True

    def __init__(self, spec: NetworkSpec, ratio: int):
        super().__init__()
        sizes = [math.prod(spec.input_shape), *(max(spec.width // ratio**k, 1) for k in range(spec.depth))]
        self.flat = nn.Flatten()
        self.steps = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.acts = nn.ModuleList(spec.act.build() for _ in self.steps)
        self.out = nn.Linear(sizes[-1], spec.classes)
        self.structure = (
            WeightLayer("steps.0", "first", "data", "acts.0"),
            *(WeightLayer(f"steps.{k}", "hidden", "activation", f"acts.{k}") for k in range(1, spec.depth)),
            WeightLayer("out", "readout", "activation"),
        )
        self.weight_layers = flatten_structure(self.structure)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(x)
        for step, act in zip(self.steps, self.acts, strict=True):
            x = act(step(x))
        return self.out(x)


def funnel(spec: NetworkSpec, *, ratio: int = 2) -> nn.Module:
    return Funnel(spec, ratio)


MODEL = Model("funnel", funnel, "none", {"ratio": 2})
