"""The random stream of each parameter, and fingerprints of values."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from initlab.inspection import canonical_names
from initlab.system.random_streams import check_seed, hashed_generator


def stream(seed: int, name: str) -> torch.Generator:
    """Return the CPU generator of one parameter, keyed by (seed, name).

    The draws for `hidden.3.weight` depend only on the seed and that name.

    Args:
        seed: the init seed, a whole number from 0 to 2⁶³ − 1.
        name: canonical name of the parameter.

    Raises:
        UserError: the seed is not such a number.

    >>> a, b = stream(0, "hidden.0.weight"), stream(0, "hidden.0.weight")
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    True
    """
    return hashed_generator(f"{check_seed(seed)}/{name}")


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
    total = hashlib.sha256()
    for name in sorted(values):
        encoded = name.encode("utf-8", "surrogatepass")
        total.update(len(encoded).to_bytes(8, "little") + encoded + _digest(values[name]))
    return total.hexdigest()[:16]


def _digest(tensor: Tensor) -> bytes:
    # A sharded tensor is gathered: every rank must call this.
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    header = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".encode()
    digest = hashlib.sha256(header)
    digest.update(tensor.detach().cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()[:8]
