"""What a finding is: how severe, where, a sentence that a student understands, and a remedy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SEVERITIES = ("fault", "warning", "note")
"""A fault keeps the network from learning; a warning slows it down; a note is worth knowing."""


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        severity: `fault`, `warning` or `note`.
        name: what kind of finding, a key: `zero_layer`, `signal_dies`, …
        layers: the layers that it is about, in their order.
        sentence: what was found.
        remedy: what to change, or "".
    """

    severity: str
    name: str
    layers: tuple[str, ...]
    sentence: str
    remedy: str = ""


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity; equal ones keep their order.

    >>> [finding.name for finding in sort_findings([Finding("note", "a", (), ""), Finding("fault", "b", (), "")])]
    ['b', 'a']
    """
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def format_factor(x: float) -> str:
    """Return a factor as text: `2.5×` near 1, `10^-7.3` far from it.

    >>> format_factor(2.5), format_factor(1e-7), format_factor(3e12)
    ('2.5×', '10^-7', '10^12.5')
    """
    if x <= 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    if 1e-2 <= x <= 1e3:
        return f"{x:.3g}×"
    return f"10^{round(math.log10(x), 1):g}"


def name_layers(layers: Sequence[str], most: int = 3) -> str:
    """Return the names of layers as a part of a sentence, at most `most` of them.

    >>> name_layers(["a"]), name_layers(["a", "b"]), name_layers(list("abcdef"))
    ('layer a', 'layers a and b', 'layers a, b, c and 3 more')
    """
    names = list(dict.fromkeys(layers))
    if len(names) == 1:
        return f"layer {names[0] or '(the module itself)'}"
    if len(names) <= most:
        return f"layers {', '.join(names[:-1])} and {names[-1]}"
    return f"layers {', '.join(names[:most])} and {len(names) - most} more"


def capitalize_first(text: str) -> str:
    """Return a sentence with a capital first letter; names inside it keep their case.

    >>> capitalize_first("layer fc.Head")
    'Layer fc.Head'
    """
    return text[:1].upper() + text[1:]
