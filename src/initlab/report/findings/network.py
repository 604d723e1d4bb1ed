"""The input of rules: statistics of one layer, what is known of the network, and the remedies that apply to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

STABLE_SCHEMES = dict.fromkeys(("relu", "leaky_relu", "prelu"), "he_normal") | dict.fromkeys(
    (
        *("linear", "relu6", "elu", "celu", "selu", "gelu", "gelu_tanh", "silu", "mish", "hardswish"),
        *("tanh", "hardtanh", "arctan", "softsign", "sin", "erf", "sigmoid", "hardsigmoid"),
    ),
    "critical",
)
"""Activation -> a scheme that keeps signal and gradient over many layers.

softplus has no critical point. Under the critical weights of sigmoid and hardsigmoid many units saturate, but gradients
keep their size.
"""

NONZERO_AT_ZERO = ("sigmoid", "hardsigmoid", "softplus")
"""Activations with φ(0) ≠ 0: units behind zero weights have an output, the same for all."""

USUAL_SATURATION = {"tanh": 0.029, "hardtanh": 0.317, "erf": 0.083}
"""Fraction of N(0, 1) outside an activation's interval, where that is more than 1 %."""

PATTERN_SCHEMES = ("identity", "dirac", "zero_hadamard", "sinusoidal")
"""Deterministic schemes whose weights differ: a layer that is wider than its input has equal units by design."""

UNSCALED_SCHEMES = ("zeros", "ones", "constant", "uniform", "normal", "naive_normal", "truncated_normal")
"""Schemes that do not depend on a fan, whose weights have another size than a layer needs."""

CHAIN_MODELS = ("mlp", "cnn")
"""Models that are one chain of layers if there is no norm between them."""


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one layer.

    Attributes:
        layer: its name.
        stats: statistic -> value.
        units: its width, 0 where unknown.
        samples: positions per unit, 1 where unknown.
    """

    layer: str
    stats: Mapping[str, float] = field(default_factory=dict)
    units: int = 0
    samples: int = 1


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network beside its rows, as names of options; "" where unknown.

    Attributes:
        act: activation.
        scheme: of its weights.
        model: its family.
        norm: of its layers.
        gain: of the scheme, `paper` unless it was chosen.
        depth: number of hidden layers.
        trainable_depth: to which theory lets it train, None where unknown.
    """

    act: str = ""
    scheme: str = ""
    model: str = ""
    norm: str = "none"
    gain: str = "paper"
    depth: int | None = None
    trainable_depth: float | None = None

    @property
    def plain(self) -> bool:
        """Whether signals pass from layer to layer through the activation alone."""
        return self.model in ("", *CHAIN_MODELS) and self.norm == "none"

    @property
    def keeper(self) -> str:
        """A scheme that keeps signal and gradient here, other than the one that was run; "" where there is none.

        >>> NetworkInfo(act="tanh", scheme="ones").keeper, NetworkInfo(act="softplus").keeper
        ('critical', '')
        """
        found = STABLE_SCHEMES.get(self.act, "")
        return "" if found == self.scheme else found

    def at_random(self) -> str:
        """Return the remedy for weights that are equal or zero, or that push all units to one side.

        >>> NetworkInfo(act="relu", scheme="zeros").at_random()
        'init=he_normal: random weights of mean 0, of the size that relu needs'
        """
        if self.keeper:
            return self._keep()
        usual = ["autoinit", "lecun_normal"] if self.act == "softplus" else ["glorot_normal", "lecun_normal"]
        return f"init={next(name for name in usual if name != self.scheme)}: random weights of mean 0"

    def rescaled(self, word: str) -> str:
        """Return the remedy for weights of another size than the activation needs; `word`: smaller, larger, other.

        >>> NetworkInfo(act="tanh", scheme="torch_default").rescaled("larger")
        'init=critical: random weights of mean 0, of the size that tanh needs'
        >>> NetworkInfo(act="relu", scheme="he_normal", gain="3.0").rescaled("smaller")
        'smaller weights: init.gain=paper instead of 3.0'
        """
        if self.model not in ("", *CHAIN_MODELS) and self.scheme not in UNSCALED_SCHEMES:
            return self.around()  # what grows there is the residual stream, not the signal of a layer
        if self.keeper:
            return self._keep()
        if STABLE_SCHEMES.get(self.act) and self.gain != "paper":
            return f"{word} weights: init.gain=paper instead of {self.gain}"
        if STABLE_SCHEMES.get(self.act) or (self.scheme == "lsuv" and self.act != "softplus"):
            return self.around()
        if self.act == "softplus" and self.scheme != "autoinit":
            return "init=autoinit, which keeps the size of the signal under softplus, or act=relu with init=he_normal"
        return f"{word} weights: init=lsuv measures their size for any activation"

    def _keep(self) -> str:
        return f"init={self.keeper}: random weights of mean 0, of the size that {self.act} needs"

    def around(self) -> str:
        """Return the remedy where the weights already have the right size."""
        if self.model in ("", *CHAIN_MODELS):
            return "fewer layers" + (", or a norm (model.norm=batch)" if self.norm == "none" and self.model else "")
        if self.model == "resmlp":
            return "model.branch=inverse_sqrt_depth, or fewer blocks"
        if self.model in ("torchvision", "custom"):
            return "a norm in front of each layer, or branches that are scaled down"
        return "fewer blocks"
