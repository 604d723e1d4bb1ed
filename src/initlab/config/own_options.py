"""Options of the user's own, chosen as built-in ones are: `init=he_normal,mine:half_he`."""

import textwrap
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from initlab.config.option_files import option_values
from initlab.system.imports import CONTRACTS, is_target

INDENT = " " * 6


class TargetOptions(dict):
    """A group of Hydra's config store in which every `package.module:function.yaml` is found: `custom` with a target.

    Only what is asked for is made, so that no list and no glob shows it.

    >>> "mine:half_he.yaml" in TargetOptions("init"), "he_normal.yaml" in TargetOptions("init"), list(TargetOptions("init"))
    (True, False, [])
    >>> TargetOptions("act")["mine:phi.yaml"].node
    {'name': 'custom', 'target': 'mine:phi'}
    """

    def __init__(self, group: str, found: Any = ()):
        super().__init__(found)
        self.group = group

    def __contains__(self, name: object) -> bool:
        """Is it a file of the group, or the name of something to import?"""
        return super().__contains__(name) or is_target(str(name).removesuffix(".yaml"))

    def __missing__(self, name: str) -> ConfigNode:
        """Return the option `custom` with this target."""
        target = name.removesuffix(".yaml")
        if not is_target(target):
            raise KeyError(name)
        values = {**(option_values(self.group, "custom") or {}), "target": target}
        return ConfigNode(name, OmegaConf.create({"name": "custom", **values}), self.group, None, "initlab")


def register_own_options() -> None:
    """Let Hydra find the user's own options in the groups that have `custom`."""
    repository = ConfigStore.instance().repo
    for group in CONTRACTS:
        if not isinstance(repository.get(group), TargetOptions):
            repository[group] = TargetOptions(group, repository.get(group, {}))


def own_options_text() -> str:
    """Lay out what each own option is given and returns, for `--help`."""
    lines = []
    for group, contract in CONTRACTS.items():
        text = textwrap.fill(contract, 110, initial_indent=INDENT, subsequent_indent=INDENT)
        lines.append(f"  {group}=module:function\n{text}")
    return "\n".join(lines) + "\n"
