"""Load and dump YAML by the rules of Hydra's files.

PyYAML follows YAML 1.1, in which `2e-2` is text: a number needs a point there. OmegaConf, which reads Hydra's files,
follows YAML 1.2 for numbers, has no dates, and refuses duplicate keys. So does this module; text that looks like
another type is written in quotes.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

FLOAT_PATTERN = re.compile(
    r"""^(?:
     [-+]?\d+(?:_\d+)*\.[\d_]*(?:[eE][-+]?\d+)?
    |[-+]?\d+(?:_\d+)*[eE][-+]?\d+
    )$""",
    re.VERBOSE | re.ASCII,
)
"""Numbers of OmegaConf: an exponent needs neither a point before it nor a sign."""


class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loads plain values only: no Python objects, no dates, no duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dictionary; PyYAML would keep the last of duplicate keys.

        Raises:
            yaml.constructor.ConstructorError: a key comes twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == STRING_TAG:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice")
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class YamlDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes plain values so that `YamlLoader` loads equal ones."""


STRING_TAG = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG
TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"

for _class in (YamlLoader, YamlDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, list("-+0123456789."))
YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != TIMESTAMP_TAG]
    for first, rules in YamlLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML (or JSON) text.

    Raises:
        ValueError: it is not YAML; the message is one line.

    >>> load_yaml("2e-2"), load_yaml("he_normal"), load_yaml("{std: 1E3, n: 10}"), load_yaml("2024-01-01")
    (0.02, 'he_normal', {'std': 1000.0, 'n': 10}, '2024-01-01')
    """
    try:
        return yaml.load(text, YamlLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None and mark.line else ""
        raise ValueError(f"{problem.splitlines()[0]}{where}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return the YAML of a mapping, with its keys in their order.

    >>> print(dump_yaml({"lr": 1e-05, "name": "2e-2"}), end="")
    lr: 1.0e-05
    name: '2e-2'
    """
    text: str = yaml.dump(value, Dumper=YamlDumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text
