"""Rules that look at no fan: constants and fixed distributions, the controls of every comparison."""

from torch import Generator, Tensor
from torch.nn import init

from initlab.schemes import laws
from initlab.schemes.record import Law, Scheme


def _constant(weight: Tensor, *, value: float, **_: object) -> Tensor:
    return init.constant_(weight, value)


def _uniform(weight: Tensor, *, a: float, b: float, generator: Generator, **_: object) -> Tensor:
    return init.uniform_(weight, a, b, generator=generator)


def _normal(weight: Tensor, *, mean: float, std: float, generator: Generator, **_: object) -> Tensor:
    return init.normal_(weight, mean, std, generator=generator)


def _truncated(
    weight: Tensor, *, mean: float, std: float, a: float, b: float, generator: Generator, **_: object
) -> Tensor:
    return init.trunc_normal_(weight, mean, std, a, b, generator=generator)


def _zeros_law(*_: object) -> Law:
    return laws.constant(0.0)


def _ones_law(*_: object) -> Law:
    return laws.constant(1.0)


def _constant_law(*_: object, value: float) -> Law:
    return laws.constant(value)


def _uniform_law(*_: object, a: float, b: float) -> Law:
    return laws.uniform(a, b)


def _normal_law(*_: object, mean: float, std: float) -> Law:
    return laws.normal(mean, std)


def _truncated_law(*_: object, mean: float, std: float, a: float, b: float) -> Law:
    return laws.truncated_normal(mean, std, a, b)


ROWS = (
    Scheme(
        "zeros",
        "W = 0",
        lambda weight, **_: init.zeros_(weight),
        _zeros_law,
        instead="every weight is 0; use init=constant init.value=… for another one",
        elementwise=True,
    ),
    Scheme(
        "ones",
        "W = 1",
        lambda weight, **_: init.ones_(weight),
        _ones_law,
        instead="every weight is 1; use init=constant init.value=… for another one",
        elementwise=True,
    ),
    Scheme(
        "constant",
        "W = value",
        _constant,
        _constant_law,
        parameters={"value": 0.1},
        instead="set init.value",
        elementwise=True,
    ),
    Scheme(
        "uniform",
        "U(a, b)",
        _uniform,
        _uniform_law,
        parameters={"a": 0.0, "b": 1.0},
        instead="set init.a and init.b",
        elementwise=True,
    ),
    Scheme(
        "normal",
        "N(mean, std²)",
        _normal,
        _normal_law,
        parameters={"mean": 0.0, "std": 1.0},
        instead="set init.std",
        elementwise=True,
    ),
    Scheme(
        "naive_normal",
        "N(0, 0.01²)",
        _normal,
        _normal_law,
        reference="Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep CNNs",
        year=2012,
        parameters={"mean": 0.0, "std": 0.01},
        instead="set init.std",
        elementwise=True,
    ),
    Scheme(
        "truncated_normal",
        "N(mean, std²) within [a, b], std not corrected",
        _truncated,
        _truncated_law,
        parameters={"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0},
        instead="set init.std",
        elementwise=True,
    ),
)
