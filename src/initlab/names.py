"""Other names in use for schemes and activations, free of torch so that the command line can rewrite them at once.

Canonical names are recorded; an alias is accepted wherever a name is and never shows up in a result. What is the
user's own is named by what is imported, `package.module:function`.
"""

import re
from collections.abc import Mapping
from typing import Any

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

# What other programs call a key, and people do: where one is no key, the other is meant.
KEY_WORDS: dict[str, str] = {
    word: key
    for key, words in {
        "init": "scheme schemes initializer initialiser initialization initialisation weight_init",
        "act": "activation activations activation_function nonlinearity phi",
        "model": "network net architecture family",
        "data": "dataset data_set datasets",
        "optim": "optimizer optimiser",
        "depth": "layers num_layers n_layers hidden_layers nlayers blocks",
        "width": "units hidden hidden_size hidden_dim num_units channels",
        "seed": "seeds random_seed rng",
        "optim.lr": "learning_rate rate lrate eta",
        "optim.weight_decay": "wd l2",
        "optim.clip_norm": "clip grad_clip clip_grad",
        "train.batch_size": "batch bs batchsize minibatch",
        "train.epochs": "epoch num_epochs n_epochs max_epochs",
        "train.steps": "step iterations iters max_steps num_steps updates",
        "init.gain": "gains",
        "precision": "dtype fp16 amp",
        "device": "gpu cuda",
        "sweep.name": "name run_name",
        "log.every": "log_every log_interval",
        "hydra.launcher.workers": "workers num_workers jobs",
        "hydra.launcher.executor": "executor launcher",
    }.items()
    for word in words.split()
}

CONTRACTS: dict[str, str] = {
    "init": "function(weight, *, fans, gain, role, generator) fills `weight`, float32 (out, in, *receptive), in place; "
    "it may leave out keywords that it does not need",
    "act": "function(x) returns a tensor of x's shape; an initlab.activations.Activation or a torch.nn.Module will do",
    "model": "function(depth, width, act, input_shape, classes) returns a torch.nn.Module; it may leave out arguments",
    "data": "function() returns ((train_x, train_y), (test_x, test_y)), arrays or tensors, or two torch Datasets "
    "(training, test); uint8 inputs are images, integer targets classes, floating ones a regression",
}
"""What the user's own functions are given and return, for the groups that take them as `group=module:function`."""

_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_own(name: str) -> bool:
    """Does a name tell what to import, `package.module:function`?

    >>> is_own("mine:half_he"), is_own("a.b:C.d"), is_own("he_normal"), is_own("mine:")
    (True, True, False, False)
    """
    return _OWN.fullmatch(name) is not None


def option_name(option: Mapping[str, Any]) -> str:
    """Return what a chosen option is called: its name, and the user's own by what is imported.

    >>> option_name({"name": "zeros", "gain": 1}), option_name({"name": "custom", "target": "mine:half_he"})
    ('zeros', 'mine:half_he')
    """
    own = option.get("target") if option["name"] == "custom" else None
    return str(own or option["name"])
