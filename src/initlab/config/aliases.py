"""Other names in use for schemes, activations and keys.

An alias is accepted wherever a name is; the canonical name is recorded.
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

# Names that other programs use for a key.
KEY_ALIASES: dict[str, str] = {
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
