"""Assertions for tests of a user's own code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from initlab.audit import as_text, audit, passed
from initlab.initialize import Spec


def assert_initialized(
    module: nn.Module | Mapping[str, Tensor] | str | Path, promise: Spec | Mapping[str, Spec], **arguments: Any
) -> pd.DataFrame:
    """Raise AssertionError where a parameter is not initialized as promised; return the audit's rows where all are.

    Args:
        module: a module, a state_dict or a file, as in `initlab.audit`.
        promise: a scheme's name, record, (name, {key: value}), or {glob: …}.
        **arguments: those of `initlab.audit`.

    Raises:
        AssertionError: with one line per broken parameter, or the sentence that nothing was checked and why.

    >>> from initlab import initialize_
    >>> net = nn.Linear(300, 200)
    >>> rows = initialize_(net, "glorot_uniform")
    >>> len(assert_initialized(net, "glorot_uniform"))
    2
    """
    rows = audit(module, promise, **arguments)
    assert passed(rows), "\n" + as_text(rows)
    return rows
