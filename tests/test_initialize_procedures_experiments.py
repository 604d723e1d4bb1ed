"""Procedures in experiments: in ensembles, in grids, and with the rates they imply."""

import pytest

from initlab.config.compose import compose_config
from initlab.errors import UserError
from initlab.experiment import config_refusal
from initlab.experiment.run import run
from initlab.initialize.procedures import rates, shape
from initlab.models import build
from initlab.sweep.cells import group_key

TINY = ["data=gaussian", "data.train_size=200", "data.test_size=40", "data.dimension=6", "width=8", "depth=2",
        "train.batch_size=16", "train.steps=3", "log.histograms=0", "log.tensorboard=false", "threads=1"]  # fmt: skip


def config(*typed: str):
    return compose_config([*TINY, *typed])


@pytest.mark.parametrize("scheme", ["lsuv", "data_dependent", "metainit", "rezero", "mup", "dks"])
def test_in_an_ensemble_as_alone(scheme, tmp_path):
    family = "model=resmlp" if scheme == "rezero" else "model=mlp"
    own = ["init.steps=3"] if scheme == "metainit" else []
    configs = [config(f"init={scheme}", family, f"seed={seed}", *own) for seed in range(3)]
    together = run(configs, [tmp_path / f"t{seed}" for seed in range(3)])
    for seed, one in enumerate(configs):
        (alone,) = run([one], [tmp_path / f"a{seed}"])
        assert alone["status"] == together[seed]["status"] == "completed"
        assert alone["fingerprint"] == together[seed]["fingerprint"]
        assert alone["loss"] == pytest.approx(together[seed]["loss"], rel=1e-5)
    assert len({summary["fingerprint"] for summary in together}) == 3


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["init=fixup"], "init=fixup needs model.branch=learned, which model=mlp has not: choose model=resmlp"),
        (["init=mimetic"], "role q"),
        (["init=rezero", "model=resmlp", "model.branch=inverse_depth"], "so model.branch=inverse_depth cannot be"),
        (["init=tat", "act=linear"], "init=tat finds no"),
        (["init=dks", "model=resmlp"], "residual branch"),
        (["model=gpt"], "model=gpt cannot read data=gaussian: choose data=tiny_text"),
        (["data=tiny_text", "~data.train_size", "~data.test_size", "~data.dimension"], "choose model=gpt"),
    ],
)
def test_what_cannot_be_is_skipped_in_a_grid(typed, words):
    typed = typed if "data=tiny_text" not in typed else ["data=tiny_text"]
    made = compose_config([*typed, *(t for t in TINY if not (t.startswith("data") and "data=tiny_text" in typed))])
    reason = config_refusal(made)
    assert reason is not None
    assert words in reason


def test_what_changes_the_architecture_trains_apart():
    family = "model=resmlp"
    keys = {name: group_key(config(f"init={name}", family)) for name in ("he_normal", "lsuv", "rezero", "fixup")}
    assert keys["he_normal"] == keys["lsuv"]
    assert len(set(keys.values())) == 3


def test_rates_reach_the_optimizer(tmp_path):
    """One step of Adam moves every element by its rate: 1/r of it where µP says so."""
    moved = {}
    for base in (8, 2):
        made = config("init=mup", f"init.base_width={base}", "optim=adam", "optim.lr=0.001", "train.steps=1",
                      "train.save=true")  # fmt: skip
        run([made], [tmp_path / str(base)])
        from safetensors.torch import load_file

        first, last = (load_file(tmp_path / str(base) / f"weights-{when}.safetensors") for when in ("0", "end"))
        moved[base] = {name: float((last[name] - first[name]).abs().max()) for name in first}
    assert moved[8] == pytest.approx(dict.fromkeys(moved[8], 0.001), rel=0.02)
    for name, size in moved[2].items():
        slow = name in ("hidden.1.weight", "readout.weight")
        assert size == pytest.approx(0.001 / (4 if slow else 1), rel=0.02)


def test_rates_are_none_for_schemes_and_most_procedures():
    net = build("mlp", depth=1, width=8, act="relu", input_shape=(6,), classes=3)
    assert rates(net, "he_normal", "sgd") == rates(net, "lsuv", "adam") == {}


def test_optimizers_and_methods_that_nobody_knows_are_refused():
    net = build("mlp", depth=1, width=8, act="relu", input_shape=(6,), classes=3)
    for scheme in ("he_normal", "mup"):
        with pytest.raises(UserError, match=r"optimizer=adamm has no known factors.*Did you mean 'adam"):
            rates(net, scheme, "adamm")
    with pytest.raises(UserError, match="method=tatt must be dks or tat"):
        shape("tanh", "tatt", 50)
    with pytest.raises(UserError, match="depth=0 must be at least 1"):
        shape("tanh", "tat", 0)
