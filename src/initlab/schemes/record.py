"""What a scheme is: how it fills a weight, and the law it promises for what it fills."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from initlab.activations import Activation
from initlab.errors import Impossible, UserError, did_you_mean
from initlab.inspection import Fans
from initlab.system.numbers import MAX_MAGNITUDE, describe_float32_limit, fits_float32


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that rounding (LAPACK's, a reduction's) does not depend on the number of cores.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Law:
    """What a scheme promises of one block of a weight; theory reads the moments, tests and the audit check the rest.

    Attributes:
        distribution: `constant`, `uniform`, `normal`, `truncated_normal`, `orthogonal`, `sparse`, …
        mean, variance: of an element, averaged over the block; `kurtosis` is E(x − mean)⁴ / variance².
        support: smallest interval that holds every element.
        cdf: distribution function of the independent elements, or None where elements are not independent.
        score: x -> z, standard normal under the law, where that is simpler than Φ⁻¹(cdf(x)).
        free: which elements are independent and follow `cdf` (all of them if None).
        orthogonal: g where the smaller side's Gram matrix is g² I, of the matrix that `part` takes out of the block.
        part: the matrix to which `orthogonal` applies, as a function of the block (None: flattened to (out, rest)).
        defect: largest violation of what holds exactly (zeros off the center, mirrored halves, …), 0 when it holds.
        deterministic: the same values whatever the seed.
        support_on: `all` taps of a convolution, or the `center` tap alone, with random values there and 0 elsewhere.
        independent: False where elements repeat each other, so that sums over inputs are not Gaussian with `variance`.
    """

    distribution: str
    mean: float
    variance: float
    support: tuple[float, float] = (-math.inf, math.inf)
    kurtosis: float = 3.0
    cdf: Callable[[Any], Any] | None = field(default=None, repr=False)
    score: Callable[[Any], Any] | None = field(default=None, repr=False)
    free: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    orthogonal: float | None = None
    part: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    defect: Callable[[Tensor], float] | None = field(default=None, repr=False)
    deterministic: bool = False
    support_on: str = "all"
    independent: bool = True

    @property
    def std(self) -> float:
        """Standard deviation of an element."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class BiasRule:
    """How a scheme fills the bias that goes with a weight of these fans, and the law it promises there."""

    sampler: Callable[..., Tensor]
    promise: Callable[..., Law]


@dataclass(frozen=True)
class Scheme:
    """A named rule that fills weights, the law it promises, its own gain and where it is from.

    Attributes:
        name: canonical name.
        formula: the law in one line of text.
        sampler: `sampler(weight, *, fans, gain, role, generator, **parameters)` fills a contiguous float32 CPU tensor
            of shape (out, in, *receptive); users call `fill_`.
        promise: `promise(fans, gain, role, shape, **parameters) -> Law`; users call `law`.
        reference, year: source (None for folklore).
        parameters: defaults, or the values bound by `bind`; their names are the keys `init.*`.
        own_gain: `own_gain(act, fans, role, **parameters)`, or None where a gain has no meaning.
        instead: what to set where a gain has no meaning.
        bias: rule for biases, where the scheme has one; else they are 0 or N(0, sigma_b²).
        needs: W the weight alone, role the layer's place, act the activation, F the structure of the network.
        structure: `structure(kind, shape, role) -> reason` why it cannot fill a block, or None.
        dense_counterpart: what to use in a model without convolutions, for a scheme that makes sense only with them.
        elementwise: elements are independent and of one law, so that blocks of equal fans may be filled at once.
        common: in wide use, so that the audit compares weights of unknown origin with it.
        derived: what theory derives before it fills: `critical` (σ_w and σ_b for the activation), `moments` (a gain for
            each layer from the layers before it), or "".
    """

    name: str
    formula: str
    sampler: Callable[..., Tensor] = field(repr=False)
    promise: Callable[..., Law] = field(repr=False)
    reference: str = ""
    year: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    own_gain: Callable[..., float] | None = field(default=None, repr=False)
    instead: str = ""
    bias: BiasRule | None = field(default=None, repr=False)
    needs: tuple[str, ...] = ("W",)
    structure: Callable[..., str | None] | None = field(default=None, repr=False)
    dense_counterpart: str = ""
    elementwise: bool = False
    common: bool = False
    derived: str = ""

    def bind(self, **parameters: Any) -> "Scheme":
        """Return the record with these parameters in place of its own.

        Raises:
            UserError: the scheme has no such parameter (the nearest is named), or the value cannot be.
        """
        for key, value in parameters.items():
            if key not in self.parameters:
                has = (
                    f"its keys are {', '.join(f'init.{k}' for k in self.parameters)}"
                    if self.parameters
                    else "it takes none"
                )
                raise UserError(
                    f"init={self.name} has no parameter init.{key}; {has}.{did_you_mean(key, self.parameters)}"
                )
            _check_parameter(self.name, key, value)
        bound = {**self.parameters, **parameters}
        if "a" in bound and "b" in bound and not bound["a"] < bound["b"]:
            raise UserError(f"init.a={bound['a']} must be less than init.b={bound['b']}.")
        if {"mean", "std", "a", "b"} <= bound.keys():
            reach = 2 * bound["std"]
            if not bound["a"] - reach <= bound["mean"] <= bound["b"] + reach:
                raise UserError(
                    f"init.mean={bound['mean']} lies more than two init.std={bound['std']} outside "
                    f"[init.a, init.b] = [{bound['a']}, {bound['b']}]: almost no draw would fall inside."
                )
        return replace(self, parameters=bound)

    def fill_(
        self, weight: Tensor, *, fans: Fans, generator: torch.Generator, gain: float = 1.0, role: str = "hidden"
    ) -> Tensor:
        """Fill `weight`, a tensor or view of shape (out, in, *receptive), in place, and return it.

        The values depend on shape, fans, gain, role, parameters and generator alone: they are drawn in float32 into
        contiguous memory on the CPU, then copied to whatever layout, dtype or device the weight has.

        >>> from initlab.schemes import SCHEMES
        >>> g = torch.Generator().manual_seed(0)
        >>> w = SCHEMES["he_normal"].fill_(torch.empty(64, 128), fans=Fans(128, 64), gain=2**0.5, generator=g)
        >>> round(float(w.std()), 2)
        0.13
        """
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
        # Independent elements round alike on any number of threads.
        with torch.no_grad(), nullcontext() if self.elementwise else one_thread():
            target = weight if plain else torch.empty(weight.shape, dtype=torch.float32, device="cpu")
            self.sampler(target, fans=fans, gain=gain, role=role, generator=generator, **self.parameters)
            return weight if target is weight else weight.copy_(target)

    def law(self, fans: Fans, gain: float = 1.0, role: str = "hidden", shape: tuple[int, ...] | None = None) -> Law:
        """Return what the scheme promises of a block with these fans; `shape` defaults to a dense (fan_out, fan_in).

        >>> from initlab.schemes import SCHEMES
        >>> SCHEMES["glorot_uniform"].law(Fans(300, 100)).variance
        0.005
        """
        return self.promise(fans, gain, role, shape or (int(fans.fan_out), int(fans.fan_in)), **self.parameters)

    def gain(self, act: Activation, fans: Fans, role: str = "hidden") -> float:
        """Return the scheme's own gain for an activation (`init.gain=paper`): a factor on the std, 1 if it has none.

        >>> from initlab.activations import ACTIVATIONS
        >>> from initlab.schemes import SCHEMES
        >>> round(SCHEMES["he_normal"].gain(ACTIVATIONS["relu"], Fans(8, 8)), 4)
        1.4142
        """
        return 1.0 if self.own_gain is None else float(self.own_gain(act, fans, role, **self.parameters))

    def bias_(self, bias: Tensor, *, fans: Fans, generator: torch.Generator) -> Tensor:
        """Fill `bias` of shape (out,) in place by the scheme's rule for biases; the fans are its weight's.

        Raises:
            UserError: the scheme has no such rule.
        """
        if self.bias is None:
            raise UserError(f"init={self.name} has no rule for biases; they are zero or N(0, sigma_b²).")
        drawn = torch.empty(bias.shape, dtype=torch.float32, device="cpu")
        with torch.no_grad(), one_thread():
            return bias.copy_(self.bias.sampler(drawn, fans=fans, generator=generator, **self.parameters))

    def bias_law(self, fans: Fans) -> Law | None:
        """Return the law of its biases, or None where it has no rule for them."""
        return None if self.bias is None else self.bias.promise(fans, **self.parameters)

    def block_refusal(self, kind: str, shape: tuple[int, ...], role: str = "hidden") -> str | None:
        """Return why a block of this kind, shape (out, in, *receptive) and role cannot be filled, or None.

        >>> from initlab.schemes import SCHEMES
        >>> SCHEMES["delta_orthogonal"].block_refusal("conv", (16, 32, 3, 3))
        'it needs out ≥ in channels and here are 16 out of 32 in'
        """
        return None if self.structure is None else self.structure(kind, shape, role)

    def check_gain(self, gain: float) -> float:
        """Return a user's gain as a float.

        Raises:
            Impossible: the scheme has no gain.
            UserError: the gain is not positive, or float32 cannot hold it.
        """
        if self.own_gain is None:
            raise Impossible(f"init={self.name} has no gain, so init.gain={gain} cannot be: {self.instead}.")
        if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain <= MAX_MAGNITUDE:
            raise UserError(f"init.gain={gain} must be a positive number or paper; for zero weights use init=zeros.")
        if not fits_float32(gain):
            raise UserError(
                f"init.gain={gain} cannot be: {describe_float32_limit(gain)}; init=zeros makes zero weights."
            )
        return float(gain)


MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
DISTRIBUTIONS = ("normal", "uniform", "truncated_normal")
_CHOICES: dict[str, tuple[str, ...]] = {"mode": MODES, "distribution": DISTRIBUTIONS}
_POSITIVE = ("std", "scale", "beta", "nonzeros", "q_star")
_NOT_NEGATIVE = ("sigma_b",)
_OPTIONAL = ("sigma_b", "q_star")
_WHOLE = ("nonzeros",)


def _check_parameter(scheme: str, key: str, value: Any) -> None:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            near = did_you_mean(str(value), _CHOICES[key])
            raise UserError(f"init.{key}={value} must be one of {', '.join(_CHOICES[key])} for init={scheme}.{near}")
        return
    if value is None and key in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_MAGNITUDE:
        raise UserError(f"init.{key}={value} must be a number that float32 can hold for init={scheme}.")
    if not fits_float32(value):
        raise UserError(f"init.{key}={value} cannot be for init={scheme}: {describe_float32_limit(value)}.")
    if key in _NOT_NEGATIVE and value < 0:
        raise UserError(f"init.{key}={value} must be a standard deviation: 0 or a positive number.")
    if key in _POSITIVE and value <= 0:
        raise UserError(f"init.{key}={value} must be positive for init={scheme}.")
    if key in _WHOLE and value != int(value):
        raise UserError(f"init.{key}={value} must be a whole number for init={scheme}.")
