"""Read the idx format of the MNIST family, with a check for every kind of damage."""

import hashlib
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from initlab.errors import UserError
from initlab.system.safe_reading import MAX_DATA_BYTES, decompress, error_reason, read_bytes

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, md5: str | None = None, remedy: str = "delete it and download it again") -> Tensor:
    """Return the unsigned bytes of an idx file, gzipped or not, as a tensor of the shape that its header declares.

    Layout: two zero bytes, the type (0x08, unsigned byte), the number of axes, each axis as a big-endian uint32, the
    bytes in row-major order (LeCun, Cortes & Burges 1998, The MNIST Database).

    Args:
        path: the file; gzip is recognized by its content.
        md5: checksum of the decompressed bytes, or None.
        remedy: what the error tells the user to do.

    Raises:
        UserError: the file cannot be read, is truncated, is no idx file, or has another checksum.
    """
    damaged = f"Data file {path} is damaged"
    try:
        content = read_bytes(path, MAX_DATA_BYTES, given=True)
    except (OSError, ValueError) as error:
        raise UserError(f"Data file {path} cannot be read ({error_reason(error)}): {remedy}.") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = decompress(content)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise UserError(f"{damaged} (gzip: {error}): {remedy}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or not 1 <= content[3] <= 4:
        start = content[:4].hex() or "nothing"
        raise UserError(f"{damaged} (it starts with {start}, an idx file of bytes with 000008 and its axes): {remedy}.")
    axes, header = content[3], 4 + 4 * content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    if len(content) <= header or len(content) - header != math.prod(shape):
        size = max(len(content) - header, 0)
        raise UserError(f"{damaged} (it holds {size} values, its header declares {math.prod(shape)}): {remedy}.")
    if md5 is not None and (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise UserError(f"{damaged} (the md5 of its content is {actual}, not {md5}): {remedy}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)
