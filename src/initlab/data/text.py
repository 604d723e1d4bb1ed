"""A tiny text, shipped: windows of characters, and at every position the one that follows."""

from pathlib import Path

import torch
from torch import Tensor

from initlab.data.dataset import RawDataset
from initlab.errors import UserError

TEXT_FILE = Path(__file__).parent / "tiny_text" / "poems.txt"
PIECES = 20
TEST_EVERY = 10  # of the pieces, every tenth is for testing


def tiny_text(directories: tuple[Path, ...], context: int = 64, stride: int = 4) -> RawDataset:
    """Read the text, in the public domain: Shakespeare, Blake, Shelley, Poe, Carroll and a speech of Lincoln's.

    Inputs are whole numbers [n, context], targets the next character at every position. The text is cut into twenty
    pieces, two of which test; no window reaches over a cut.

    Args:
        directories: not looked at; the text is part of the package.
        context: characters in a window.
        stride: characters from the start of one window to the next.

    Raises:
        UserError: a window that does not fit into a piece.
    """
    text = TEXT_FILE.read_text(encoding="utf-8")
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(letter) for letter in text])
    size = len(codes) // PIECES
    if not 2 <= context < size or stride < 1:
        raise UserError(f"data.context={context} must lie between 2 and {size - 1} characters, and data.stride be ≥ 1.")
    pieces = codes[: PIECES * size].view(PIECES, size)
    test = torch.arange(PIECES) % TEST_EVERY == TEST_EVERY - 1
    train_x, train_y = _windows(pieces[~test], context, stride)
    test_x, test_y = _windows(pieces[test], context, stride)
    where = f"{TEXT_FILE.name}, {len(text)} characters, {len(letters)} different ones"
    return RawDataset(train_x, train_y, test_x, test_y, len(letters), where, standardize=False)


def _windows(pieces: Tensor, context: int, stride: int) -> tuple[Tensor, Tensor]:
    found = pieces.unfold(1, context + 1, stride).reshape(-1, context + 1)
    return found[:, :-1].float(), found[:, 1:].contiguous()
