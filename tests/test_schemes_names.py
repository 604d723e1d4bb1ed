"""Names, parameters and the user's own schemes: what is accepted, and what is said when it is not."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from initlab.errors import UserError
from initlab.initialize import fill_
from initlab.initialize.procedures import PROCEDURES
from initlab.schemes import SCHEME_ALIASES, SCHEMES, scheme

CONF = Path(__file__).parents[1] / "conf" / "init"


@pytest.mark.parametrize("alias", SCHEME_ALIASES)
def test_aliases_lead_to_schemes(alias):
    assert scheme(alias).name == SCHEME_ALIASES[alias]
    assert alias not in SCHEMES


@pytest.mark.parametrize("name", [*SCHEMES, "custom"])
def test_every_scheme_has_an_option_file_with_its_own_keys_and_defaults(name):
    keys = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    if name == "custom":
        assert keys == {"name": "custom", "target": None, "gain": "paper", "sigma_b": 0.0}
        return
    gain = {"gain": "paper"} if SCHEMES[name].own_gain is not None else {}
    assert keys == {"name": name, **gain, "sigma_b": 0.0, **SCHEMES[name].parameters}


def test_no_option_file_is_without_a_scheme():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*SCHEMES, *PROCEDURES, "custom"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scheme("he_norml"), "init=he_norml is unknown. Did you mean 'he_normal'"),
        (lambda: scheme("he_normal", moed="fan_in"), "has no parameter init.moed; its keys are init.mode"),
        (lambda: scheme("zeros", value=2), "init=zeros has no parameter init.value; it takes none"),
        (lambda: scheme("he_normal", mode="fanout"), "init.mode=fanout must be one of .*Did you mean 'fan_out'"),
        (lambda: scheme("normal", std=-1), "init.std=-1 must be positive"),
        (lambda: scheme("normal", std=float("nan")), "init.std=nan must be a number that float32 can hold"),
        (lambda: scheme("normal", mean="abc"), "init.mean=abc must be a number"),
        (lambda: scheme("uniform", a=1.0), "init.a=1.0 must be less than init.b=1.0"),
        (lambda: scheme("constant", value=1e39), "init.value=1e\\+39 must be a number that float32 can hold"),
        (lambda: scheme("truncated_normal", mean=9.0), "init.mean=9.0 lies more than two init.std=1.0 outside"),
        (lambda: scheme("sparse", nonzeros=2.5), "init.nonzeros=2.5 must be a whole number"),
        (lambda: scheme("custom"), "init.target=null names nothing to import"),
        (lambda: scheme("custom", target="math:nothing"), "has no 'nothing'"),
        (lambda: scheme("custom", target="math:pi"), "init.target=math:pi is no function"),
        (lambda: scheme("custom", target=lambda weight, tau: None), "disagree about 'tau'"),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_custom_function_must_fill_in_place():
    def forgets(weight, *, fans, gain, role, generator):
        return torch.ones_like(weight)

    def fills(weight, *, fans, generator, tau=1.0):
        return weight.normal_(0, tau / fans.fan_in, generator=generator)

    layer = nn.Linear(50, 40)
    with pytest.raises(UserError, match=r"forgets left 2000 of 2000 weights NaN.*in place"):
        fill_(layer, scheme("custom", target=forgets))
    rows = fill_(layer, scheme("custom", target=fills, tau=5.0))
    assert rows.scheme.tolist() == ["fills", "zeros"]
    assert float(layer.weight.detach().std()) == pytest.approx(0.1, rel=0.1)


def test_a_record_of_the_users_own_is_a_scheme_like_any_other():
    mine = dataclasses.replace(SCHEMES["lecun_normal"], name="mine")
    assert fill_(nn.Linear(3, 3), mine).scheme[0] == "mine"
