"""The option files under conf/: where they are, which options a group has, and their keys."""

import functools
import re
from pathlib import Path
from typing import Any

from initlab.system.safe_reading import read_yaml_file, require_mapping


def conf_dir() -> Path:
    """Return the directory of option files: inside an installed wheel, else beside `src/` in the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


@functools.cache
def option_names(group: str) -> list[str]:
    """Return the options of a config group, as the names of its files.

    >>> "sgd" in option_names("optim")
    True
    """
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def option_keys(group: str, name: str) -> tuple[str, ...] | None:
    """Return the keys that an option's file declares, or None where there is no such file.

    >>> option_keys("act", "sin")
    ('omega',)
    """
    values = option_values(group, name)
    return None if values is None else tuple(values)


@functools.cache
def option_values(group: str, name: str) -> dict[str, Any] | None:
    """Return the keys of an option's file and their values, or None where there is no such file.

    >>> option_values("act", "leaky_relu")
    {'negative_slope': 0.01}
    """
    if name not in option_names(group):
        return None
    values = require_mapping(read_yaml_file(conf_dir() / group / f"{name}.yaml", given=True))
    # A file of package _global_ (model=resnet also sets depth and width) holds the group as one of its keys.
    return {key: value for key, value in values.get(group, values).items() if key != "name"}


@functools.cache
def option_choices(group: str, name: str, key: str) -> tuple[str, ...]:
    """Return the values that the comment beside a key of an option's file lists, up to its colon; () without one.

    >>> option_choices("model", "mlp", "norm"), option_choices("model", "vit", "norm")
    (('none', 'batch', 'layer'), ('none', 'pre', 'post'))
    """
    if name not in option_names(group):
        return ()
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    comment = re.search(rf"^ *{re.escape(key)}:.*?# ([^:\n]*)", text, re.MULTILINE)
    words = re.findall(r"\w+", re.sub(r"\(.*?\)", "", comment[1])) if comment else []
    return tuple(word for word in words if word != "or")
