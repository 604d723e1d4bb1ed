"""A random stream of its own for every parameter, and fingerprints of values."""

import hashlib
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from initlab.errors import whole_seed
from initlab.fans import canonical_names

WORDS = 624
"""32-bit words in the state of the Mersenne Twister MT19937, torch's CPU generator."""


def stream(seed: int, name: str) -> torch.Generator:
    """Return the CPU generator of one parameter: all 19,968 bits of its state are SHAKE-256 of (seed, name).

    So the draws for `hidden.3.weight` depend on nothing but the seed and that name, and two keys share a stream with
    probability 2⁻¹⁹⁹⁶⁸; `manual_seed` would keep 32 bits of the key, and two of 80,000 streams be equal.

    Args:
        seed: the init seed, a whole number from 0 to 2⁶³ − 1.
        name: canonical name of the parameter.

    Raises:
        UserError: the seed is no such number.

    >>> a, b = stream(0, "hidden.0.weight"), stream(0, "hidden.0.weight")
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    True
    """
    digest = hashlib.shake_256(f"{whole_seed(seed)}/{name}".encode("utf-8", "surrogatepass")).digest(8 + 4 * WORDS)
    state = _template().copy()
    state[0] = np.frombuffer(digest, "<u8", 1)[0]
    state[3 : 3 + WORDS] = np.frombuffer(digest, "<u4", WORDS, offset=8)
    generator = torch.Generator(device="cpu")
    generator.set_state(torch.from_numpy(state.view(np.uint8)))
    return generator


@cache
def _template() -> np.ndarray:
    # torch documents no layout: seed; left and seeded; next; 624 words in 64 bits each; a cached normal. A generator
    # seeded the ordinary way must show the twister's own initial words there, or nothing here can be trusted.
    seed, word = 5489, 5489
    expected = []
    for index in range(WORDS):
        word = seed if index == 0 else (1812433253 * (word ^ (word >> 30)) + index) & 0xFFFFFFFF
        expected.append(word)
    generator = torch.Generator(device="cpu")
    generator.manual_seed(seed)
    state = generator.get_state().numpy().view(np.uint64)
    if state.size < 3 + WORDS or state[0] != seed or state[3 : 3 + WORDS].tolist() != expected:
        raise RuntimeError(
            f"torch {torch.__version__} lays out the state of its CPU generator in a way that initlab does not know: "
            "its streams cannot be keyed; use a torch version that initlab was tested with."
        )
    return state


def fingerprint(values: "nn.Module | Mapping[str, Tensor] | Tensor") -> str:
    """Return 16 hexadecimal digits that identify the values of a module's parameters, a mapping's tensors, or a tensor.

    Equal names, shapes, dtypes and bytes give equal fingerprints on every device and machine and in any order of
    registration; wrappers' prefixes do not count. Buffers (running statistics) are not part of it.

    >>> a, b = torch.zeros(2), torch.zeros(2)
    >>> fingerprint({"w": a, "b": b}) == fingerprint({"b": b, "w": a})
    True
    >>> fingerprint(torch.zeros(3)) == fingerprint(torch.zeros(3, 1))
    False
    """
    if isinstance(values, Tensor):
        return _digest(values).hex()
    if isinstance(values, nn.Module):
        names = canonical_names(values)
        values = {names[name]: tensor for name, tensor in values.named_parameters(remove_duplicate=False)}
    whole = hashlib.sha256()
    for name in sorted(values):
        encoded = name.encode()
        whole.update(len(encoded).to_bytes(8, "little") + encoded + _digest(values[name]))
    return whole.hexdigest()[:16]


def _digest(tensor: Tensor) -> bytes:
    # A sharded tensor is gathered: every rank of it must ask.
    whole = getattr(tensor, "full_tensor", None)
    tensor = tensor if whole is None else whole()
    header = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".encode()
    digest = hashlib.sha256(header)
    digest.update(tensor.detach().cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()[:8]
