"""Names that steer a terminal, look like markup, or cannot stand in XML; and models that have them."""

import torch
from torch import nn

NAMES = (
    "\x1b]0;owned\x07",
    "\x1b[31mred\x1b[2J",
    "\x9b31mC1",
    "[red]bold[/red]",
    "[link=file:///]x",
    ":smile:",
    "\u202egnp",
    "line\nFAKE ok",
    "return\rFAKE",
    "nul\0",
    "half\ud800",
    "none\ufffe\uffff",
    "<&\"'>]]>",
    "\u2028\x85next",
    "é 漢字 ½",
)
ALL = " ".join(NAMES)


def net():
    """A chain of layers, one for each name."""
    torch.manual_seed(0)
    found = nn.Sequential()
    for name in NAMES:
        found.add_module(name.replace(".", "_"), nn.Linear(4, 4))
    return found


def of_width(width):
    """A network of a width, for the coordinate check."""
    found = nn.Sequential()
    for name in NAMES:
        found.add_module(name.replace(".", "_"), nn.Linear(4 if not len(found) else width, width))
    found.add_module("readout", nn.Linear(width, 10))
    return found


def broken():
    """A module whose forward pass raises what a terminal would obey."""
    return Broken()


class Broken(nn.Module):
    """It has a weight, and raises."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self, x):
        """Raise every name."""
        raise RuntimeError(ALL)


def raising(*_, **__):
    """Fail when it is called."""
    raise RuntimeError(ALL)
