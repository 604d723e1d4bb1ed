"""Rules that use no fan: constants and fixed distributions, the controls of every comparison."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Generator, Tensor
from torch.nn import init

from initlab.schemes import laws
from initlab.schemes.record import Law, Scheme


def _plain_scheme(
    name: str,
    formula: str,
    fill: Callable[..., Tensor],
    law: Callable[..., Law],
    instead: str,
    parameters: Mapping[str, float] = MappingProxyType({}),
    **more: Any,
) -> Scheme:
    """Make a scheme of `fill(weight, generator=…, **parameters)` and `law(**parameters)`."""

    def sampler(weight: Tensor, *, fans: object, gain: float, role: str, generator: Generator, **own: Any) -> Tensor:
        return fill(weight, generator=generator, **own)

    def promise(fans: object, gain: float, role: str, shape: object, **own: Any) -> Law:
        return law(**own)

    return Scheme(name, formula, sampler, promise, parameters=parameters, instead=instead, elementwise=True, **more)


def _fill_constant(weight: Tensor, *, value: float, generator: Generator) -> Tensor:
    return init.constant_(weight, value)


_OTHER = "use init=constant init.value=… for another one"
KRIZHEVSKY = "Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep CNNs"

# fmt: off
ROWS = (
    _plain_scheme("zeros", "W = 0", partial(_fill_constant, value=0.0), partial(laws.constant, 0.0),
                  f"every weight is 0; {_OTHER}"),
    _plain_scheme("ones", "W = 1", partial(_fill_constant, value=1.0), partial(laws.constant, 1.0),
                  f"every weight is 1; {_OTHER}"),
    _plain_scheme("constant", "W = value", _fill_constant, laws.constant, "set init.value", {"value": 0.1}),
    _plain_scheme("uniform", "U(a, b)", init.uniform_, laws.uniform, "set init.a and init.b", {"a": 0.0, "b": 1.0}),
    _plain_scheme("normal", "N(mean, std²)", init.normal_, laws.normal, "set init.std", {"mean": 0.0, "std": 1.0}),
    _plain_scheme("naive_normal", "N(0, 0.01²)", init.normal_, laws.normal, "set init.std",
                  {"mean": 0.0, "std": 0.01}, reference=KRIZHEVSKY, year=2012),
    _plain_scheme("truncated_normal", "N(mean, std²) within [a, b], std not corrected", init.trunc_normal_,
                  laws.truncated_normal, "set init.std", {"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0}),
)
# fmt: on
