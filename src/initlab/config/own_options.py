"""Options of the user's own, chosen as built-in ones are: `init=he_normal,mine:half_he`."""

import textwrap

from hydra.core.config_store import ConfigNode
from omegaconf import OmegaConf

from initlab.config.hydra_interface import config_store_groups
from initlab.config.option_files import option_values
from initlab.system.imports import CONTRACTS, is_target

INDENT = " " * 6


class TargetOptions(dict):
    """A group of Hydra's config store that contains every `package.module:function.yaml`: `custom` with a target.

    An option is created when it is looked up, so that no list and no glob shows it.

    >>> "mine:half_he.yaml" in TargetOptions("init"), "he_normal.yaml" in TargetOptions("init")
    (True, False)
    >>> TargetOptions("act")["mine:phi.yaml"].node, list(TargetOptions("act"))
    ({'name': 'custom', 'target': 'mine:phi'}, [])
    """

    def __init__(self, group: str, options: dict[str, ConfigNode] | None = None):
        super().__init__(options or {})
        self.group = group

    def __contains__(self, name: object) -> bool:
        """Return whether a file of the group has this name, or it names something to import."""
        return super().__contains__(name) or is_target(str(name).removesuffix(".yaml"))

    def __missing__(self, name: str) -> ConfigNode:
        """Return the option `custom` with this target.

        Raises:
            KeyError: the name is no target.
        """
        target = name.removesuffix(".yaml")
        if not is_target(target):
            raise KeyError(name)
        values = {"name": "custom", **(option_values(self.group, "custom") or {}), "target": target}
        return ConfigNode(name, OmegaConf.create(values), self.group, None, "initlab")


def register_own_options() -> None:
    """Make `group=module:function` known to Hydra for the groups that have `custom`."""
    groups = config_store_groups()
    for group in CONTRACTS:
        if not isinstance(groups.get(group), TargetOptions):
            groups[group] = TargetOptions(group, groups.get(group))


def own_options_text() -> str:
    """Return what each own option is given and returns, for `--help`."""
    lines = []
    for group, contract in CONTRACTS.items():
        text = textwrap.fill(contract, 110, initial_indent=INDENT, subsequent_indent=INDENT)
        lines.append(f"  {group}=module:function\n{text}\n")
    return "".join(lines)
