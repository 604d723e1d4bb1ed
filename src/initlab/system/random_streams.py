"""Every random stream of initlab, each keyed by its purpose, a seed and a name.

Two streams of one key would be the same numbers: made-up targets that equal the made-up inputs, a validation split that
follows the order of the batches. All generators are made here, each for a purpose in `STREAMS`.
"""

import hashlib
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from initlab.errors import UserError
from initlab.system.numbers import MAX_SEED

STATE_WORDS = 624
"""32-bit words in the state of the Mersenne Twister MT19937, torch's CPU generator."""


class Stream(NamedTuple):
    """What is drawn for one purpose, and how its generator is made.

    Attributes:
        description: of the draws.
        text: given seed and name, returns the text that is hashed to the generator's state; None puts the purpose into
            it. Other texts are older and stay, so that weights and masks keep their bits.
        make_numpy: given seed and name, returns a generator of numpy's instead; these keep the bits of batches.
        make_torch: given seed and name, returns a generator of torch's instead; it keeps the bits of drawn data.
    """

    description: str
    text: Callable[[int, str], str] | None = None
    make_numpy: Callable[[int, str], np.random.Generator] | None = None
    make_torch: Callable[[int, str], torch.Generator] | None = None


RESERVED_NAMES = re.compile(r"batch|change_rates|coordinate_check|(dropout|forward)/.*|.*/(gates|mimetic)")
"""Names in the texts of older streams: a parameter of such a name has a text of another form."""


def _parameter_text(seed: int, name: str) -> str:
    return f"weights//{seed}/{name}" if RESERVED_NAMES.fullmatch(name) else f"{seed}/{name}"


def _batch_generator(seed: int, name: str) -> np.random.Generator:
    # numpy splits a seed into words of 32 bits: the second word of a larger one would equal that of an epoch.
    return np.random.default_rng((seed, int(name)) if seed < 2**32 else _hash_text(f"batches//{seed}/{name}"))


STREAMS: dict[str, Stream] = {
    "weights": Stream("the values of one parameter, by its canonical name", _parameter_text),
    "gates": Stream("the biases of recurrent gates (chrono)", lambda seed, name: f"{seed}/{name}/gates"),
    "mimetic": Stream("the factors of q, k, v and o", lambda seed, name: f"{seed}/{name}/mimetic"),
    "procedure batch": Stream("the samples of a procedure", lambda seed, name: f"{seed}/batch"),
    "change rates": Stream("directions of gradients", lambda seed, name: f"{seed}/change_rates"),
    "procedure passes": Stream("what a module draws while a procedure runs it"),
    "dropout": Stream("the mask of one layer at one step", lambda seed, name: f"{seed}/dropout/{name}"),
    "forward passes": Stream("what a module draws in training", lambda seed, name: f"{seed}/forward/{name}"),
    "batches": Stream("the order of one epoch, by its number", make_numpy=_batch_generator),
    "validation": Stream(
        # For data.seed=0 this is also the stream of the epoch of that number, which permutes rows of another set; both
        # keep their bits.
        "the rows of one class that are held out, by its index",
        make_numpy=lambda seed, name: np.random.default_rng((0, int(name))),
    ),
    "drawn data": Stream(
        "gaussian, digits_1d or sine: a run has one data set",
        make_torch=lambda seed, name: torch.Generator().manual_seed(0),
    ),
    "made-up model": Stream("what a module draws while it is built for a diagnosis"),
    "made-up inputs": Stream("a batch for a diagnosis"),
    "made-up targets": Stream("labels or values for a loss"),
    "diagnosed passes": Stream("what a module draws while it is diagnosed"),
    "coordinate check": Stream("a batch for networks of all widths", lambda seed, name: f"{seed}/coordinate_check"),
    "coordinate inputs": Stream("a batch of a given shape"),
    "right inverse": Stream("the part of a basis that a parametrization completes"),
    "spectrum probes": Stream("the first vectors of Lanczos iterations"),
    "unit hashes": Stream("the factors of a hash"),
    "rounding noise": Stream("the place of a rounded number within its cell"),
    "logits": Stream("logits of an average over labels"),
}
"""Purpose -> stream. A new draw gets a line here; a test compares the draws of all."""


def generator(purpose: str, seed: int = 0, name: str = "") -> torch.Generator:
    """Return torch's CPU generator for a purpose: all 19,968 bits of its state are SHAKE-256 of (purpose, seed, name).

    Two keys share a stream with probability 2⁻¹⁹⁹⁶⁸; `manual_seed` keeps 32 bits of a key: two of 80,000 streams would
    be equal.

    Args:
        purpose: a key of `STREAMS`.
        seed: a whole number from 0 to 2⁶³ − 1.
        name: tells this stream from others of its purpose and seed.

    Raises:
        UserError: the seed is another value.

    >>> a, b = generator("made-up inputs", 0), generator("made-up targets", 0)
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    False
    """
    stream, seed = STREAMS[purpose], check_seed(seed)
    return (
        hashed_generator(_stream_text(purpose, stream, seed, name))
        if stream.make_torch is None
        else stream.make_torch(seed, name)
    )


def numpy_generator(purpose: str, seed: int = 0, name: str = "") -> np.random.Generator:
    """Return numpy's generator for a purpose.

    Args:
        purpose: as in `generator`.
        seed: as in `generator`.
        name: as in `generator`.

    >>> float(numpy_generator("batches", 0, "1").random()) == float(np.random.default_rng((0, 1)).random())
    True
    """
    stream, seed = STREAMS[purpose], check_seed(seed)
    if stream.make_numpy is not None:
        return stream.make_numpy(seed, name)
    return np.random.default_rng(_hash_text(_stream_text(purpose, stream, seed, name)))


def seed_global_state(purpose: str, seed: int = 0, name: str = "", device: torch.device | None = None) -> None:
    """Set torch's global state for code that takes no generator; the caller restores the old state.

    Args:
        purpose: as in `generator`.
        seed: as in `generator`.
        name: as in `generator`.
        device: the one beside the CPU whose state is set; None for all.
    """
    source = generator(purpose, seed, name)
    if device is None or device.type == "cuda":
        seed_devices = torch.manual_seed if device is None else torch.cuda.manual_seed
        seed_devices(int(torch.randint(2**62, (), generator=source)))
    torch.random.set_rng_state(source.get_state())


def _stream_text(purpose: str, stream: Stream, seed: int, name: str) -> str:
    # A purpose begins with a letter and an older text with a digit, so no two are equal.
    return f"{purpose}//{seed}/{name}" if stream.text is None else stream.text(seed, name)


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(64), "little")


def hashed_generator(text: str) -> torch.Generator:
    """Return torch's CPU generator whose whole state is the hash of a text.

    >>> torch.equal(hashed_generator("0/w").get_state(), generator("weights", 0, "w").get_state())
    True
    """
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(8 + 4 * STATE_WORDS)
    state = _state_template().copy()
    state[0] = np.frombuffer(digest, "<u8", 1)[0]
    state[3 : 3 + STATE_WORDS] = np.frombuffer(digest, "<u4", STATE_WORDS, offset=8)
    hashed = torch.Generator(device="cpu")
    hashed.set_state(torch.from_numpy(state.view(np.uint8)))
    return hashed


@cache
def _state_template() -> np.ndarray:
    # torch documents no layout; that of 2.14.1 is: seed; left and seeded; next; 624 words in 64 bits each; a cached
    # normal. numpy seeds its twister in the same way, and documents the words.
    seed = 5489
    words = np.random.RandomState(seed).get_state(legacy=False)["state"]["key"]
    plain = torch.Generator(device="cpu")
    plain.manual_seed(seed)
    state = plain.get_state().numpy().view(np.uint64)
    if state.size < 3 + STATE_WORDS or state[0] != seed or (state[3 : 3 + STATE_WORDS] != words).any():
        raise RuntimeError(
            f"torch {torch.__version__} has another layout of the state of its CPU generator: initlab cannot key its "
            "streams; use a torch version that initlab was tested with."
        )
    return state


def check_seed(seed: Any) -> int:
    """Return a seed of any integer type as an int.

    Raises:
        UserError: it is no whole number from 0 to 2⁶³ − 1.

    >>> check_seed(3)
    3
    >>> check_seed(-1)
    Traceback (most recent call last):
    ...
    initlab.errors.UserError: seed=-1 must be a whole number from 0 to 2^63 − 1: use for example seed=0.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise UserError(f"seed={seed!r} must be a whole number from 0 to 2^63 − 1: use for example seed=0.")
    return number
