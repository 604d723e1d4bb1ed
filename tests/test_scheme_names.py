"""Names, parameters and the user's own schemes: what is accepted, and what is said when it is not."""

import dataclasses

import pytest
import torch
from torch import nn

from initlab.errors import UserError
from initlab.initialize import initialize_
from initlab.schemes import SCHEME_ALIASES, SCHEMES, scheme


@pytest.mark.parametrize("alias", SCHEME_ALIASES)
def test_aliases_lead_to_schemes(alias):
    assert scheme(alias).name == SCHEME_ALIASES[alias]
    assert alias not in SCHEMES


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scheme("he_norml"), "init=he_norml is unknown. Did you mean 'he_normal'"),
        (lambda: scheme("he_normal", moed="fan_in"), "has no parameter init.moed; its keys are init.mode"),
        (lambda: scheme("zeros", value=2), "init=zeros has no parameter init.value; it takes none"),
        (lambda: scheme("he_normal", mode="fanout"), "init.mode=fanout must be one of .*Did you mean 'fan_out'"),
        (lambda: scheme("normal", std=-1), "init.std=-1 must be positive"),
        (lambda: scheme("normal", std=float("nan")), "init.std=nan must be a finite number"),
        (lambda: scheme("normal", mean="abc"), "init.mean=abc must be a finite number"),
        (lambda: scheme("uniform", a=1.0), "init.a=1.0 must be less than init.b=1.0"),
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
        initialize_(layer, scheme("custom", target=forgets))
    rows = initialize_(layer, scheme("custom", target=fills, tau=5.0))
    assert rows.scheme.tolist() == ["custom", "zeros"]
    assert float(layer.weight.detach().std()) == pytest.approx(0.1, rel=0.1)


def test_a_record_of_the_users_own_is_a_scheme_like_any_other():
    mine = dataclasses.replace(SCHEMES["lecun_normal"], name="mine")
    assert initialize_(nn.Linear(3, 3), mine).scheme[0] == "mine"
