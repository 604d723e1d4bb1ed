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

    def damaged(what: str) -> UserError:
        return UserError(f"Data file {path} is damaged ({what}): {remedy}.")

    try:
        content = read_bytes(path, MAX_DATA_BYTES, given=True)
    except (OSError, ValueError) as error:
        raise UserError(f"Data file {path} cannot be read ({error_reason(error)}): {remedy}.") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = decompress(content)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise damaged(f"gzip: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or not 1 <= content[3] <= 4:
        raise damaged(f"it starts with {content[:4].hex() or 'nothing'}, an idx file of bytes with 000008 and its axes")
    axes, header = content[3], 4 + 4 * content[3]
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    if len(content) <= header or len(content) - header != math.prod(shape):
        raise damaged(f"it holds {max(len(content) - header, 0)} values, its header declares {math.prod(shape)}")
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise damaged(f"the md5 of its content is {found}, not {md5}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(shape)
