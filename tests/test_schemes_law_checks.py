"""The contracts have power: planted bugs are rejected on at least 99 of 100 seeds, true schemes pass on all of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from initlab.initialize import stream
from initlab.inspection import Fans
from initlab.schemes import SCHEMES, Scheme, laws, scheme
from initlab.schemes.law_checks import independence_p_value, p_values, violations

# About 3,400 true tensors are tested at 1e-8 each: a false alarm in fewer than 1 of 30,000 runs of the full suite.
ALPHA = 1e-8
GAIN = 1.5
RECORDS: dict[str, Scheme] = SCHEMES | {
    f"{name}, truncated": scheme(name, distribution="truncated_normal")
    for name in ("lecun_normal", "glorot_normal", "he_normal")
}


def setting(record: Scheme) -> tuple[tuple[int, ...], Fans, float]:
    """Give a tall shape (of a convolution where the scheme is for those), its fans, and a gain other than 1."""
    shape = (96, 40, 3, 3) if record.dense_counterpart else (192, 64)
    taps = math.prod(shape[2:])
    return shape, Fans(shape[1] * taps, shape[0] * taps, taps), GAIN if record.own_gain else 1.0


def law_of(record: Scheme, **changed):
    shape, fans, gain = setting(record)
    arguments = {"fans": fans, "gain": gain, "shape": shape} | changed
    return record.law(arguments["fans"], arguments["gain"], "hidden", arguments["shape"])


def filled(record: Scheme, seed: int, *, name: str = "w", **changed) -> Tensor:
    shape, fans, gain = setting(record)
    arguments = {"fans": fans, "gain": gain, "shape": shape} | changed
    weight = torch.empty(arguments["shape"])
    return record.fill_(weight, fans=arguments["fans"], gain=arguments["gain"], generator=stream(seed, name))


def swapped(fans: Fans) -> Fans:
    return Fans(fans.fan_out, fans.fan_in, fans.receptive)


def turned(record: Scheme) -> tuple[int, ...]:
    shape = setting(record)[0]
    return (shape[1], shape[0], *shape[2:])


def untouched(record: Scheme, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.init.kaiming_uniform_(torch.empty(setting(record)[0]), a=math.sqrt(5))


def first_units_equal(record: Scheme, seed: int) -> Tensor:
    weight = filled(record, seed)
    weight[1] = weight[0]
    return weight


def uniform_of_equal_variance(record: Scheme, seed: int) -> Tensor:
    bound = math.sqrt(3) * law_of(record).std
    return torch.empty(setting(record)[0]).uniform_(-bound, bound, generator=stream(seed, "w"))


def is_fans_of(record: Scheme) -> bool:
    there, here = law_of(record, fans=swapped(setting(record)[1])).variance, law_of(record).variance
    return here > 0 and not 0.8 < there / here < 1.25


def is_turnable(record: Scheme) -> bool:
    # Where transposing changes the law: patterns, sparse rows, rows of one norm, a factor that depends on the shape.
    here, there = law_of(record), law_of(record, shape=turned(record))
    structured = here.distribution in ("sparse", "fixed_norm", "sinusoidal", "hadamard")
    return structured or here.orthogonal != there.orthogonal


def is_normal(record: Scheme) -> bool:
    return law_of(record).distribution == "normal"


# name -> (where it is a bug, the tensor it leaves)
MUTANTS = {
    "variance doubled": (lambda r: r.name != "zeros", lambda r, seed: filled(r, seed) * math.sqrt(2)),
    "gain squared": (lambda r: r.own_gain is not None, lambda r, seed: filled(r, seed, gain=GAIN**2)),
    "gain ignored": (lambda r: r.own_gain is not None, lambda r, seed: filled(r, seed, gain=1.0)),
    "fans swapped": (is_fans_of, lambda r, seed: filled(r, seed, fans=swapped(setting(r)[1]))),
    "√3 missing": (
        lambda r: law_of(r).distribution == "uniform" and law_of(r).mean == 0,
        lambda r, seed: filled(r, seed) / math.sqrt(3),
    ),
    "truncation not corrected": (
        lambda r: law_of(r).distribution == "truncated_normal" and r.own_gain is not None,
        lambda r, seed: filled(r, seed) * 0.87962566103423978,
    ),
    "transposed": (is_turnable, lambda r, seed: filled(r, seed, shape=turned(r)).transpose(0, 1)),
    "no-op": (lambda r: r.name not in ("torch_default", "uniform_rule"), untouched),
    "two equal units": (lambda r: not law_of(r).deterministic, first_units_equal),
    "uniform for normal": (is_normal, uniform_of_equal_variance),
    "clipped at 2σ": (
        is_normal,
        lambda r, seed: filled(r, seed).clamp(-2 * law_of(r).std, 2 * law_of(r).std),
    ),
    "one element lost": (
        lambda r: r.name != "zeros",
        lambda r, seed: filled(r, seed).index_fill_(0, torch.tensor(0), math.nan),
    ),
}
PLANTED = [(mutant, name) for mutant, (where, _) in MUTANTS.items() for name, r in RECORDS.items() if where(r)]


def rejected(mutant: str, name: str, seeds: range) -> int:
    record, (_, plant) = RECORDS[name], MUTANTS[mutant]
    law = law_of(record)
    return sum(bool(violations(plant(record, seed), law, ALPHA)) for seed in seeds)


def passed(name: str, seeds: range) -> int:
    record = RECORDS[name]
    return sum(not violations(filled(record, seed), law_of(record), ALPHA) for seed in seeds)


def same_layers_found(name: str, seeds: range) -> int:
    # The bug: one seed for two layers, of the same shape or not.
    record = RECORDS[name]
    pairs = ((filled(record, s), filled(record, s, shape=turned(record), gain=GAIN)) for s in seeds)
    return sum(independence_p_value(a, b) < ALPHA for a, b in pairs)


RANDOM = [name for name, r in RECORDS.items() if not law_of(r).deterministic]
ELEMENTWISE = [name for name in RANDOM if RECORDS[name].elementwise]


def test_at_least_eight_kinds_of_bugs_are_planted_and_every_scheme_suffers_some():
    assert len({mutant for mutant, _ in PLANTED}) + 1 >= 8  # and the same values for two layers
    assert {name for _, name in PLANTED} == set(RECORDS)


@pytest.mark.parametrize(("mutant", "name"), PLANTED)
def test_a_planted_bug_is_rejected_on_99_of_100_seeds(mutant, name):
    assert rejected(mutant, name, range(100)) >= 99


@pytest.mark.parametrize("name", RECORDS)
def test_a_true_scheme_passes_on_all_of_100_seeds(name):
    assert passed(name, range(100)) == 100


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_same_values_in_two_layers_are_found_on_99_of_100_seeds(name):
    assert same_layers_found(name, range(100)) >= 99


@pytest.mark.parametrize("name", RANDOM)
def test_identical_layers_are_found_for_every_random_scheme(name):
    record = RECORDS[name]
    assert independence_p_value(filled(record, 0), filled(record, 0)) < ALPHA
    assert independence_p_value(filled(record, 0), filled(record, 0, name="another")) > ALPHA


def test_qr_without_the_sign_fix_is_not_haar():
    law = SCHEMES["orthogonal"].law(Fans(512, 512))
    gaussian = torch.randn(512, 512, generator=stream(0, "w"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    assert violations(q, law, ALPHA) == ["haar"]
    assert violations(q * r.diagonal().sign(), law, ALPHA) == []


@pytest.mark.parametrize("check", ["mean", "variance", "ks", "extremes"])
@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize(
    "law",
    [laws.normal(0, 2), laws.uniform(-1, 3), laws.truncated_normal(0, 1, -2, 2)],
    ids=lambda law: law.distribution,
)
def test_false_alarms_come_as_often_as_promised(law, check, size):
    # 2,000 true tensors, p < 0.02 expected at most 40 times; 75 is more than five standard deviations above.
    generator = stream(0, f"{law.distribution}/{size}")
    alarms = 0
    for _ in range(2000):
        x = torch.empty(size, dtype=torch.float64)
        if law.distribution == "normal":
            x.normal_(law.mean, law.std, generator=generator)
        elif law.distribution == "uniform":
            x.uniform_(*law.support, generator=generator)
        else:
            nn.init.trunc_normal_(x, 0, 1, -2, 2, generator=generator)
        alarms += p_values(x, law)[check] < 0.02
    assert alarms < 75


def test_independence_is_uniform_enough_for_independent_tensors():
    generator = stream(0, "pairs")
    alarms = sum(
        independence_p_value(torch.randn(40, generator=generator), torch.rand(60, generator=generator)) < 0.02
        for _ in range(2000)
    )
    assert alarms < 75


def test_non_finite_values_are_named():
    assert violations(torch.tensor([1.0, math.inf]), laws.normal(0, 1)) == ["finite"]
