"""Other names in use for schemes and activations, free of torch so that the command line can rewrite them at once.

Canonical names are recorded; an alias is accepted wherever a name is and never shows up in a result.
"""

SCHEME_ALIASES: dict[str, str] = {
    "xavier": "glorot_uniform",
    "xavier_uniform": "glorot_uniform",
    "xavier_normal": "glorot_normal",
    "glorot": "glorot_uniform",
    "kaiming": "he_normal",
    "kaiming_uniform": "he_uniform",
    "kaiming_normal": "he_normal",
    "he": "he_normal",
    "lecun": "lecun_normal",
    "default": "torch_default",
    "pytorch_default": "torch_default",
    "trunc_normal": "truncated_normal",
    "eye": "identity",
    "const": "constant",
    "zero": "zeros",
    "one": "ones",
    "mirrored": "looks_linear",
    "ZerO": "zero_hadamard",
    "zero_init": "zero_hadamard",
}

PROCEDURE_NAMES: tuple[str, ...] = (
    "lsuv", "data_dependent", "weight_norm_init", "metainit", "gradinit", "rezero", "skipinit", "fixup",
    "inverse_depth", "gpt2", "deepnorm", "t_fixup", "mimetic", "mup", "dks", "tat",
)  # fmt: skip
"""Schemes that look at a whole module: what fills one weight at a time knows them by name only, to say so."""

ACT_ALIASES: dict[str, str] = {
    "identity": "linear",
    "leakyrelu": "leaky_relu",
    "lrelu": "leaky_relu",
    "swish": "silu",
    "hard_swish": "hardswish",
    "hard_tanh": "hardtanh",
    "hard_sigmoid": "hardsigmoid",
    "atan": "arctan",
    "logistic": "sigmoid",
    "sine": "sin",
}

ALIASES: dict[str, dict[str, str]] = {"init": SCHEME_ALIASES, "act": ACT_ALIASES}
